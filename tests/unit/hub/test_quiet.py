"""Which of JupyterHub's log lines are lowered, and that the others stay."""

from __future__ import annotations

import logging

import pytest
from gpuspawner.hub.quiet import NotStarted, quieten
from jupyterhub.objects import Server
from jupyterhub.spawner import SpawnException


class Kept(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []
        self.tracebacks: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))
        self.tracebacks.append(record.exc_info is not None)


@pytest.fixture
def log() -> logging.Logger:
    found = logging.Logger("JupyterHub", logging.INFO)
    found.addHandler(Kept())
    quieten(found)
    quieten(found)
    return found


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("User ada:train is slow to start (timeout=10)", "INFO"),
        ("Interrupting spawner ada:train, pending spawn", "INFO"),
        ("Interrupting spawner ada:train, pending stop", "WARNING"),
        ("404 GET /jupyter/hub/api/users/ada/servers/train/progress?_xsrf=[secret] (ada@::1) 1.00ms", "INFO"),
        ("400 GET /hub/api/users/ada/server/progress (127.0.0.1): ada is not starting...", "INFO"),
        ("500 GET /hub/api/users/ada/server/progress (ada@::1) 1.00ms", "WARNING"),
        ("404 GET /hub/api/users/ada (ada@::1) 1.00ms", "WARNING"),
        ("Stream closed while handling /hub/api/users/ada/server/progress?_xsrf=x", "INFO"),
        ("Spawn not pending, can't generate progress for ada", "INFO"),
        (
            "Service JupyterHub service labs requested scopes admin-ui for user ada, granting []",
            "WARNING",
        ),
        (
            "api_request to proxy failed: 404, message='', url='http://[::1]/api/other'",
            "WARNING",
        ),
        ("api_request to proxy failed: 403, message='', url='http://[::1]/api/routes/user/ada/'", "WARNING"),
        ("Route /services/gpu/ already deleted", "WARNING"),
        ("User ada is slow to become responsive (timeout=10)", "WARNING"),
    ],
)
def test_a_normal_event_is_no_warning(log: logging.Logger, line: str, level: str) -> None:
    log.warning("%s", line)
    (handler,) = log.handlers
    assert isinstance(handler, Kept)
    assert handler.lines == [(level, line)]
    assert len(handler.filters) == 1


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("200 GET /jupyter/hub/spawn?next= (ada@::1) 9.00ms", 0),
        ("200 GET /hub/spawn/ada/train?next= (ada@::1) 9.00ms", 0),
        ("200 GET /hub/spawn?next=%2Fhub%2Fhome (ada@::1) 9.00ms", 1),
        ("200 GET /hub/spawn (ada@::1) 9.00ms", 1),
    ],
)
def test_the_questions_of_an_open_spawn_page_are_for_the_debug_log(
    log: logging.Logger, line: str, lines: int
) -> None:
    log.info("%s", line)
    (handler,) = log.handlers
    assert isinstance(handler, Kept)
    assert len(handler.lines) == lines


@pytest.mark.parametrize(
    "line",
    [
        "Service JupyterHub service gpu requested scopes custom:gpu:admin,delete:servers for user ada, "
        "granting only delete:servers!user=ada.",
        "api_request to proxy failed: 404, message='Not Found', url='http://[::1]:8001/api/routes/user/ada/'",
        "Route /user/ada/ already deleted",
    ],
)
def test_what_the_hub_says_at_a_login_and_to_who_leaves_the_queue(log: logging.Logger, line: str) -> None:
    log.error("%s", line)
    (handler,) = log.handlers
    assert isinstance(handler, Kept)
    assert handler.lines == []


def test_a_check_of_services_at_the_hub_s_end_is_a_sentence(log: logging.Logger) -> None:
    class Hub:
        server: Server | None = None

        def check_services_health(self) -> None:
            Server.from_orm(self.server)

    def other() -> None:
        Server.from_orm(None)

    for check in (Hub().check_services_health, other):
        try:
            check()
        except AttributeError:
            log.exception("Exception in callback")
    (handler,) = log.handlers
    assert isinstance(handler, Kept)
    assert list(zip(handler.lines, handler.tracebacks, strict=True)) == [
        (("INFO", "The hub ends while it checks its services"), False),
        (("ERROR", "Exception in callback"), True),
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            NotStarted("You hold 1 of 1 GPU", reason="quota_devices", status_code=403),
            ("INFO", "Failed to spawn single-user server with form: You hold 1 of 1 GPU"),
        ),
        (
            SpawnException("somebody else's", reason="x"),
            ("ERROR", "Failed to spawn single-user server with form"),
        ),
    ],
)
def test_a_refused_start_has_no_traceback(
    log: logging.Logger, error: Exception, expected: tuple[str, str]
) -> None:
    try:
        raise error
    except Exception:
        log.error("Failed to spawn single-user server with %s", "form", exc_info=True)
    (handler,) = log.handlers
    assert isinstance(handler, Kept)
    assert handler.lines == [expected]
    assert handler.tracebacks == [expected[0] == "ERROR"]
    strict = logging.Logger("JupyterHub", logging.WARNING)
    strict.addHandler(Kept())
    quieten(strict)
    try:
        raise error
    except Exception:
        strict.error("again", exc_info=True)
    (only,) = strict.handlers
    assert isinstance(only, Kept)
    assert len(only.lines) == (0 if expected[0] == "INFO" else 1)


def test_a_page_that_follows_a_start_at_the_hub_s_end_is_told_without_a_traceback(
    log: logging.Logger,
) -> None:
    (handler,) = log.handlers
    assert isinstance(handler, Kept)
    for said in ("aclose(): asynchronous generator is already running", "something else"):
        try:
            raise RuntimeError(said)
        except RuntimeError:
            log.exception(
                "Uncaught exception %s\n%r", "GET /hub/api/users/ada/server/progress (::1)", "request"
            )
    assert handler.lines == [
        ("INFO", "The hub ends while a page follows a start: GET /hub/api/users/ada/server/progress (::1)"),
        ("ERROR", "Uncaught exception GET /hub/api/users/ada/server/progress (::1)\n'request'"),
    ]
    assert handler.tracebacks == [False, True]


def test_a_refused_start_that_nobody_waits_for_any_more_has_no_traceback(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """JupyterHub starts a server by form or link in a task, and after a second waits for it no more."""
    loops = logging.getLogger("asyncio")
    for error in (NotStarted(503, log_message="no GPU", reason="no_capacity"), ValueError("a fault")):
        loops.error("Task exception was never retrieved", exc_info=(type(error), error, None))
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [("a fault",)]
