"""A spawner without hub and engine: Docker says what the test wants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gpuspawner.hub.spawner import GpuDockerSpawner
from gpuspawner.protocol.messages import RefusalMessage
from gpuspawner.protocol.rules import AllowanceDocument
from jupyterhub import orm
from traitlets.config import Config

from tests.unit.fake_docker import ScriptedDocker, make_shared

LABELS = {
    "gpuspawner.hub": "hub",
    "gpuspawner.user": "Ada",
    "gpuspawner.server": "",
    "gpuspawner.lease": "a1",
}


def make_spawner(config: Config | None = None, name: str = "", **answers: list[Any]) -> GpuDockerSpawner:
    """A spawner of the user Ada. For Docker's answers see `ScriptedDocker`."""
    user = SimpleNamespace(
        name="Ada", url="/user/ada/", escaped_name="Ada", groups=[SimpleNamespace(name="ml", properties={})]
    )
    hub = SimpleNamespace(base_url="/hub/", public_host="", api_url="http://10.213.0.1:8002/hub/api")
    spawner = GpuDockerSpawner(config=config or Config(), user=user, hub=hub, api_token="s3cret")
    spawner.shared = make_shared(ScriptedDocker(answers))
    if name:
        spawner.orm_spawner = orm.Spawner(name=name)
    return spawner


def make_allowance(**refused: tuple[str, str]) -> AllowanceDocument:
    """What the broker says of a user who may have everything but these tiers: reason and sentence."""
    return AllowanceDocument(
        leases=None, devices=None, slices=None, session_seconds=None, extend_seconds=None, priority=0,
        held_leases=0, held_devices=0, held_slices=0, budgets=(),
        refused={
            tier: RefusalMessage(reason=reason, message=message)
            for tier, (reason, message) in refused.items()
        },
    )  # fmt: skip


def make_container(running: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "Id": "c1",
        "Config": {"Labels": LABELS},
        "State": {"Running": running, "ExitCode": 137, "OOMKilled": False, "Error": ""},
        "NetworkSettings": {"Networks": {"gpuspawner": {"IPAddress": "10.213.0.9"}}},
        **changes,
    }
