"""A spawner without hub and engine: Docker says what the test wants."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from gpuspawner.hub.spawner import GpuDockerSpawner
from jupyterhub import orm
from traitlets.config import Config

LABELS = {
    "gpuspawner.hub": "hub",
    "gpuspawner.user": "Ada",
    "gpuspawner.server": "",
    "gpuspawner.lease": "a1",
}


class Spawner(GpuDockerSpawner):
    """Docker's answers come from `answers`: a value, or an error to raise, for each method in turn."""

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(method)
        planned = self.answers[method]
        answer = planned.pop(0) if len(planned) > 1 else planned[0]
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def make_spawner(config: Config | None = None, name: str = "", **answers: list[Any]) -> Spawner:
    user = SimpleNamespace(
        name="Ada", url="/user/ada/", escaped_name="Ada", groups=[SimpleNamespace(name="ml")]
    )
    hub = SimpleNamespace(base_url="/hub/", public_host="", api_url="http://10.213.0.1:8002/hub/api")
    spawner = Spawner(config=config or Config(), user=user, hub=hub, api_token="s3cret")
    spawner.answers = answers
    spawner.calls = []
    if name:
        spawner.orm_spawner = orm.Spawner(name=name)
    return spawner


def make_container(running: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "Id": "c1",
        "Config": {"Labels": LABELS},
        "State": {"Running": running, "ExitCode": 137, "OOMKilled": False, "Error": ""},
        "NetworkSettings": {"Networks": {"gpuspawner": {"IPAddress": "10.213.0.9"}}},
        **changes,
    }
