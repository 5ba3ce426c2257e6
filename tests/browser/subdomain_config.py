"""The project's own configuration with a domain for each user and service, and below a base URL.

A browser takes every name below `localhost` for the loopback. Sessions can be extended by an hour.
"""

from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).resolve().parents[2] / "jupyterhub_config.py"))  # noqa: F821

port = c.JupyterHub.bind_url.rsplit(":", 1)[1]
c.JupyterHub.bind_url += "/jupyter/"
c.JupyterHub.subdomain_host = f"http://hub.localhost:{port}"
c.GpuSite.quotas = [{"session_hours": 2, "extend_hours": 1}]
