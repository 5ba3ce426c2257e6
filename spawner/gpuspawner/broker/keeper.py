"""`python -m gpuspawner.broker.keeper`: runs the broker, and restarts it at once if it ends by itself.

JupyterHub checks its services every 30 s (6.1, `Service.start` sets no `poll_interval`), and without a broker
no slice's quota is enforced. Under systemd, `Restart=always` does the same without this.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

LOG = logging.getLogger(__name__)
BROKER = (sys.executable, "-m", "gpuspawner.broker")
TAKE_OVER = "--take-over"
EXIT_SETTINGS = 78
"""Exit status of a broker that can't run with its settings (EX_CONFIG of sysexits.h)."""
SHORT_SECONDS = 10.0
"""If a broker ended within this time, its cause probably persists."""
FIRST_PAUSE_SECONDS = 1.0
"""Pause before the second restart after such short runs; each further pause is twice as long."""
LONGEST_PAUSE_SECONDS = 60.0
SETTINGS_TRIES = 5
"""How many brokers in a row may end because of a setting, if one ran before: somebody may be editing the
file."""


class Keeper:
    """Passes SIGTERM and SIGINT on to the broker and then ends with it; after any other end, it restarts the
    broker.

    The restarted broker doesn't take over: if a later hub has started a broker on the state folder, that one
    stays. A broker that can't run with its settings (exit status EXIT_SETTINGS) ends the keeper, too: a
    restart doesn't help, and the hub shows why. If one ran before, it is tried SETTINGS_TRIES times.
    """

    def __init__(self, arguments: Sequence[str], command: Sequence[str] = BROKER) -> None:
        self._arguments, self._command = list(arguments), command
        self._told: int | None = None
        self._broker: subprocess.Popen[bytes] | None = None
        self._ran = False
        self._short = 0
        self._bad_settings = 0

    def run(self) -> int:
        """Runs until the broker has finally ended; returns its exit status (128 and more for a signal).

        Blocks.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        while True:
            began = time.monotonic()
            self._broker = subprocess.Popen([*self._command, *self._arguments])
            if self._told is not None:  # during its start
                self._broker.send_signal(self._told)
            status = self._broker.wait()
            self._count(status, time.monotonic() - began)
            if not self._again(status):
                return _shell_status(status)
            pause = self._pause_seconds()
            LOG.warning("The broker %s: restarting it in %g s", _end_of(status), pause)
            self._arguments = [each for each in self._arguments if each != TAKE_OVER]
            self._wait(pause)
            if self._told is not None:
                return _shell_status(status)

    def _count(self, status: int, seconds: float) -> None:
        long = seconds >= SHORT_SECONDS
        # With a setting that can't be used it never ran, however long a busy machine needed to find that out.
        self._ran = self._ran or (long and status != EXIT_SETTINGS)
        self._short = 0 if long else self._short + 1
        self._bad_settings = self._bad_settings + 1 if status == EXIT_SETTINGS else 0

    def _again(self, status: int) -> bool:
        if self._told is not None or status == 0:  # 0: somebody asked the broker itself to end
            return False
        return status != EXIT_SETTINGS or (self._ran and self._bad_settings < SETTINGS_TRIES)

    def _pause_seconds(self) -> float:
        if not self._short:
            return 0.0
        return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self._short - 1)))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told = number
        if self._broker is not None:
            self._broker.send_signal(number)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._told is None and time.monotonic() < end:
            time.sleep(0.1)


def _shell_status(status: int) -> int:
    return status if status >= 0 else 128 - status


def _end_of(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}, see its log lines above"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, with the broker's own arguments."""
    logging.basicConfig(
        format="[%(levelname)1.1s %(asctime)s broker] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    return Keeper(sys.argv[1:] if arguments is None else arguments).run()


if __name__ == "__main__":
    sys.exit(main())
