"""Which lines of the hub's log belong on the terminal, and which say why it ended."""

from __future__ import annotations

import re
from collections import deque

_HUB = re.compile(r"^\[(?P<level>[DIWEC]) ")
_PROXY = re.compile(r"^\S+Z \[ConfigProxy\] (?:\x1b\[\d+m)?(?P<level>debug|info|warn|error)")
_REASON = re.compile(r"^\s*(?:[\w.]+\.)?\w*(?:Error|Exception|Fault)\b\s*:|^gpuspawner broker: ")
_LATE_LINES = 60
"""A line that far from the end is not why the hub ended."""
_PROXY_LEVELS = {"debug": "D", "info": "I", "warn": "I", "error": "W"}


class HubLog:
    """Takes the log line by line. What the hub warns of at every start is shown only once it is ready."""

    def __init__(self) -> None:
        self.ready = False
        self._show = False
        self._lines = 0
        self._reasons: deque[tuple[int, str]] = deque(maxlen=6)
        self._tail: deque[str] = deque(maxlen=8)

    def take(self, line: str) -> bool:
        """Whether the line is for the terminal. A line without a level goes with the one before it."""
        level = ""
        self._lines += 1
        if match := _HUB.match(line):
            level = match["level"]
        elif match := _PROXY.match(line):
            level = _PROXY_LEVELS[match["level"]]
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
