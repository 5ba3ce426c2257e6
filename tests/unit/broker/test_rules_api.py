"""The socket's answers about one user and one server; what is typed is in `tools/test_rules_cli.py`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.errors import BadOption, NotAllowed, Refusal
from gpuspawner.core.model import GpuRequest, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.messages import Message, RefusalMessage
from gpuspawner.protocol.rules import (
    AllowanceDocument,
    BudgetDocument,
    Extend,
    ExtendedDocument,
    KernelsMessage,
    QuotaChange,
    ServerDocument,
    ServersDocument,
    WhoAsks,
)

from tests.unit.rules_bench import Served

LEASE = f"{1:032x}"
REQUEST = GpuRequest(LEASE, "hub", "ada", "train", "gpu", Want(1), ("students",))


@pytest.fixture
def served(tmp_path: Path, times: Any, database: str) -> Iterator[Served]:
    """On SQLite and on PostgreSQL."""
    times.wall = times.wall.replace(year=2026, month=11, day=26)  # a Thursday
    broker = Served(tmp_path, times, database=database)
    broker.start()
    yield broker
    broker.stop()


def ask(served: Served, path: str, kind: type[Message], body: Message | None = None) -> Any:
    async def run() -> Message:
        client = BrokerClient(served.socket)
        try:
            return await client.ask(path, kind, body)
        finally:
            await client.close()

    return served.do(run())


def tell(served: Served, path: str, body: Message) -> None:
    async def run() -> None:
        client = BrokerClient(served.socket)
        try:
            await client.tell("POST", path, body)
        finally:
            await client.close()

    served.do(run())


def run(served: Served) -> None:
    served.do(served.allocator.acquire(REQUEST))
    served.do(served.allocator.set_running(LEASE, "c"))


def who(server: str | None = None, **properties: Any) -> WhoAsks:
    return WhoAsks(hub="hub", user="ada", server=server, groups=("students",), properties=properties)


def test_what_a_user_may_have_and_has(served: Served, times: Any) -> None:
    run(served)
    times.pass_seconds(5400)
    change = {"gpu_hours": 10, "session_hours": 4, "extend_hours": "unlimited", "leases": "unlimited"}
    tell(served, "/api/quotas", QuotaChange(subject="group:students", values=change, author="noether"))
    expected = AllowanceDocument(
        leases=None, devices=1, slices=None, session_seconds=14400.0, extend_seconds=None, priority=0,
        held_leases=1, held_devices=1, held_slices=0,
        budgets=(
            BudgetDocument(
                limit_gpu_seconds=36000.0, used_gpu_seconds=5400.0, left_gpu_seconds=30600.0, period="week",
                timezone="Europe/Berlin",
                renewed_at=times.now().replace(hour=23, minute=0) + timedelta(days=3),
            ),
        ),
        refused={
            "gpu": RefusalMessage(
                reason="quota_devices",
                message="You hold 1 of 1 GPU in server 'train': stop it, or choose CPU.",
            )
        },
    )  # fmt: skip
    assert ask(served, "/allowance", AllowanceDocument, who()) == expected
    again = ask(served, "/allowance", AllowanceDocument, who("train"))
    assert (again.held_devices, again.refused) == (0, {})  # of the server itself nothing counts


def test_a_group_s_properties_are_taken_over(served: Served) -> None:
    found = ask(served, "/allowance", AllowanceDocument, who(students={"tiers": ["cpu"]}))
    message = "Your quota does not include the tier 'gpu': choose 'cpu'. An admin can change your quota."
    assert found.refused["gpu"] == RefusalMessage(reason="quota_tier", message=message)
    with pytest.raises(Refusal) as caught:
        ask(served, "/allowance", AllowanceDocument, who(students={"tiers": []}))
    assert caught.value.reason == "quota_unreadable"


def test_idle_servers_and_when_they_end(served: Served, times: Any) -> None:
    run(served)
    change = QuotaChange(subject="user:ada", values={"session_hours": 1}, author="noether")
    tell(served, "/api/quotas", change)
    tell(served, f"/leases/{LEASE}/kernels", KernelsMessage(busy=False))
    begun = times.now()
    served.do(served.endings.round())
    times.pass_seconds(60)
    assert ask(served, "/servers", ServersDocument) == ServersDocument(
        servers=(
            ServerDocument(
                hub="hub", user="ada", server="train", state=LeaseState.RUNNING, idle_since=begun,
                ends_at=begun + timedelta(hours=1), ends_because="session_limit",
            ),
        )
    )  # fmt: skip
    tell(served, f"/leases/{LEASE}/kernels", KernelsMessage(busy=True))
    assert ask(served, "/servers", ServersDocument).servers[0].idle_since is None


def test_a_session_is_extended_or_refused_with_the_reason(served: Served) -> None:
    run(served)
    path, body = f"/leases/{LEASE}/extend", Extend(seconds=600, author="ada")
    with pytest.raises(NotAllowed, match="This server has no end"):
        ask(served, path, ExtendedDocument, body)
    change = {"session_hours": 1, "extend_hours": 0.1}
    tell(served, "/api/quotas", QuotaChange(subject="user:ada", values=change, author="noether"))
    assert ask(served, path, ExtendedDocument, body) == ExtendedDocument(seconds=360.0)


def test_what_is_not_well_formed_is_named(served: Served) -> None:
    with pytest.raises(BadOption, match="The request lacks 'subject'"):
        tell(served, "/api/quotas", KernelsMessage(busy=True))
    with pytest.raises(BadOption, match="Nothing was changed"):
        tell(served, "/api/quotas", QuotaChange(subject="everybody", values={}, author="noether"))
