"""What fails in a loop of the broker: counted each time, logged once until it is over or another."""

from __future__ import annotations

import logging

from ...core.errors import GpuSpawnerError
from .metrics import Metrics


class LoopFailures:
    """Those of one loop; `loop` is the label of the metric. An error that is not ours has its traceback."""

    def __init__(self, loop: str, metrics: Metrics, log: logging.Logger) -> None:
        self._loop, self._metrics, self._log = loop, metrics, log
        self._told = ""

    def over(self) -> None:
        """A round succeeded: the next failure is logged again."""
        self._told = ""

    def failed(self, sentence: str, error: Exception) -> None:
        """A round failed; `sentence` says what that means, and the error follows it."""
        self._metrics.failed(self._loop)
        if str(error) != self._told:
            self._log.warning(
                "%s: %s", sentence, error, exc_info=None if isinstance(error, GpuSpawnerError) else error
            )
        self._told = str(error)
