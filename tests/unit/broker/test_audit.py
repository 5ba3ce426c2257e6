"""The audit log: what was asked and what became of it, repeated requests, and a ledger that fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.leases.audit import Answer, Asked, Audit
from gpuspawner.broker.ledger import Ledger, Result, Search, Write
from gpuspawner.core.errors import HubFault, LedgerFault, NotAllowed, RequestConflict

ASKED = Asked(
    "noether", "api", "change quota", "group:cs231n", ("cs231n",), {"values": {"devices": 2}}, "exam week"
)
NAMED = replace(ASKED, request_id="request-1")


class Work:
    """What is done for a write; counts how often."""

    def __init__(self, raising: Exception | None = None) -> None:
        self.raising, self.count = raising, 0

    async def __call__(self) -> Answer:
        self.count += 1
        if self.raising is not None:
            raise self.raising
        return Answer(200, '{"seconds": 5}', "Extended by 5 seconds.")


async def log_of(ledger: Ledger, **search: Any) -> list[Write]:
    return [write for _, write in await ledger.audited(Search(**search))]


async def test_what_was_done(ledger: Ledger, times: Any) -> None:
    audit, results = Audit(ledger, clock=times.now), list[Result]()
    audit.on_end = results.append
    answer = await audit.write(ASKED, Work())
    (write,) = await log_of(ledger)
    assert answer == Answer(200, '{"seconds": 5}', "Extended by 5 seconds.", write.id)
    assert write == Write(
        id=write.id, at=times.wall, author="noether", via="api", action="change quota",
        subject="group:cs231n", groups=("cs231n",), document={"values": {"devices": 2}}, reason="exam week",
        result=Result.DONE, message="Extended by 5 seconds.", ended_at=times.wall, status=200,
        answer='{"seconds": 5}',
    )  # fmt: skip
    assert await ledger.audited_write(write.id) == write
    assert results == [Result.DONE]
    assert await ledger.audited_write("other") is None


@pytest.mark.parametrize(
    ("error", "result"),
    [(NotAllowed("Save your work."), Result.REFUSED), (HubFault("The hub is silent."), Result.FAILED)],
)
async def test_what_was_refused_or_failed(ledger: Ledger, error: Exception, result: Result) -> None:
    audit, results = Audit(ledger), list[Result]()
    audit.on_end = results.append
    with pytest.raises(type(error)):
        await audit.write(ASKED, Work(error))
    assert results == [result]
    assert [(each.result, each.message) for each in await log_of(ledger)] == [(result, str(error))]


async def test_a_repeated_request_changes_nothing_and_gets_the_same_answer(ledger: Ledger) -> None:
    work = Work()
    first = await Audit(ledger).write(NAMED, work)
    assert await Audit(ledger).write(NAMED, work) == first  # also after a restart of the broker
    assert (work.count, len(await log_of(ledger))) == (1, 1)
    assert (await Audit(ledger).write(replace(NAMED, author="ines"), work)).status == 200
    assert work.count == 2


async def test_an_id_is_for_one_request(ledger: Ledger) -> None:
    work = Work()
    await Audit(ledger).write(NAMED, work)
    for other in (
        replace(NAMED, subject="group:ml"),
        replace(NAMED, document={"values": {"devices": 3}}),
        replace(NAMED, action="grant GPU-hours"),
    ):
        with pytest.raises(RequestConflict, match="belongs to another request"):
            await Audit(ledger).write(other, work)
    assert work.count == 1


async def test_the_same_request_at_the_same_time(ledger: Ledger) -> None:
    audit, work, goes_on = Audit(ledger), Work(), asyncio.Event()

    async def slow() -> Answer:
        await goes_on.wait()
        return await work()

    first = asyncio.create_task(audit.write(NAMED, slow))
    while not await log_of(ledger):
        await asyncio.sleep(0.01)
    with pytest.raises(RequestConflict, match="is being carried out"):
        await audit.write(NAMED, slow)
    goes_on.set()
    assert (await first).status == 200
    assert work.count == 1


async def test_what_was_refused_may_be_tried_again(ledger: Ledger) -> None:
    audit = Audit(ledger)
    with pytest.raises(NotAllowed):
        await audit.write(NAMED, Work(NotAllowed("Others wait.")))
    assert (await audit.write(NAMED, Work())).status == 200


async def test_a_broker_that_ended_in_the_middle_leaves_a_question(ledger: Ledger) -> None:
    begun = asyncio.Event()

    async def never() -> Answer:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(Audit(ledger).write(NAMED, never))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    work = Work()
    with pytest.raises(RequestConflict, match="It isn't known whether"):
        await Audit(ledger).write(NAMED, work)
    assert work.count == 0
    assert [each.result for each in await log_of(ledger)] == [Result.BEGUN]


async def test_what_can_t_be_recorded_is_not_done(path: Path, times: Any, faulty_ledger: Any) -> None:
    ledger = times.make_ledger(path, faulty_ledger)
    await ledger.open()
    work = Work()
    ledger.fault = "before"
    with pytest.raises(LedgerFault):
        await Audit(ledger).write(ASKED, work)
    assert (work.count, await log_of(ledger)) == (0, [])
    await ledger.close()


async def test_a_result_that_can_t_be_recorded_is_logged(
    path: Path, times: Any, faulty_ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = times.make_ledger(path, faulty_ledger)
    await ledger.open()

    async def work() -> Answer:
        ledger.fault = "before"
        return Answer()

    assert (await Audit(ledger).write(ASKED, work)).status == 204
    (write,) = await log_of(ledger)
    assert (write.result, caplog.messages[-1]) == (
        Result.BEGUN,
        f"The result of write {write.id} could not be recorded: the disk is full",
    )
    await ledger.close()


async def test_search(ledger: Ledger) -> None:
    audit = Audit(ledger)
    odd = 'o"d%_d'
    for author, groups in (
        ("noether", ("cs231n",)),
        ("ines", ("cs231", odd)),
        ("noether", ()),
        ("ines", ("CS231N",)),
    ):
        await audit.write(replace(ASKED, author=author, subject=f"of {groups}", groups=groups), Work())

    async def found(**search: Any) -> list[int]:
        return [number for number, _ in await ledger.audited(Search(**search))]

    fourth, third, second, first = await found()
    assert fourth > third > second > first
    assert await found(most=2) == [fourth, third]
    assert await found(most=2, before=third) == [second, first]
    assert await found(author="ines") == [fourth, second]
    assert await found(action="stop") == []
    assert await found(groups=["cs231n"]) == [first]
    assert await found(groups=[odd]) == [second]
    assert await found(groups=["cs231", "CS231N"]) == [fourth, second]
    assert await found(groups=[]) == []
