"""Settings of hub and broker, in the order in which a click passes them. Nothing happens here but settings.

The broker reads this file too. What differs between installations comes from the environment:

    GPUSPAWNER_PORT             where the hub is reached, on 127.0.0.1 (default 8000; the next three ports
                                are used inside: proxy API, hub, GPU page)
    GPUSPAWNER_STATE_DIR        database, keys, socket (default /var/lib/gpuspawner)
    GPUSPAWNER_PASSWORD         one password for all users, 8 characters or more
    GPUSPAWNER_ADMIN_PASSWORD   the password of `admin`, 32 characters or more
    GPUSPAWNER_IMAGE            what labs run (default: the `default` of images/images.toml)
    GPUSPAWNER_SIMULATED        the simulated GPUs where there are none, "2 x H100 80GB"
    GPUSPAWNER_NAME             name of this hub's network, containers and volumes (default gpuspawner)
    GPUSPAWNER_SUBNET           addresses of the labs' network (default 10.213.0.0/20)
    GPUSPAWNER_ENGINE           "swarm" for several machines (default docker: this one alone)
    GPUSPAWNER_PROXY            command of configurable-http-proxy, if it isn't on the PATH
    GPUSPAWNER_CONFIG           your own file, which loads this one, for hub and broker (default: this file)
"""

import os
import sys
import tomllib
from pathlib import Path

from gpuspawner import GPU_SCOPES, HUB_TEMPLATES, check_settings
from gpuspawner.hub.network import gateway_of

c = get_config()  # noqa: F821  (JupyterHub and the broker define it)

port = int(os.environ.get("GPUSPAWNER_PORT", "8000"))
state_dir = Path(os.environ.get("GPUSPAWNER_STATE_DIR", "/var/lib/gpuspawner"))
name = os.environ.get("GPUSPAWNER_NAME", "gpuspawner")
subnet = os.environ.get("GPUSPAWNER_SUBNET", "10.213.0.0/20")
config_file = os.environ.get("GPUSPAWNER_CONFIG", str(Path(__file__).resolve()))

# 1. The browser arrives at the proxy: on this machine only. Put a TLS proxy in front to open it.
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 1}"
c.ConfigurableHTTPProxy.command = os.environ.get("GPUSPAWNER_PROXY", "configurable-http-proxy").split()
c.ConfigurableHTTPProxy.pid_file = str(state_dir / "proxy.pid")

# 2. The proxy passes it to the hub. The hub listens on the host's address in the labs' own network, so
#    that labs reach it and nobody outside does. `make hub` creates that network before the hub starts; the
#    service `network` below creates it again if somebody removes it.
c.JupyterHub.hub_ip = gateway_of(subnet)
c.JupyterHub.hub_port = port + 2

# 3. Who are you? One shared password for everybody: for a course on one machine, not for strangers.
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = os.environ.get("GPUSPAWNER_PASSWORD", "")
c.SharedPasswordAuthenticator.admin_password = os.environ.get("GPUSPAWNER_ADMIN_PASSWORD", "")
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}

# 4. What may they see and change? Their own GPU with the usual role; more with three scopes of our own. Each
#    can be given for one group: "custom:gpu:read!group=cs231n".
c.JupyterHub.custom_scopes = GPU_SCOPES
c.JupyterHub.load_roles = [
    {
        "name": "gpu-admin",
        "description": "Sees all GPUs, leases and the queue; changes quotas and lab sessions",
        "users": ["admin"],
        "scopes": ["custom:gpu:admin", "access:services!service=gpu"],
    },
    {
        "name": "gpu-broker",
        "description": "Starts the servers of a lab session before it begins; shows classes who has a server",
        "services": ["gpu"],
        "scopes": ["read:groups", "start:servers", "list:users", "read:servers"],
    },
    {
        "name": "user",  # the hub's own role for everybody, with the GPU page added
        "scopes": ["self", "access:services!service=gpu"],
    },
]

# 5. What can they pick? The tiers are the defaults of GpuSite: `cpu`, and `gpu` for one whole device.
c.GpuSite.state_dir = str(state_dir)
c.GpuSite.engine = os.environ.get("GPUSPAWNER_ENGINE", "docker")
if "GPUSPAWNER_SIMULATED" in os.environ:
    c.GpuSite.simulated_devices = os.environ["GPUSPAWNER_SIMULATED"]

# 6. The broker hands out the GPUs: a process of its own, which the hub starts, with a keeper that starts
#    it again if it is killed. It has the GPU page too.
#    The second one keeps the labs' network, the third pulls what images are missing, in the background,
#    and then sleeps.
environment = {  # what this file and Docker's client read, without the passwords
    key: value
    for key, value in os.environ.items()
    if key == "HOME" or (key.startswith(("GPUSPAWNER_", "DOCKER_")) and not key.endswith("PASSWORD"))
}
c.JupyterHub.services = [
    {
        "name": "gpu",
        "display": True,
        "url": f"http://127.0.0.1:{port + 3}",
        "command": [sys.executable, "-m", "gpuspawner.broker.keeper", "--config", config_file, "--take-over"],
        "environment": environment,
        # What the GPU page may do for the user who is logged in, as far as that user may do it: its buttons
        # stop and start servers, and it says which run without a GPU. `admin-ui` is only the menu's entry.
        "oauth_client_allowed_scopes": [
            "custom:gpu:admin",
            "delete:servers",
            "start:servers",
            "read:servers",
            "admin-ui",
        ],
        "oauth_no_confirm": True,
    },
    {
        "name": "network",
        "display": False,
        "command": [sys.executable, "-m", "gpuspawner.tools.keep_network", "--config", config_file],
        "environment": environment,
    },
    {
        "name": "images",
        "display": False,
        "command": [sys.executable, "-m", "gpuspawner.tools.prepull", "--config", config_file, "--stay"],
        "environment": environment,
    },
]

# 7. The server starts in a container of its own. A user may have several, each with a name.
c.JupyterHub.spawner_class = "gpu-docker"
c.JupyterHub.allow_named_servers = True
if "GPUSPAWNER_IMAGE" in os.environ:
    c.GpuDockerSpawner.image = os.environ["GPUSPAWNER_IMAGE"]
else:
    images = tomllib.loads((Path(__file__).parent / "images" / "images.toml").read_text())
    c.GpuDockerSpawner.image = f"gpuspawner/{images['default']}:{images['tag']}"
c.GpuDockerSpawner.hub_id = name
c.GpuDockerSpawner.prefix = name
c.GpuDockerSpawner.network_name = name
c.GpuDockerSpawner.subnet = subnet
# Who waits for a GPU counts as a pending spawn: a limit here would turn away those behind them.
c.JupyterHub.concurrent_spawn_limit = 0

# The page of a server that waits is ours: its Stop button stops that server. Put your own paths before it.
c.JupyterHub.template_paths = [HUB_TEMPLATES]

# 8. What outlives a restart. Running servers do: neither a stop nor a crash of the hub ends them.
c.JupyterHub.cleanup_servers = False
c.JupyterHub.db_url = f"sqlite:///{state_dir / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(state_dir / "cookie_secret")
c.JupyterHub.pid_file = str(state_dir / "hub.pid")

# 9. A setting that can't be used keeps the hub from starting, with a sentence that says what to do.
check_settings(c)
