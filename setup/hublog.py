"""The hub's log: a file of bounded size, and which lines are for the terminal or say why the hub ended."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import TextIO

_HUB = re.compile(r"^\[(?P<level>[DIWEC]) ")
_PROXY = re.compile(r"^\S+Z \[ConfigProxy\] (?:\x1b\[\d+m)?(?P<level>debug|info|warn|error)")
_CLOSED = re.compile(r"^\S+Z \[ConfigProxy\] \S+ (?:Uncaught Exception|Error): read ECONNRESET")
"""A browser closed a connection that the proxy read from: configurable-http-proxy 5 logs it as an error."""
_REASON = re.compile(r"^\s*(?:[\w.]+\.)?\w*(?:Error|Exception|Fault)\b\s*:|^gpuspawner broker: ")
_LATE_LINES = 60
"""A line this far from the end is not the reason for the hub's end."""
LOG_BYTES = 10 << 20
"""A full log file becomes `hub.log.1`, which replaces the previous one, and a new file begins."""
_PROXY_LEVELS = {"debug": "D", "info": "I", "warn": "I", "error": "W"}


class HubLog:
    """Takes the log line by line. The hub's warnings at every start are shown only when it is ready."""

    def __init__(self) -> None:
        self.ready = False
        self._show = False
        self._lines = 0
        self._reasons: deque[tuple[int, str]] = deque(maxlen=6)
        self._tail: deque[str] = deque(maxlen=8)

    def take(self, line: str) -> bool:
        """Whether the line is for the terminal. A line without a level belongs to the line before it."""
        level = ""
        self._lines += 1
        if match := _HUB.match(line):
            level = match["level"]
        elif match := _PROXY.match(line):
            level = "I" if _CLOSED.match(line) else _PROXY_LEVELS[match["level"]]
        if level:
            self._show = level in ("WEC" if self.ready else "EC")
        text = line.rstrip()
        if level in ("E", "C") or _REASON.match(line):
            self._reasons.append((self._lines, text))
        self._tail.append(text)
        return self._show

    def last_words(self) -> list[str]:
        """The lines that most likely say why the hub ended."""
        late = [text for line, text in self._reasons if line > self._lines - _LATE_LINES]
        return late or list(self._tail)


class LogFile:
    """A file for lines that is renamed when it is full: there are at most two files of `most_bytes`."""

    def __init__(self, path: Path, most_bytes: int = LOG_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._file: TextIO | None = None
        self._bytes = 0

    def write(self, line: str) -> None:
        """Appends the line. Raises OSError if it can't be written; a later line may be."""
        size = len(line.encode("utf-8", "replace"))
        if self._file is None:
            self._file = self._path.open("a", buffering=1, encoding="utf-8", errors="replace")
            self._bytes = self._path.stat().st_size
        if self._bytes and self._bytes + size > self._most_bytes:
            self.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self.write(line)
            return
        self._bytes += size
        self._file.write(line)

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
