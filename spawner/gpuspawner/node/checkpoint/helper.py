"""`python -m gpuspawner.node.checkpoint.helper`: the one process that talks to the CUDA driver.

It reads orders from its standard input, one JSON object a line, carries each out in a thread of its own, and
writes the answers in the order in which they come. Attaching to the driver takes about 2.7 s, so it stays.
When its input ends (the broker has ended, or was killed) it finishes the orders that it has begun, and then
ends: it must never be ended inside a call. It is in a session of its own and ignores SIGTERM and SIGINT, so
that what ends the broker doesn't end it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import IO, Protocol

from ...core.errors import DeviceFault
from .order import Answer, Order


class BlockingDriver(Protocol):
    """Carries out one order at a time in each thread that calls it."""

    def perform(self, order: Order) -> Answer:
        """Blocks until it is done."""


class Server:
    """Answers orders from `source` on `sink`."""

    def __init__(self, driver: BlockingDriver, source: IO[str], sink: IO[str]) -> None:
        self._driver, self._source, self._sink = driver, source, sink
        self._lock = threading.Lock()
        self._lost = False

    def serve(self) -> None:
        """Returns when the source has ended and every order has been carried out."""
        threads: list[threading.Thread] = []
        for line in self._source:
            document = json.loads(line)
            number, order = int(document["number"]), Order.from_json(document)
            thread = threading.Thread(target=self._carry_out, args=(number, order), name=f"order-{number}")
            thread.start()
            threads = [each for each in threads if each.is_alive()] + [thread]
        for thread in threads:
            thread.join()

    def _carry_out(self, number: int, order: Order) -> None:
        try:
            answer = self._driver.perform(order)
        except Exception as error:  # the top of a thread: the broker must get an answer
            answer = Answer(f"GPUSPAWNER_ERROR: {type(error).__name__}: {error}")
        self.write(answer.to_json(number))

    def write(self, line: str) -> None:
        """Writes one line; does nothing if the reader has ended."""
        with self._lock:
            if self._lost:
                return
            try:
                self._sink.write(line + "\n")
                self._sink.flush()
            except (BrokenPipeError, ValueError):
                self._lost = True


def run(make_driver: Callable[[], BlockingDriver]) -> int:
    """The helper's life on its standard input and output. The first line says whether the driver answers."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Output of libraries must not get between the answers.
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        driver = make_driver()
    except DeviceFault as fault:
        sink.write(json.dumps({"ready": False, "reason": str(fault)}) + "\n")
        sink.flush()
        return 1
    server = Server(driver, sys.stdin, sink)
    server.write(json.dumps({"ready": True, "reason": ""}))
    server.serve()
    return 0


def main() -> int:
    """The command."""
    from .libcuda import CudaDriver

    return run(CudaDriver)


if __name__ == "__main__":
    sys.exit(main())
