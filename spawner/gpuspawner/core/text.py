"""Text that somebody else chose, made safe for a sentence, a terminal or a spreadsheet. Pure.

Groups, servers' display names, titles of tiers and messages may have any character. HTML is escaped by the
templates and JSON by its encoder; what is left are characters that act on what stands around them.
"""

from __future__ import annotations

import re
import string
import unicodedata

_ISOLATE, _END = "\u2068", "\u2069"
"""FIRST STRONG ISOLATE and POP DIRECTIONAL ISOLATE: the direction of what is between them stays there."""
_ACTS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters (C0, C1), line ends, and the marks, embeddings, overrides and isolates of Unicode's
bidirectional algorithm (UAX 9)."""
_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for a formula at the beginning of a cell (OWASP, "CSV Injection")."""
_LETTER = r"[\u0590-\u1fff\u2070-\U0010ffff]"
_JOINERS = re.compile(rf"(?<={_LETTER})[\u200c\u200d](?={_LETTER})")
"""ZERO WIDTH (NON-)JOINER between two letters of a script that writes with them, as Persian, Hindi or emoji.

Elsewhere they are invisible: "ada" and "ada" with a joiner would be two people who look like one.
"""

_PLAIN_BYTES = frozenset((string.ascii_lowercase + string.digits).encode())


def printable(text: str) -> bool:
    """Whether each character can be printed, or is a joiner where a script needs one."""
    return _JOINERS.sub("", text).isprintable()


def plain(text: str) -> str:
    """`text` with each character that acts on others written as in Python: "\\x1b", "\\u202e"."""
    return _ACTS.sub(_as_escape, text)


def isolated(name: str) -> str:
    """A name for a sentence: it has no effect on the words after it, whatever it is made of.

    Names without letters that are written from right to left come back unchanged, if they are plain.
    """
    shown = plain(name)
    rightward = all(unicodedata.bidirectional(char) not in ("R", "AL", "AN") for char in shown)
    return shown if rightward else f"{_ISOLATE}{shown}{_END}"


def for_terminal(text: str) -> str:
    """`text`, a name or a sentence, for a terminal: none of its characters moves the cursor or sets a colour.

    Isolates are left out: a terminal shows them as boxes, or not at all.
    """
    return plain(text.replace(_ISOLATE, "").replace(_END, ""))


def for_spreadsheet(text: str) -> str:
    """`text` for a cell of a CSV file, with an apostrophe before it if it looks like a formula."""
    shown = plain(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _as_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escape_name(name: str) -> str:
    """A name with only `a-z`, `0-9` and `-hh`, two hex digits for each other byte of its UTF-8.

    DockerSpawner's (14.0) writes as few digits as will do, so that the users "a\\x1fb" and "a\\x01fb", which
    JupyterHub (6.1) takes for two, had one home. All other names look as they do there.
    """
    return "".join(chr(byte) if byte in _PLAIN_BYTES else f"-{byte:02x}" for byte in name.encode())


def unescape_name(escaped: str) -> str | None:
    """The name of which `escape_name` makes `escaped`; None if there is none."""
    data = re.sub(r"-([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), escaped)
    try:
        name = data.encode("latin-1").decode()
    except UnicodeError:
        return None
    return name if escape_name(name) == escaped else None
