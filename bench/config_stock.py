"""Stock DockerSpawner, as its documentation sets it up: the other half of every pair."""

import os

from dockerspawner import DockerSpawner

c = get_config()  # noqa: F821

c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['GPUSPAWNER_PORT']}"
c.JupyterHub.hub_bind_url = f"http://0.0.0.0:{int(os.environ['GPUSPAWNER_PORT']) + 1}"
c.JupyterHub.hub_connect_ip = os.environ["BENCH_GATEWAY"]  # the host, as containers see it
c.JupyterHub.hub_connect_ip = "172.17.0.1"  # Docker's default bridge: labs can't resolve the host's name
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{int(os.environ['GPUSPAWNER_PORT']) + 2}"
c.JupyterHub.db_url = f"sqlite:///{os.environ['GPUSPAWNER_STATE_DIR']}/jupyterhub.sqlite"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.spawner_class = DockerSpawner
c.DockerSpawner.image = os.environ["BENCH_IMAGE"]
c.DockerSpawner.cmd = os.environ["BENCH_STOCK_COMMAND"].split()
c.DockerSpawner.remove = True
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.prefix = "bench-stock"
c.DockerSpawner.start_timeout = 300
c.DockerSpawner.http_timeout = 300

c.JupyterHub.services = [{"name": "bench", "api_token": os.environ["BENCH_TOKEN"]}]
c.JupyterHub.load_roles = [
    {"name": "bench", "services": ["bench"], "scopes": ["admin:users", "admin:servers"]}
]
