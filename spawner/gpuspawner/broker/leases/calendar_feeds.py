"""Addresses at which calendar programs read lab sessions: these can't log in, so each has a secret.

Each group has one, and one has all sessions. Secrets come from a key in the broker's state folder, so that an
address stays the same over restarts; without that file all of them become others.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import ConfigError

ALL = ""
"""In place of a group: all sessions."""
_KEY_FILE = "calendar.key"
_KEY_BYTES = 32
_SECRET_DIGITS = 40


@dataclass(frozen=True)
class CalendarFeeds:
    """`page_url` is the service's address, which ends with a slash: a URL, or a path of the hub's host."""

    page_url: str = "/services/gpu/"
    key: bytes = field(default_factory=lambda: secrets.token_bytes(_KEY_BYTES), repr=False)

    def address(self, group: str = ALL) -> str:
        """Where the sessions of a group, or all of them, can be subscribed to."""
        return f"{self.page_url}calendar/{self._secret(group)}.ics"

    def group_of(self, secret: str, groups: Iterable[str]) -> str | None:
        """Whose secret it is, of all of them and these groups; None for another text."""
        found = None
        for group in (ALL, *groups):
            if hmac.compare_digest(self._secret(group), secret):
                found = group
        return found

    def _secret(self, group: str) -> str:
        digest = hmac.new(self.key, f"lab sessions {group}".encode(), hashlib.sha256).hexdigest()
        return digest[:_SECRET_DIGITS]


def read_key(state_dir: Path) -> bytes:
    """The key of this broker, made at first and readable by nobody else. Raises ConfigError."""
    path = state_dir / _KEY_FILE
    try:
        with (
            suppress(FileExistsError),
            os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        ):
            file.write(secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read or written ({error}): correct its rights.") from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{path} is damaged: delete it, and give out the calendars' addresses again.")
    return key
