"""How each of our errors is shown: a sentence, the label of the hub's metric, an HTTP status."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError, EngineFault, GpuSpawnerError, Refusal, StartFault
from .engine_words import explain

CONFIG_SENTENCE = (
    "A setting of this hub can't be used, so no server can be started. Tell your admin. "
    "Admin: the log of the hub says which setting, and what to do."
)


@dataclass(frozen=True, slots=True)
class Problem:
    """What the user reads, the label of the hub's metric, and the HTTP status."""

    message: str
    reason: str
    status: int
    admin: str = ""
    """What the admin should do; for the log."""
    sentence: str = ""
    """The message without the log lines at its end; "" if it has none."""
    log: str = ""
    """The server's last log lines."""


def describe(error: GpuSpawnerError, user: str = "", server: str = "") -> Problem:
    """How an error of this user's server is shown to them. The details go to the log."""
    if isinstance(error, Refusal):
        return Problem(error.message, error.reason, error.status)
    if isinstance(error, StartFault):
        return Problem(str(error), error.reason, 500, sentence=error.sentence, log=error.log)
    if isinstance(error, EngineFault):
        said = explain(error, user, server)
        return Problem(said.user, said.reason, said.status, said.admin)
    if isinstance(error, ConfigError):
        return Problem(CONFIG_SENTENCE, "config", 500)
    return Problem(str(error), "fault", 500)
