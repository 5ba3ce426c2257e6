"""A real hub under a base URL of its own, with a class, its instructor and an admin (stage_service.py)."""

import os
import sys
from pathlib import Path

from gpuspawner import GPU_SCOPES, HUB_TEMPLATES

c = get_config()  # noqa: F821

ROOT = Path(__file__).resolve().parents[2]
port = int(os.environ["PAGE_HUB_PORT"])
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}/jupyter/"
c.JupyterHub.hub_port = port + 1
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"
if "GPUSPAWNER_PROXY" in os.environ:
    c.ConfigurableHTTPProxy.command = os.environ["GPUSPAWNER_PROXY"].split()
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}
sys.path.insert(0, str(ROOT))
c.JupyterHub.spawner_class = "tests.browser.quick_spawner.QuickSpawner"
c.JupyterHub.template_paths = [HUB_TEMPLATES]
c.JupyterHub.custom_scopes = GPU_SCOPES
c.JupyterHub.load_groups = {
    "cs231n": {"users": [f"student{number:02}" for number in range(1, 25)]},
    "ml": {"users": ["researcher"]},
    "staff": {"users": ["ines"]},
}
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", "access:services!service=gpu"]},
    {"name": "gpu-admin", "scopes": ["custom:gpu:admin"], "users": ["admin"]},
    {
        "name": "instructor",
        "scopes": ["custom:gpu:reserve!group=cs231n", "delete:servers!group=cs231n"],
        "groups": ["staff"],
    },
    {"name": "gpu-broker", "scopes": ["read:groups", "list:users", "read:servers"], "services": ["gpu"]},
]
c.JupyterHub.services = [
    {
        "name": "gpu",
        "url": f"http://127.0.0.1:{port + 3}",
        "command": [sys.executable, "-m", "tests.browser.stage_service"],
        "cwd": str(ROOT),
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": ["custom:gpu:admin", "delete:servers", "admin-ui"],
    }
]
