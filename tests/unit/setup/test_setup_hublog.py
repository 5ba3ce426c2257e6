"""setup/hublog.py: a readable terminal, and a reason when the hub ends."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from setup.hublog import HubLog, LogFile

START = """\
[I 2026-11-23 18:24:26.000 JupyterHub app:1] Starting
[W 2026-11-23 18:24:26.001 JupyterHub proxy:783] Running JupyterHub without SSL.
2026-11-23T18:24:27.069Z [ConfigProxy] \x1b[31merror\x1b[39m: 404 GET /hub/api/
    at TCP.onStreamRead (node:internal)
Traceback (most recent call last):
  File "app.py", line 1, in <module>
gpuspawner.core.errors.LedgerFault: the ledger is locked: end the program that has it open
[C 2026-11-23 18:24:27.438 JupyterHub app:3808] Service gpu exited with status 1
2026-11-23T18:24:28.153Z [ConfigProxy] \x1b[33mwarn\x1b[39m: Terminated
"""


def shown(log: HubLog, text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if log.take(line)]


def test_before_it_is_ready_only_errors_are_shown() -> None:
    assert shown(HubLog(), START) == [
        "[C 2026-11-23 18:24:27.438 JupyterHub app:3808] Service gpu exited with status 1\n"
    ]


def test_once_it_is_ready_warnings_are_shown_with_what_follows_them() -> None:
    log = HubLog()
    log.ready = True
    text = "[W 1 hub] one\n  more\n[I 2 hub] two\n  more\n"
    text += "1Z [ConfigProxy] error: three\n1Z [ConfigProxy] info: four\n"
    assert shown(log, text) == ["[W 1 hub] one\n", "  more\n", "1Z [ConfigProxy] error: three\n"]


def test_a_browser_that_closes_its_connection_is_no_error() -> None:
    log = HubLog()
    log.ready = True
    text = "2026-11-27T00:10Z [ConfigProxy] \x1b[31merror\x1b[39m: Uncaught Exception: read ECONNRESET\n"
    text += "2026-11-27T00:10Z [ConfigProxy] \x1b[31merror\x1b[39m: Error: read ECONNRESET\n"
    text += "    at TCP.onStreamRead (node:internal/stream_base_commons:218:20)\n"
    other = "1Z [ConfigProxy] error: Uncaught Exception: listen EADDRINUSE\n"
    assert shown(log, text + other) == [other]


def test_the_reason_is_found_among_the_noise() -> None:
    log = HubLog()
    shown(log, START)
    assert log.last_words() == [
        "gpuspawner.core.errors.LedgerFault: the ledger is locked: end the program that has it open",
        "[C 2026-11-23 18:24:27.438 JupyterHub app:3808] Service gpu exited with status 1",
    ]


def test_what_keeps_the_broker_from_starting_is_a_reason() -> None:
    log = HubLog()
    words = "gpuspawner broker: c.GpuSite.pools has 'class' twice: give each pool a different name"
    ended = "[C 2026-11-23 18:24:27.438 JupyterHub app:3808] Service gpu exited with status 1"
    shown(log, f"{words}\n{ended}\n1Z [ConfigProxy] warn: Terminated\n")
    assert log.last_words() == [words, ended]


def test_without_a_reason_the_last_lines_have_to_do() -> None:
    log = HubLog()
    shown(log, "".join(f"line {number}\n" for number in range(20)))
    assert log.last_words() == [f"line {number}" for number in range(12, 20)]


def test_an_error_of_long_ago_is_no_reason() -> None:
    log = HubLog()
    shown(log, "[E 1 hub] ada typed something wrong\n")
    shown(log, "".join(f"[I 2 hub] line {number}\n" for number in range(100)))
    assert log.last_words() == [f"[I 2 hub] line {number}" for number in range(92, 100)]


# The file.


def test_a_full_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "hub.log"
    path.write_text("old\n")
    log = LogFile(path, most_bytes=20)
    for number in range(100):
        log.write(f"line {number:2}\n")
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 40
    log.close()
    assert path.read_text() == "line 98\nline 99\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hub.log", "hub.log.1"]
    assert (tmp_path / "hub.log.1").read_text() == "line 96\nline 97\n"


def test_what_was_there_is_kept_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "hub.log"
    path.write_text("x" * 15 + "\n")
    log = LogFile(path, most_bytes=20)
    log.write("next\n")
    log.close()
    assert (path.read_text(), (tmp_path / "hub.log.1").read_text()) == ("next\n", "x" * 15 + "\n")


def test_a_line_longer_than_the_file_is_written_all_the_same(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "hub.log", most_bytes=4)
    log.write("a long line\n")
    log.write("é\udc80\n")
    log.close()
    assert (tmp_path / "hub.log").read_text() == "é?\n"


def test_a_folder_that_is_not_there_yet_is_tried_again(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "later" / "hub.log")
    with pytest.raises(OSError, match="No such file") as error:
        log.write("lost\n")
    assert error.value.errno == errno.ENOENT
    (tmp_path / "later").mkdir()
    log.write("there\n")
    log.close()
    assert (tmp_path / "later" / "hub.log").read_text() == "there\n"
