"""Lowers the level of JupyterHub's log lines about normal events of a start: nobody has to act on them.

A start that waits in the queue is no slow start, a user who cancels one is no fault, and a page that asks for
the steps of a start that has ended gets its answer. A start that was refused has its own line: by form and
link JupyterHub (6.1, handlers/pages.py) logs it once more as an error, with a traceback. Its other lines stay
as they are.
"""

from __future__ import annotations

import logging
import re

from jupyterhub.spawner import SpawnException

_NORMAL = (
    (re.compile(r"User \S.* is slow to start \(timeout="), logging.INFO),
    (re.compile(r"Interrupting spawner .*, pending spawn"), logging.INFO),
    (re.compile(r"Spawn not pending, can't generate progress for "), logging.INFO),
    (re.compile(r"Stream closed while handling \S*/hub/api/users/\S+/progress"), logging.INFO),
    (re.compile(r"4(?:00|04) GET \S*/hub/api/users/\S+/progress\b"), logging.INFO),
    # The open spawn page asks for new numbers with this empty option; see gpuspawner-spawn.js.
    (re.compile(r"(?:200|302) GET \S*/hub/spawn(?:/\S*)?\?next= "), logging.DEBUG),
)
"""The beginning of a line, and its level."""
_WAITS_FOR_A_STEP = "aclose(): asynchronous generator is already running"
"""When the hub ends, JupyterHub (6.1, `iterate_until`) closes the steps of a start that are still to come."""


class NotStarted(SpawnException):
    """A start that we refused, or that failed for a known reason; the spawner has logged it."""


class NormalEvents(logging.Filter):
    """A filter for the handlers of JupyterHub's log: a logger's own don't see its children's lines."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the level of a normal event; whether a line of that level is logged."""
        level = _level_of(record)
        if level >= record.levelno:
            return True
        record.levelno, record.levelname = level, logging.getLevelName(level)
        return self._log.isEnabledFor(level)


def _level_of(record: logging.LogRecord) -> int:
    """The level of a line; a refused start, and a page at the hub's end, get a sentence, not a traceback."""
    message = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, NotStarted):
        record.msg, record.args = f"{message}: {error.log_message}", ()
        record.exc_info = record.exc_text = None
        return logging.INFO
    if isinstance(error, RuntimeError) and str(error) == _WAITS_FOR_A_STEP:
        request = message.splitlines()[0].removeprefix("Uncaught exception ")
        record.msg, record.args = f"The hub ends while a page follows a start: {request}", ()
        record.exc_info = record.exc_text = None
        return logging.INFO
    return next((level for begin, level in _NORMAL if begin.match(message)), record.levelno)


def quieten(log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
    """Has all handlers of this log lower these lines. Idempotent."""
    logger = log.logger if isinstance(log, logging.LoggerAdapter) else log
    for handler in logger.handlers:
        if not any(isinstance(each, NormalEvents) for each in handler.filters):
            handler.addFilter(NormalEvents(logger))
