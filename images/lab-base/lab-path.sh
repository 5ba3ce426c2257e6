# Debian's /etc/profile sets PATH anew in a login shell, which a terminal of JupyterLab is.
PATH="/opt/lab/bin:$HOME/.local/bin:$PATH"
