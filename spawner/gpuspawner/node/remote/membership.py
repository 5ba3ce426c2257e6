"""Which machines have joined, the tokens with which one may, and when each was heard last: files in the
broker's state folder.

A machine is known by the fingerprint of its certificate; `forget` takes it off the list, and with that its
certificate is worth nothing. A token serves once, for an hour. Commands and the broker may change the files
at the same time, so each change is made under a lock on the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from ...core.errors import Fault
from ...core.units import Clock, utc_now

VALID = timedelta(hours=1)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")


class Membership:
    """Reads its files at each question, so that a command changes what a broker that runs knows. Blocks."""

    def __init__(self, folder: Path, clock: Clock = utc_now) -> None:
        self._folder, self._clock = folder, clock
        self._joined, self._tokens = folder / "joined.json", folder / "tokens.json"
        self._heard = folder / "heard.json"

    def names(self) -> tuple[str, ...]:
        """The machines that have joined."""
        return tuple(self.fingerprints())

    def fingerprints(self) -> dict[str, str]:
        """Of each machine that has joined, by name: one that joined again has another."""
        return _read(self._joined)

    def is_member(self, name: str, fingerprint: str) -> bool:
        """Whether this machine has joined with this certificate."""
        return _read(self._joined).get(name) == fingerprint

    def make_token(self) -> str:
        """A new token. Only its hash is kept."""
        token, now = secrets.token_hex(16), self._clock()
        with self._changing():
            tokens = _read(self._tokens).items()
            living = {key: at for key, at in tokens if datetime.fromisoformat(at) > now}
            _write(self._tokens, {**living, _hash(token): (now + VALID).isoformat()})
        return token

    def check(self, token: str, name: str) -> None:
        """Raises ValueError unless a machine may join with this token, under this name."""
        until = _read(self._tokens).get(_hash(token))
        if until is None or datetime.fromisoformat(until) <= self._clock():
            raise ValueError("this token isn't good, or not any more: `gpuspawner node token` makes another")
        if NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no machine's name: use letters, digits, dots and hyphens")
        if name in _read(self._joined):
            raise ValueError(f"a machine {name} has joined already: `gpuspawner node forget {name}` first")

    def admit(self, token: str, name: str, fingerprint: str) -> None:
        """The machine has joined, and the token is used up. Raises ValueError as `check`."""
        with self._changing():
            self.check(token, name)
            tokens = _read(self._tokens)
            del tokens[_hash(token)]
            _write(self._tokens, tokens)  # first: a token must not serve twice
            _write(self._joined, {**_read(self._joined), name: fingerprint})

    def forget(self, name: str) -> bool:
        """The machine's certificate is worth nothing from now on; whether it had joined."""
        with self._changing():
            joined = _read(self._joined)
            if joined.pop(name, None) is None:
                return False
            _write(self._joined, joined)
            return True

    def heard(self) -> dict[str, datetime]:
        """When each machine's agent was heard last, as `note_heard` recorded it.

        Nothing if that can't be read: people are told it, and no decision needs it.
        """
        try:
            return {name: datetime.fromisoformat(at) for name, at in _read(self._heard).items()}
        except (Fault, ValueError):
            return {}

    def note_heard(self, times: Mapping[str, datetime]) -> None:
        """Records it for the next start of the broker. Raises Fault."""
        _write(self._heard, {name: at.isoformat() for name, at in times.items()})

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody else changes the files meanwhile. Raises Fault if the folder can't be written."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Fault(f"{self._folder} can't be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Raises Fault if it can't be read: an error is not an empty list."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Fault(f"{path} can't be read: {error}") from error
    return {str(key): str(value) for key, value in found.items()}


def _write(path: Path, values: Mapping[str, str]) -> None:
    """Raises Fault if it can't be written."""
    written = path.with_suffix(".new")
    try:
        written.write_text(json.dumps(dict(values), indent=1))
        os.replace(written, path)
    except OSError as error:
        raise Fault(f"{path} can't be written: {error.strerror}") from error
