"""Starts brokers and stand-ins for hubs quickly: a process that has imported everything, and forks.

Reads one JSON object a line and answers with the child's pid. A child is a whole process, to be
killed by its pid; its output goes to a file. Product code has no crash hooks: what is to die at a
commit is patched here, and so are the stand-ins for NVIDIA's libraries.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import traceback
from functools import partial
from typing import Any

import aiohttp  # noqa: F401 - a broker imports this and `serving` only when it runs: each child would
import gpuspawner.broker.assembly.serving  # noqa: F401
from gpuspawner.broker import app
from gpuspawner.broker.decide.when import deadline
from gpuspawner.broker.leases import endings, quota_ends
from gpuspawner.broker.ledger.ledger import Change, Ledger
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.node import turning
from gpuspawner.node.checkpoint.client import HelperDriver
from gpuspawner.node.injection import Access, Injection
from gpuspawner.node.local import LocalNode

from tests.docker import life
from tests.nvml import scripted


class BudgetMoments:
    """The commits of a budget's end in turns, by name: which one a change is, as far as this process saw."""

    def __init__(self) -> None:
        self._kept: set[str] = set()
        self._freed: set[str] = set()

    def of(self, change: Change) -> set[str]:
        """The names of what the change writes."""
        return set().union(*(self._of(lease) for lease in change.leases))

    def _of(self, lease: Lease) -> set[str]:
        found = {"warned"} if lease.notice.startswith("This server is put to sleep") else set()
        if lease.kept_asleep:
            self._kept.add(lease.id)
            found |= {"kept"} | ({"asleep"} if lease.state is LeaseState.ASLEEP else set())
        elif lease.id in self._kept:
            self._freed.add(lease.id)
        if lease.id in self._freed:
            found |= {"freed"} | ({"woken"} if lease.state is LeaseState.RUNNING else set())
        return found


def die_at_commit(which: int | str, when: str) -> None:
    """This process kills itself before or after its commit with this number (from 1), or of this moment."""
    commit, count, moments = Ledger.commit, 0, BudgetMoments()

    def counted(self: Ledger, change: Change) -> int:
        nonlocal count
        if not any((change.leases, change.decided, change.end_warnings, change.withdrawn)):  # a heartbeat
            return commit(self, change)
        count += 1
        dies = which in (count, *moments.of(change))
        if dies and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        pruned = commit(self, change)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return pruned

    Ledger.commit = counted  # type: ignore[method-assign]


def end_soon(first_seconds: float, second_seconds: float) -> None:
    """Servers are warned so long before their end (not 15 and 5 minutes); a round each quarter second."""
    deadline.WARNINGS_SECONDS = quota_ends.WARNINGS_SECONDS = first_seconds, second_seconds
    deadline.LEAST_NOTICE_SECONDS = second_seconds
    endings.ROUND_SECONDS = endings.GATHER_SECONDS = 0.25


def use_scripted_gpus(script: str) -> None:
    """NVML is the scripted one, the CUDA driver the stand-in, and nothing is injected into containers."""
    import pynvml

    async def way_in(*_: object) -> Access:
        return Access(Injection.NONE)

    os.environ[scripted.ENVIRONMENT] = script
    pynvml.nvmlLib = ctypes.CDLL(str(scripted.build()))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    LocalNode.way_in = way_in  # type: ignore[method-assign,assignment]
    helper = (sys.executable, "-m", "tests.checkpoint.standin")
    turning.HelperDriver = partial(HelperDriver, command=helper)  # type: ignore[misc,assignment]


def run_child(order: dict[str, Any]) -> int:
    """What a child does: `broker` or `hub`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(order.get("env", {}))
    with open(order["log"], "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if order["kind"] == "broker":
        if order.get("commit"):
            die_at_commit(*order["commit"])
        if order.get("warnings"):
            end_soon(*order["warnings"])
        if order.get("nvml"):
            use_scripted_gpus(order["nvml"])
        return app.main(order["argv"])
    asyncio.run(life.main(order["hub"]))
    return 0


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run_child(json.loads(line))
            except BaseException:  # the child's last words
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
