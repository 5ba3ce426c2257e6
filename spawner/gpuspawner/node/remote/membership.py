"""Which machines have joined, and the tokens with which one may: two files in the broker's state folder.

A machine is known by the fingerprint of its certificate; `forget` takes it off the list, and with that its
certificate is worth nothing. A token serves once, for an hour.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from ...core.errors import Fault
from ...core.units import Clock, utc_now

VALID = timedelta(hours=1)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")


class Membership:
    """Reads its files at each question, so that a command changes what a broker that runs knows. Blocks."""

    def __init__(self, folder: Path, clock: Clock = utc_now) -> None:
        self._joined, self._tokens, self._clock = folder / "joined.json", folder / "tokens.json", clock

    def names(self) -> tuple[str, ...]:
        """The machines that have joined."""
        return tuple(_read(self._joined))

    def is_member(self, name: str, fingerprint: str) -> bool:
        """Whether this machine has joined with this certificate."""
        return _read(self._joined).get(name) == fingerprint

    def make_token(self) -> str:
        """A new token. Only its hash is kept."""
        token, now = secrets.token_hex(16), self._clock()
        living = {key: at for key, at in _read(self._tokens).items() if datetime.fromisoformat(at) > now}
        _write(self._tokens, {**living, _hash(token): (now + VALID).isoformat()})
        return token

    def use_token(self, token: str) -> bool:
        """Whether the token is good; it isn't again."""
        tokens = _read(self._tokens)
        until = tokens.pop(_hash(token), None)
        if until is None:
            return False
        _write(self._tokens, tokens)
        return datetime.fromisoformat(until) > self._clock()

    def add(self, name: str, fingerprint: str) -> None:
        """The machine has joined. Raises ValueError for a name that is taken or has another form."""
        joined = _read(self._joined)
        if NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no machine's name: use letters, digits, dots and hyphens")
        if name in joined:
            raise ValueError(f"a machine {name} has joined already: `gpuspawner node forget {name}` first")
        _write(self._joined, {**joined, name: fingerprint})

    def forget(self, name: str) -> bool:
        """The machine's certificate is worth nothing from now on; whether it had joined."""
        joined = _read(self._joined)
        if joined.pop(name, None) is None:
            return False
        _write(self._joined, joined)
        return True


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
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        written.write_text(json.dumps(dict(values), indent=1))
        os.replace(written, path)
    except OSError as error:
        raise Fault(f"{path} can't be written: {error.strerror}") from error
