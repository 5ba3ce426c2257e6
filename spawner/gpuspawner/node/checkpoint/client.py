"""The helper seen from the broker: started when needed, kept, never killed, started again if it died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import DeviceFault
from .order import HELPER_LOST, SILENT, Answer, Operation, Order

_Log = logging.Logger | logging.LoggerAdapter[Any]
HELPER = (sys.executable, "-m", "gpuspawner.node.checkpoint.helper")
START_SECONDS = 60.0
SECONDS: Mapping[Operation, float] = {
    Operation.STATE: 60.0,  # it waits while the driver continues a call of a killed helper
    Operation.LOCK: 10.0,  # more than its own timeout
    Operation.CHECKPOINT: 600.0,
    Operation.RESTORE: 600.0,
    Operation.UNLOCK: 30.0,
}
"""How long an answer may take. The slowest that was measured: 1.6 GiB/s, so 80 GiB in 50 s."""


class HelperDriver:
    """A `Driver`: its orders are carried out by the helper process. For one event loop.

    Many orders may be under way at once. If an answer takes too long, the order is given up, but the helper
    is not ended: a call that hangs in the driver would keep hanging, and the orders for other processes
    continue. Until that call ends, the same order for the same process is answered `SILENT` at once.
    """

    def __init__(
        self, log: _Log, command: Sequence[str] = HELPER, seconds: Mapping[Operation, float] = SECONDS
    ) -> None:
        self._log, self._command, self._seconds = log, tuple(command), dict(seconds)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._hanging: dict[int, tuple[Operation, int, int]] = {}
        """Orders that were given up and may be under way: operation, pid and start time, by number."""
        self._helper: _Helper | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._left: list[subprocess.Popen[bytes]] = []
        """Previous helpers: ended, or finishing their orders."""
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The helper's pid while it runs."""
        return None if self._helper is None else self._helper.process.pid

    async def start(self) -> None:
        """The helper runs and has attached to the driver when this returns. Raises DeviceFault."""
        async with self._lock:
            if self._helper is None:
                self._left = [each for each in self._left if each.poll() is None]
                self._helper = helper = await _launch(self._command)
                self.starts += 1
                self._reader = asyncio.create_task(self._read(helper), name="checkpoint-helper")
                self._log.info("The checkpoint helper runs pid=%d", helper.process.pid)

    async def call(self, order: Order) -> Answer:
        """Carries it out; `HELPER_LOST` if the helper ended meanwhile, `SILENT` if no answer came in time."""
        try:
            await self.start()
        except DeviceFault as fault:
            self._log.warning("%s", fault)
            return Answer(HELPER_LOST)
        what = order.operation, order.pid, order.start_ticks
        if what in self._hanging.values():
            return Answer(SILENT)
        helper, number = self._helper, next(self._numbers)
        if helper is None:  # it ended between the two
            return Answer(HELPER_LOST)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        limit_seconds = self._seconds[order.operation] + (order.timeout_seconds or 0.0)
        try:
            helper.writer.write((order.to_json(number) + "\n").encode())
            async with asyncio.timeout(limit_seconds):
                return await future
        except TimeoutError:
            self._log.error("No answer from the CUDA driver: %s pid=%d", order.operation, order.pid)
            self._hanging[number] = what
            return Answer(SILENT, seconds=limit_seconds)
        except ConnectionError:
            return Answer(HELPER_LOST)
        finally:
            self._waiting.pop(number, None)

    async def stop(self, seconds: float = 5.0) -> None:
        """Closes the helper's input: it ends when it has finished its orders. Waits a limited time."""
        async with self._lock:
            helper, reader = self._helper, self._reader
            self._helper = self._reader = None
        if helper is not None and reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._lose()
            helper.writer.close()
            self._left.append(helper.process)
        end = time.monotonic() + seconds
        while any(each.poll() is None for each in self._left):
            if time.monotonic() > end:
                return
            await asyncio.sleep(0.02)

    async def _read(self, helper: _Helper) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await helper.reader.readline():
                document = json.loads(line)
                self._hanging.pop(int(document["number"]), None)
                future = self._waiting.get(int(document["number"]))
                if future is not None and not future.done():
                    future.set_result(Answer.from_json(document))
        self._log.warning(
            "The checkpoint helper ended pid=%d; a new one starts when needed", helper.process.pid
        )
        self._helper = self._reader = None
        self._lose()
        self._left.append(helper.process)
        helper.writer.close()

    def _lose(self) -> None:
        self._hanging.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_result(Answer(HELPER_LOST))


@dataclass(frozen=True)
class _Helper:
    """A running helper and the connection to it."""

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def _launch(command: Sequence[str]) -> _Helper:
    """Starts one and waits until it has attached to the driver. Raises DeviceFault.

    Not with asyncio's own subprocesses: their transport kills the process when it is closed.
    """
    ours, its = socket.socketpair()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 (a fork; what takes long is awaited below)
            command, stdin=its.fileno(), stdout=its.fileno(), start_new_session=True, env=_environment()
        )
    except OSError as error:
        ours.close()
        raise DeviceFault(f"The checkpoint helper can't be started: {error.strerror}") from error
    finally:
        its.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    helper = _Helper(process, reader, writer)
    try:
        async with asyncio.timeout(START_SECONDS):
            first = json.loads(await reader.readline() or "{}")
    except (TimeoutError, ConnectionError, ValueError):
        first = {}
    if not first.get("ready"):
        writer.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 1.0)  # it has said that it ends
        raise DeviceFault(first.get("reason") or "The checkpoint helper ended while it started: see the log")
    return helper


def _environment() -> dict[str, str]:
    """The broker's own, with all GPUs, and this package where the helper's Python finds it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    package, path = str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH")
    return {**own, "PYTHONPATH": f"{package}:{path}" if path else package}
