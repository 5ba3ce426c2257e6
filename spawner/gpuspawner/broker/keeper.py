"""`python -m gpuspawner.broker.keeper`: runs the broker, and starts it again at once if it is killed.

JupyterHub looks after its services every 30 s (6.1, `Service.start` sets no `poll_interval`), and while there
is no broker no quota of a slice is held. Under systemd `Restart=always` does the same without this.
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
SHORT_SECONDS = 10.0
"""A broker that lived no longer than that is killed by something that lasts."""
PAUSE_SECONDS = 5.0


class Keeper:
    """Passes SIGTERM and SIGINT on to the broker and ends with it; only another signal starts a new one.

    That one doesn't take over: if a later hub has a broker on the state folder by then, it is left alone.
    """

    def __init__(self, arguments: Sequence[str], command: Sequence[str] = BROKER) -> None:
        self._arguments, self._command = list(arguments), command
        self._told: int | None = None
        self._broker: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """The broker's own exit status, 128 and more for a signal, once it has ended for good. Blocks."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        while True:
            began = time.monotonic()
            self._broker = subprocess.Popen([*self._command, *self._arguments])
            if self._told is not None:  # while it was being started
                self._broker.send_signal(self._told)
            status = self._broker.wait()
            if self._told is not None or status >= 0:
                return status if status >= 0 else 128 - status
            LOG.warning("The broker was ended by %s: starting it again", signal.Signals(-status).name)
            self._arguments = [each for each in self._arguments if each != TAKE_OVER]
            if time.monotonic() - began < SHORT_SECONDS:
                self._pause()
            if self._told is not None:
                return 128 - status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told = number
        if self._broker is not None:
            self._broker.send_signal(number)

    def _pause(self) -> None:
        end = time.monotonic() + PAUSE_SECONDS
        while self._told is None and time.monotonic() < end:
            time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, with the broker's own arguments."""
    logging.basicConfig(
        format="[%(levelname)1.1s %(asctime)s broker] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    return Keeper(sys.argv[1:] if arguments is None else arguments).run()


if __name__ == "__main__":
    sys.exit(main())
