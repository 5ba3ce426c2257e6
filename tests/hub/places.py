"""A hub that may run two servers at a time."""

c = get_config()  # noqa: F821

c.JupyterHub.active_server_limit = 2
