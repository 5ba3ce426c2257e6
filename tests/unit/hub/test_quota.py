"""The hub asks for a user's quota: for the spawn page and before each start, by form, REST and link alike."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from gpuspawner.core.errors import BrokerUnavailable, QuotaDevices
from gpuspawner.core.model import Tier
from gpuspawner.core.want import Want
from gpuspawner.hub import quota
from gpuspawner.protocol.rules import WhoAsks
from jupyterhub.spawner import SpawnException

from tests.unit.fake_spawner import make_allowance, make_spawner

GPU = Tier("gpu", "One GPU", want=Want(1))
CPU = Tier("cpu", "CPU")
SENTENCE = "You hold 1 of 1 GPU in server 'train': stop it, or choose CPU."
WHO = WhoAsks(hub="hub", user="ada", server="x", groups=("ml",), properties={"ml": {"devices": 1}})


class FakeBroker:
    """Answers with these refusals, or raises."""

    def __init__(self, problem: Exception | None = None, **refused: tuple[str, str]) -> None:
        self.asked: list[WhoAsks] = []
        self._problem, self._refused = problem, refused

    async def tiers(self) -> dict[str, Any]:
        return {"simulated": False, "driver": None, "tiers": [{"name": "gpu", "free": 2, "total": 2}]}

    async def ask(self, path: str, kind: Any, body: WhoAsks) -> Any:
        assert path == "/allowance"
        self.asked.append(body)
        if self._problem is not None:
            raise self._problem
        return make_allowance(**self._refused)


def test_of_a_group_s_properties_only_limits_are_told() -> None:
    groups = [
        SimpleNamespace(name="ml", properties={"devices": 1, "color": "red"}),
        SimpleNamespace(name="a", properties=None),
    ]
    assert quota.who_asks("hub", "ada", "x", groups) == WhoAsks(
        hub="hub", user="ada", server="x", groups=("a", "ml"), properties={"a": {}, "ml": {"devices": 1}}
    )


def test_a_group_that_no_message_can_name_stops_nobody() -> None:
    groups = [SimpleNamespace(name=name, properties={"devices": 1}) for name in ("ml\u200d", "ml", "x" * 256)]
    assert quota.who_asks("hub", "ada", "x", groups) == WHO


async def test_such_a_group_is_no_part_of_a_start_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spawner = make_spawner()
    spawner.user.groups.append(SimpleNamespace(name="\u202egnol", properties={}))
    with caplog.at_level("WARNING"):
        assert spawner._make_request(GPU).groups == ("ml",)
    assert "The hub's group '\\u202egnol' counts for nothing" in caplog.text


async def test_a_start_is_refused_before_anything_is_begun() -> None:
    broker: Any = FakeBroker(gpu=("quota_devices", SENTENCE))
    with pytest.raises(QuotaDevices, match="You hold 1 of 1 GPU"):
        await quota.check(broker, WHO, GPU)
    await quota.check(broker, WHO, CPU)
    assert broker.asked == [WHO, WHO]


async def test_without_a_broker_a_server_without_a_gpu_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    down: Any = FakeBroker(BrokerUnavailable("It is away."))
    await quota.check(down, WHO, CPU)
    await quota.check(down, WHO, GPU)  # the request of the lease waits for the broker, and asks again
    monkeypatch.setattr(quota, "ASK_SECONDS", 0.01)

    class Silent:
        async def ask(self, *_: Any) -> Any:
            await asyncio.sleep(60)

    hangs: Any = Silent()
    await quota.check(hangs, WHO, GPU)


@pytest.mark.parametrize("options", [{"profile": "gpu"}, {"profile": ["gpu"]}])
async def test_the_refusal_is_a_spawn_exception_with_a_reason_by_every_way(options: dict[str, Any]) -> None:
    """By the form and by a link, whose values are lists, and by REST."""
    spawner = make_spawner()
    broker = FakeBroker(gpu=("quota_devices", SENTENCE))
    spawner.shared = replace(spawner.shared, broker=broker)
    raw = spawner.options_from_query(options) if isinstance(options["profile"], list) else options
    spawner.user_options = raw
    with pytest.raises(SpawnException) as caught:
        await spawner.start()
    assert (caught.value.reason, caught.value.status_code, caught.value.message) == (
        "quota_devices", 403, SENTENCE,
    )  # fmt: skip
    assert broker.asked == [WhoAsks(hub="hub", user="Ada", server="", groups=("ml",), properties={"ml": {}})]
