"""A spawner without hub and engine: Docker says what the test wants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gpuspawner.core.model import Guarantee, Mode
from gpuspawner.hub.spawner import GpuDockerSpawner
from gpuspawner.protocol.messages import RefusalMessage, TierDocument, TiersDocument
from gpuspawner.protocol.rules import AllowanceDocument, OfferDocument, TierOffer
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
        name="Ada", url="/user/ada/", escaped_name="Ada", groups=[SimpleNamespace(name="ml", properties={})],
        orm_spawners={},
    )  # fmt: skip
    hub = SimpleNamespace(base_url="/hub/", public_host="", api_url="http://10.213.0.1:8002/hub/api")
    spawner = GpuDockerSpawner(config=config or Config(), user=user, hub=hub, api_token="s3cret")
    spawner.shared = make_shared(ScriptedDocker({"info": [{}], **answers}))
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


def make_offer(tier: str = "gpu", **changes: Any) -> TierOffer:
    """What the broker says of a tier that everybody may have, with two free places."""
    values: dict[str, Any] = {
        "refused": None, "allowed_at": None, "free": 2, "total": 2, "waiting": 0, "starts_now": True,
        "wait": None, "kept": (), "own_session": None, "session_seconds": None, "ends_at": None,
        "ends_message": "", "gpu_hours_an_hour": None,
    }  # fmt: skip
    return TierOffer(tier=tier, **{**values, **changes})


class OfferingBroker:
    """A broker with two simulated GPUs for the tier "gpu"; `offers` replaces what it says of tiers."""

    def __init__(self, *offers: TierOffer) -> None:
        self.offers = offers or (make_offer(),)

    async def ask(self, path: str, kind: Any, body: Any = None) -> Any:
        if path == "/offer":
            return OfferDocument(timezone="UTC", tiers=self.offers, allowance=make_allowance())
        tier = TierDocument(
            name="gpu", title="One GPU", description="", device_count=1, model=None, mode=Mode.WHOLE,
            device_models=("H100",), device_memory_bytes=80 << 30, memory_bytes=80 << 30,
            compute_percent=100.0, guarantee=Guarantee.NONE, compute_guarantee=Guarantee.NONE,
            free=2, total=2,
        )  # fmt: skip
        return TiersDocument(simulated=True, driver=None, tiers=(tier,))


def make_container(running: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "Id": "c1",
        "Config": {"Labels": LABELS},
        "State": {"Running": running, "ExitCode": 137, "OOMKilled": False, "Error": ""},
        "NetworkSettings": {"Networks": {"gpuspawner": {"IPAddress": "10.213.0.9"}}},
        **changes,
    }
