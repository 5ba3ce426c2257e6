"""The hub's places: who counts towards `active_server_limit`, who is refused, who waits and in what order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from gpuspawner.config.lab import active_servers
from gpuspawner.core.errors import HubFull
from gpuspawner.hub import places as module
from gpuspawner.hub.places import Places, count_held, take_over
from traitlets.config import Config


@dataclass
class Spawner:
    """What JupyterHub counts."""

    pending: str | None = None
    ready: bool = False
    has_place: bool = False

    @property
    def active(self) -> bool:
        return bool(self.pending or self.ready)


@dataclass
class User:
    spawners: dict[str, object] = field(default_factory=dict)


def test_who_waits_for_a_gpu_holds_no_place_and_everybody_else_does() -> None:
    of_ours = {
        "runs": Spawner(ready=True),
        "starts": Spawner(pending="spawn", has_place=True),
        "waits": Spawner(pending="spawn"),
        "stops": Spawner(pending="stop"),
        "is looked at after a restart of the hub": Spawner(pending="check"),
        "stopped": Spawner(has_place=True),
    }
    of_others = {"starts": SimpleNamespace(pending="spawn", active=True)}
    assert count_held([User(dict(of_ours)), User(dict(of_others)), User()]) == 5


@pytest.mark.parametrize(("limit", "held"), [(0, 1000), (2, 1)])
def test_a_free_place_is_taken(limit: int, held: int) -> None:
    Places().take(limit, lambda: held)


def test_a_full_hub_says_so() -> None:
    with pytest.raises(HubFull) as refused:
        Places().take(2, lambda: 2)
    assert str(refused.value) == (
        "This hub runs at most 2 servers at a time, and all of these run. Try again when somebody has "
        "stopped a server."
    )


async def test_those_with_a_gpu_wait_in_their_order_and_go_before_starts_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    places, held, seen = Places(), [2], list[str]()

    async def wait(name: str) -> None:
        await places.wait(2, lambda: held[0], lambda: seen.append(f"{name} waits"))
        held[0] += 1
        seen.append(name)

    first, second = asyncio.create_task(wait("first")), asyncio.create_task(wait("second"))
    await asyncio.sleep(0.01)
    assert seen == ["first waits", "second waits"]
    held[0] = 1
    with pytest.raises(HubFull):
        places.take(2, lambda: held[0])
    await first
    assert seen[2:] == ["first"]
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    held[0] = 1
    places.take(2, lambda: held[0])
    await wait("third")
    assert seen[3:] == ["third"]


async def test_without_a_limit_nobody_waits() -> None:
    await Places().wait(0, lambda: 1000, lambda: pytest.fail("told to wait"))


@pytest.mark.parametrize(("value", "limit"), [(100, 100), (0, 0), (-1, 0), (None, 0), ("100", 0)])
def test_the_limit_is_the_hub_s_own_setting(value: object, limit: int) -> None:
    assert active_servers(Config({"JupyterHub": {"active_server_limit": value}})) == limit
    assert active_servers(Config()) == 0


def test_jupyterhub_s_own_check_is_taken_over() -> None:
    app = SimpleNamespace(active_server_limit=100)
    take_over(app)
    assert app.active_server_limit == 0
