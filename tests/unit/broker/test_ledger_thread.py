"""The ledger's thread: calls in order, and an end to every wait."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from gpuspawner.broker.ledger import thread as module
from gpuspawner.broker.ledger.thread import LedgerThread
from gpuspawner.core.errors import LedgerFault


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(module, "BREAK_SECONDS", 0.2)


async def test_calls_come_in_order_and_give_what_they_give() -> None:
    thread, seen = LedgerThread(lambda: None), []

    def call(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        if number == 2:
            raise ValueError("two")
        return number

    answers = await asyncio.gather(
        *(thread.run(lambda number=number: call(number)) for number in range(4)), return_exceptions=True
    )
    assert [answers[0], answers[1], answers[3]] == [0, 1, 3]
    assert isinstance(answers[2], ValueError)
    assert seen == [(number, "ledger-1") for number in range(4)]
    await thread.close(lambda: None)


async def test_a_call_without_an_answer_is_broken_off() -> None:
    broken = threading.Event()
    thread = LedgerThread(broken.set)

    def call() -> None:
        assert broken.wait(20)
        raise ConnectionError("broken off")

    with pytest.raises(ConnectionError, match="broken off"):
        await thread.run(call)
    assert await thread.run(lambda: "goes on") == "goes on"
    await thread.close(lambda: None)


async def test_one_that_cannot_be_broken_off_is_left_alone_and_what_waits_never_begins() -> None:
    goes_on, began = threading.Event(), []
    thread = LedgerThread(lambda: None)
    calls = [thread.run(lambda: goes_on.wait(20)), thread.run(lambda: began.append("late"))]
    faults = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(fault) for fault in faults] == [
        "The ledger does not answer: see its disk, or its database server and the network to it."
    ] * 2
    assert all(isinstance(fault, LedgerFault) for fault in faults)
    goes_on.set()
    assert await thread.run(lambda: "again") == "again"
    assert began == []
    await thread.close(lambda: None)
    with pytest.raises(LedgerFault, match="The ledger is closed"):
        await thread.run(lambda: None)


async def test_a_database_that_answers_is_not_broken_off() -> None:
    """A long call, as a migration, that goes on from statement to statement."""
    thread = LedgerThread(lambda: pytest.fail("broken off"))

    def call() -> str:
        for _ in range(10):
            threading.Event().wait(0.1)
            thread.heard()
        return "done"

    assert await thread.run(call) == "done"
    await thread.close(lambda: None)


def test_a_hanging_database_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import asyncio, threading\n"
        "from gpuspawner.broker.ledger import thread\n"
        "thread.ANSWER_SECONDS = thread.BREAK_SECONDS = 0.1\n"
        "async def main():\n"
        "    mine = thread.LedgerThread(lambda: None)\n"
        "    try:\n"
        "        await mine.run(lambda: threading.Event().wait(60))\n"
        "    except Exception as fault:\n"
        "        print(type(fault).__name__)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=30, check=False, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "LedgerFault\n", "")


async def test_the_last_call_comes_even_if_the_one_before_it_hangs() -> None:
    goes_on, seen = threading.Event(), threading.Event()
    thread = LedgerThread(lambda: None)
    hanging = asyncio.create_task(thread.run(lambda: goes_on.wait(20)))
    await asyncio.sleep(0)
    await thread.close(seen.set)
    assert not seen.is_set()
    with pytest.raises(LedgerFault):
        await hanging
    goes_on.set()
    assert await asyncio.to_thread(seen.wait, 20)
