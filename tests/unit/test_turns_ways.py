"""What compares turns with other ways on real GPUs, as far as it can be tried without one."""

from __future__ import annotations

import importlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.decide.place.pooling import Host, make_pooling
from gpuspawner.config.pools import parse_pools
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.model import Device
from gpuspawner.node.mps.control import MpsProgram

TESTS = Path(__file__).resolve().parents[1]
GIB = 1 << 30
DEVICES = tuple(Device(f"GPU-{number}", "H100", 80 * GIB, index=number) for number in range(2))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of the scripts for real GPUs, afresh."""

    def fresh(name: str) -> Any:
        for folder in (TESTS, TESTS / "gpu"):
            monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return fresh


@pytest.mark.parametrize("way", ["turns", "pressure", "whole", "sliced", "mps"])
def test_each_way_has_settings_that_a_broker_takes(
    load: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("GPUSPAWNER_TURNS_WAY", way)
    site = load("test_turns_lab").SITE
    host = Host(
        False, MpsProgram(Path("/usr/bin/nvidia-cuda-mps-control")), "", False, {}, 500 * GIB, "", True
    )
    pooling = make_pooling(parse_pools(site["pools"]), parse_tiers(site["tiers"]), DEVICES, host)
    terms = pooling.terms["GPU-0"]
    places = {"turns": 6, "pressure": 6, "whole": 1, "sliced": 3, "mps": 3}[way]
    assert (terms.seats or (3 if terms.sliced else 1)) == places
    assert [tier["name"] for tier in site["tiers"]] == ["cpu", way]


def test_kills_are_read_from_words(load: Any, tmp_path: Path) -> None:
    kills = load("kills")
    assert kills.parse_kills("120 broker sleep, 60 helper,") == [
        kills.Kill(60.0, "helper"), kills.Kill(120.0, "broker", "sleep"),
    ]  # fmt: skip
    assert [each.name for each in kills.parse_kills("1 broker pause, 2 helper")] == [
        "broker in a pause", "helper",
    ]  # fmt: skip
    assert kills.parse_kills("") == []
    with pytest.raises(ValueError, match="'hub' can't be killed"):
        kills.parse_kills("60 hub")
    with pytest.raises(ValueError, match="'lunch' is no phase"):
        kills.parse_kills("60 broker lunch")
    for pid, parent, command in ((7, 1, "broker"), (8, 7, "checkpoint.helper"), (9, 6, "checkpoint.helper")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 0")
        (tmp_path / str(pid) / "cmdline").write_text(f"python\0-m\0gpuspawner.node.{command}\0")
    assert (kills.helper_of(7, tmp_path), kills.helper_of(5, tmp_path)) == (8, None)


def turn(where: str, *, moves: bool = False, position: int | None = None, gib: int = 6) -> dict[str, Any]:
    """As the API says it."""
    return {"turn": where, "moves": moves, "position": position, "memory_bytes": gib * GIB}


@pytest.mark.parametrize(
    ("phase", "looks", "seen"),
    [
        ("wake", [turn("asleep"), turn("asleep", moves=True, gib=0), turn("asleep", moves=True)], 2),
        ("pause", [turn("awake"), turn("awake", moves=True)], 1),
        ("sleep", [turn("awake", moves=True)] * 3, 2),  # looks are 0.3 s apart: a pause is over by then
        ("resume", [turn("paused", moves=True), turn("paused", position=1), turn("paused", moves=True)], 2),
        ("pause", [turn("paused", moves=True), turn("asleep", moves=True)], None),
    ],
)
def test_the_phase_of_a_step_is_read_from_the_api(
    load: Any, phase: str, looks: list[dict[str, Any]], seen: int | None
) -> None:
    watch = load("kills").PhaseWatch(phase)
    found = [watch.sees({"ann": look, "ben": turn("paused")}, n * 0.3) for n, look in enumerate(looks)]
    assert found == ["ann" if n == seen else None for n in range(len(looks))]


def test_what_a_cell_waited_after_its_turn_began_is_told_apart(load: Any) -> None:
    lab, rows = load("test_turns_lab"), load("rows")
    seen = lab.Seen(rows.Rows())

    def look(where: str, since: str, gpu: str | None = "GPU-0") -> None:
        seen.look([{"user": "ann", "turn": {"turn": where, "since": since, "gpu_uuid": gpu}}])

    cell = {"loss": 2.0, "steps": 300}
    look("asleep", "2026-11-27T08:00:00Z", None)
    look("awake", "2026-11-27T08:00:10Z")
    look("awake", "2026-11-27T08:00:10.001Z")  # the same turn
    began = datetime(2026, 11, 27, 8, 0, 10, tzinfo=UTC).timestamp()
    seen.ran("ann", began - 4, {**cell, "touched": began + 0.02, "first": began + 0.1, "end": began + 5})
    look("paused", "2026-11-27T08:00:20Z")
    look("awake", "2026-11-27T08:00:30Z")
    seen.ran("ann", began + 12, {**cell, "touched": began + 19.99, "first": began + 21, "end": began + 30})
    seen.ran("ann", began + 31, {**cell, "touched": began + 31.1, "first": began + 32, "end": began + 40})
    told = {before: [round(each, 3) for each in seconds] for before, seconds in seen.after_turn.items()}
    assert told == {"asleep": [0.02], "paused": [-0.01]}  # the third one still had its turn
    assert [round(each, 3) for each in seen.waits] == [4.1, 9.0, 1.0]
    assert (seen.steps, seen.losses, seen.shared) == (900, [2.0] * 3, [])
    assert seen.awake == {0: 2, 1: 3}
    assert (seen.ended, seen.rows.failed) == (began + 40, [])


def test_ways_run_one_after_the_other_into_one_table(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = load("turns_ways")
    ran: list[tuple[str, str, str]] = []

    class Done:
        returncode = 0

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Done:
        ran.append(tuple(env[f"GPUSPAWNER_TURNS_{key}"] for key in ("WAY", "MINUTES", "KILLS")))  # type: ignore[arg-type]
        done = Done()
        done.returncode = int(env["GPUSPAWNER_TURNS_WAY"] == "mps")
        result = {
            "way": env["GPUSPAWNER_TURNS_WAY"], "GiB of each": 6.0, "cells": 20, "steps in all": 5,
            "seconds until the last cell ended": 180.0, "killed": {"helper": 2} if ran[-1][2] else {},
            "used part of the GPUs' time": 0.8 if env["GPUSPAWNER_TURNS_WAY"] == "turns" else 0.4,
            "waits p50, p95, most (s)": [7.0, 21.0, 30.0],
        }  # fmt: skip
        Path(env["GPUSPAWNER_RESULTS"]).write_text(json.dumps(result))
        return done

    monkeypatch.setattr(ways.subprocess, "run", run)
    assert ways.main([os.fspath(tmp_path), "turns:8:60 helper, 90 broker"]) == 0
    assert "| not run |" in capsys.readouterr().out
    assert ways.main([os.fspath(tmp_path), "whole:3", "mps:3"]) == 1
    assert ran == [("turns", "8.0", "60 helper, 90 broker"), ("whole", "3.0", ""), ("mps", "3.0", "")]
    said = capsys.readouterr().out
    assert "mps: FAILED (1)" in said
    assert said.splitlines()[-3:] == [
        "| turns | 3.0 | 6 | 20 | 80% | 2.00 | 7.00 | 21.0 | 30.0 | 2 x helper |",
        "| whole | 3.0 | 6 | 20 | 40% | 1.00 | 7.00 | 21.0 | 30.0 | nothing |",
        "| mps | 3.0 | 6 | 20 | 40% | 1.00 | 7.00 | 21.0 | 30.0 | nothing |",
    ]
