"""`gpuspawner audit | timeline | guard | images` as typed, against a real socket and ledger."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.protocol.pulls import ImageDocument, PullMessage
from gpuspawner.tools import cli

from tests.unit.rules_bench import Served

Typed = Callable[..., list[str]]


@pytest.fixture
def served(tmp_path: Path, times: Any) -> Iterator[Served]:
    times.wall = times.wall.replace(year=2026, month=11, day=26)
    broker = Served(tmp_path, times)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def typed(served: Served, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command that works; the lines that it printed, with single spaces."""

    def run(*words: str) -> list[str]:
        status = cli.main([*words, "--config", str(served.config)])
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return [" ".join(line.split()) for line in out.splitlines() if line.strip()]

    return run


def test_the_audit_log(typed: Typed) -> None:
    typed("quota", "set", "group:students", "devices=2", "--reason", "exam week")
    typed("quota", "remove", "group:students")
    me = getpass.getuser()
    assert typed("audit", "--most=1") == [
        "Audit log",
        "When (Europe/Berlin) By Way What For Details Why Result",
        f'2026-11-26 13:00:00 {me} socket reset quota group:students {{"subject": "group:students"}} done',
        "These are the newest 1: add --most=0 for all.",
    ]
    shown = json.loads("".join(typed("audit", "--most=0", "--json", "--action=change quota")))
    assert [(each["reason"], each["result"]) for each in shown["entries"]] == [("exam week", "done")]
    assert typed("audit", "--author=nobody") == [
        "Audit log",
        "When (Europe/Berlin) By Way What For Details Why Result",
    ]


def test_who_held_what(typed: Typed, served: Served, times: Any) -> None:
    lease_id = f"{1:032x}"
    served.do(served.allocator.acquire(GpuRequest(lease_id, "hub", "ada", "train", "gpu", Want(1))))
    served.do(served.allocator.set_running(lease_id, "c"))
    times.pass_seconds(60)
    head = "From Until User Server Tier GPUs"
    assert typed("timeline") == [
        "From 2026-11-25 13:01:00 to 2026-11-26 13:01:00 (Europe/Berlin)",
        "GPUs held",
        head,
        "2026-11-26 13:00:00 now ada train gpu GPU-0",
    ]
    assert typed("timeline", "--start=2026-11-20", "--end=2026-11-25") == [
        "From 2026-11-20 00:00:00 to 2026-11-26 00:00:00 (Europe/Berlin)", "GPUs held", head,
    ]  # fmt: skip
    assert typed("timeline", "--user=bob")[2:] == [head]
    assert len(typed("timeline", "--device=GPU-0")) == 4


def test_what_the_guard_did(typed: Typed, served: Served, times: Any) -> None:
    served.do(served.ledger.record(EndedProcess(
        at=times.now(), offence="memory", lease_id=None, hub="hub", user="", server="train",
        container_id="c", device_uuid="GPU-0", pid=7, name="python", used_bytes=9, quota_bytes=8,
        over_seconds=2.0, sentence="Your process was ended",
    )))  # fmt: skip
    assert typed("guard") == [
        "Ended by the guard",
        "When (Europe/Berlin) User Server Process GPU Message",
        "2026-11-26 13:00:00 unknown train python (7) GPU-0 Your process was ended",
    ]


def test_images(typed: Typed, served: Served) -> None:
    pull = PullMessage(image="lab:2", message="3 of 7 layers", percent=14, waiting=1)
    served.images = (
        ImageDocument(image="lab:1", here=True, size_bytes=3 << 30, pull=None),
        ImageDocument(image="lab:2", here=None, size_bytes=None, pull=pull),
        ImageDocument(image="lab:3", here=False, size_bytes=None, pull=None),
        ImageDocument(image="lab:4", here=None, size_bytes=None, pull=None),
    )
    assert typed("images") == [
        "Images",
        "Image State",
        "lab:1 3.0 GiB",
        "lab:2 3 of 7 layers",
        "lab:3 not on this machine",
        "lab:4 not looked at yet",
    ]
    assert len(json.loads("".join(typed("images", "--json")))["images"]) == 4


def test_all_pages_are_read(typed: Typed, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("1", "2", "3"):
        typed("quota", "set", "user:ada", f"devices={limit}")
    monkeypatch.setattr("gpuspawner.protocol.client.MOST", 2)
    shown = json.loads("".join(typed("audit", "--most=0", "--json")))
    assert ([each["number"] for each in shown["entries"]], shown["next"]) == ([5, 3, 1], None)
