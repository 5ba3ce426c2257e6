"""What compares turns with other ways on real GPUs, as far as it can be tried without one."""

from __future__ import annotations

import importlib
import json
import os
import sys
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
    lab = load("test_turns_lab")
    assert lab.parse_kills("120 broker, 60 helper,") == [(60.0, "helper"), (120.0, "broker")]
    assert lab.parse_kills("") == []
    with pytest.raises(ValueError, match="'hub' can't be killed"):
        lab.parse_kills("60 hub")
    for pid, parent, command in ((7, 1, "broker"), (8, 7, "checkpoint.helper"), (9, 6, "checkpoint.helper")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 0")
        (tmp_path / str(pid) / "cmdline").write_text(f"python\0-m\0gpuspawner.node.{command}\0")
    assert (lab.helper_of(7, tmp_path), lab.helper_of(5, tmp_path)) == (8, None)


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
