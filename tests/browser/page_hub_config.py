"""A real hub under a base URL of its own, whose GPU service shows a status that the test writes."""

import os
import sys
from pathlib import Path

from gpuspawner import GPU_SCOPES

c = get_config()  # noqa: F821

port = int(os.environ["PAGE_HUB_PORT"])
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}/faculty/"
c.JupyterHub.hub_port = port + 1
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"
if "GPUSPAWNER_PROXY" in os.environ:
    c.ConfigurableHTTPProxy.command = os.environ["GPUSPAWNER_PROXY"].split()
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.custom_scopes = GPU_SCOPES
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", "access:services!service=gpu"]},
    {"name": "gpu-reader", "scopes": ["custom:gpu:read"], "users": ["admin"]},
]
c.JupyterHub.services = [
    {
        "name": "gpu",
        "url": f"http://127.0.0.1:{port + 3}",
        "command": [sys.executable, str(Path(__file__).with_name("page_service.py"))],
        "environment": {"PAGE_STATUS": os.environ["PAGE_STATUS"]},
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": ["custom:gpu:read", "delete:servers", "admin-ui"],
    }
]
