"""Lowers the level of JupyterHub's log lines about normal events of a start: nobody has to act on them.

A start that waits in the queue is no slow start, a user who cancels one is no fault, and a page that asks for
the steps of a start that has ended gets its answer. A start that was refused has its own line: by form and
link JupyterHub (6.1, handlers/pages.py) logs it once more as an error, with a traceback. Its other lines stay
as they are.
"""

from __future__ import annotations

import logging
import re
import traceback

from jupyterhub.spawner import SpawnException

_NORMAL = (
    (re.compile(r"User \S.* is slow to start \(timeout="), logging.INFO),
    (re.compile(r"Interrupting spawner .*, pending spawn"), logging.INFO),
    (re.compile(r"Spawn not pending, can't generate progress for "), logging.INFO),
    (re.compile(r"Stream closed while handling \S*/hub/api/users/\S+/progress"), logging.INFO),
    (re.compile(r"4(?:00|04) GET \S*/hub/api/users/\S+/progress\b"), logging.INFO),
    # The GPU page asks for what an admin or an instructor may do; the hub gives each user what that user has.
    (re.compile(r"Service \S.* requested scopes \S*custom:gpu:\S* for user "), logging.DEBUG),
    # Who leaves the queue has no route yet, and the hub (6.1, `stop_single_user`) removes it all the same.
    (re.compile(r"api_request to proxy failed: 404, .*/api/routes/user/"), logging.DEBUG),
    (re.compile(r"Route \S*/user/\S* already deleted"), logging.DEBUG),
    # The open spawn page asks for new numbers with this empty option; see gpuspawner-spawn.js.
    (re.compile(r"(?:200|302) GET \S*/hub/spawn(?:/\S*)?\?next= "), logging.DEBUG),
)
"""The beginning of a line, and its level."""
_WAITS_FOR_A_STEP = "aclose(): asynchronous generator is already running"
"""When the hub ends, JupyterHub (6.1, `iterate_until`) closes the steps of a start that are still to come."""
_CHECKS_SERVICES = "check_services_health"
"""When the hub ends, its check of the services (6.1) finds a stopped one, which has no address."""


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
        return _in_a_sentence(record, f"{message}: {error.log_message}")
    if isinstance(error, RuntimeError) and str(error) == _WAITS_FOR_A_STEP:
        request = message.splitlines()[0].removeprefix("Uncaught exception ")
        return _in_a_sentence(record, f"The hub ends while a page follows a start: {request}")
    if isinstance(error, AttributeError) and _CHECKS_SERVICES in _functions(error):
        return _in_a_sentence(record, "The hub ends while it checks its services")
    return next((level for begin, level in _NORMAL if begin.match(message)), record.levelno)


def _in_a_sentence(record: logging.LogRecord, text: str) -> int:
    """Has the line say this, without a traceback; returns its level."""
    record.msg, record.args = text, ()
    record.exc_info = record.exc_text = None
    return logging.INFO


def _functions(error: BaseException) -> set[str]:
    """The names of the functions that the error came through."""
    return {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}


def quieten(log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
    """Has all handlers of this log lower these lines, and asyncio's own log, which has none. Idempotent.

    A start by form or link runs on in a task that nobody waits for when it takes more than a second; asyncio
    says so of one that was refused, with a traceback.
    """
    loops = logging.getLogger("asyncio")
    logger = log.logger if isinstance(log, logging.LoggerAdapter) else log
    for place, owner in ((loops, loops), *((handler, logger) for handler in logger.handlers)):
        if not any(isinstance(each, NormalEvents) for each in place.filters):
            place.addFilter(NormalEvents(owner))
