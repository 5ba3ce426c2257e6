"""The hook of jupyterhub-idle-culler: it ends neither a waiting start nor what is busy, nor on a guess."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gpuspawner.core.model import LeaseState
from gpuspawner.hub.culling import CullArbiter, decide, make_cull_arbiter, owner_of
from gpuspawner.protocol.messages import document
from gpuspawner.protocol.rules import ServerDocument, ServersDocument

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SERVER = {"name": "train", "full_name": "ada/train", "pending": None}


def found(state: LeaseState, idle_since: datetime | None, server: str = "train") -> ServersDocument:
    lease = ServerDocument(hub="hub", user="ada", server=server, state=state, idle_since=idle_since)
    return ServersDocument(servers=(lease,))


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (found(LeaseState.RUNNING, NOW - HOUR), True),
        (found(LeaseState.RUNNING, NOW - HOUR / 2), False),
        (found(LeaseState.RUNNING, None), False),
        (found(LeaseState.WAITING, None), False),
        (found(LeaseState.RESERVED, NOW - HOUR), False),
        (found(LeaseState.ASLEEP, NOW - HOUR), True),
        (found(LeaseState.RUNNING, None, "other"), True),  # this one has no GPU
    ],
)
def test_what_the_broker_says_decides(answer: ServersDocument, ends: bool) -> None:
    assert decide(answer, ("hub", "ada", "train"), 3600.0, NOW) is ends


def test_whose_server_it_is() -> None:
    assert owner_of(SERVER) == ("ada", "train")
    assert owner_of({"name": "", "full_name": "a/b/"}) == ("a/b", "")
    assert owner_of({"name": "train"}) is None


@pytest.fixture
async def arbiter(tmp_path: Path) -> AsyncIterator[CullArbiter]:
    """The hook beside a broker that has one idle server."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(document(found(LeaseState.RUNNING, datetime.now(UTC) - 2 * HOUR)))

    app = web.Application()
    app.router.add_get("/servers", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "b.sock")).start()
    yield make_cull_arbiter(str(tmp_path / "b.sock"))
    await runner.cleanup()


async def test_the_hook_asks_the_broker(arbiter: CullArbiter) -> None:
    async def ends(inactive: timedelta | None = 2 * HOUR, **server: Any) -> bool:
        return await arbiter(inactive=inactive, inactive_limit=3600, server={**SERVER, **server})

    assert await ends()
    assert not await ends(HOUR / 2)
    assert not await ends(None)
    assert not await ends(pending="spawn")
    assert not await ends(full_name=None)


async def test_without_the_broker_nothing_is_ended(tmp_path: Path) -> None:
    hook = make_cull_arbiter(str(tmp_path / "none.sock"))
    assert not await hook(inactive=2 * HOUR, inactive_limit=3600, server=SERVER)
