"""`gpuspawner plan` as typed: the table, the answer in one line, JSON, the picture, the ledger."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.tools import cli, plan

from tests.unit.lease_examples import CLOSED, RELEASING, RESERVED, RUNNING, lease

FOUR = ["plan", "--devices", "4 x H100 80GB"]
CLASS = [*FOUR, "--weeks", "2", "--class"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_class_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *CLASS, "30 students, Mon 10-12, 6 GB", "--split", "8 slices, whole")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "Yes: 30 students at Mon 10:00 fit with 8 slices of 9.9 GiB. Nobody waits."
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert rows[1] == "8 slices of 9.9 GiB 60 60 0 0 s 0 s 90% 90%"
    assert rows[2] == "whole GPUs 60 8 0 0 s 0 s 100% 100% 52 gave up at the end of class"


def test_a_class_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *CLASS, "30 students, Mon 10-12")
    assert status == 1
    assert out.splitlines()[-1] == (
        "No: 30 students at Mon 10:00 do not fit with whole GPUs, which serve 4 at once."
        " They fit with 8 slices of 9.9 GiB."
    )


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *CLASS, "5 students, Mon 10-12", "--split", "whole", "--json")
    document = json.loads(out)
    assert status == 1
    assert document["answer"].startswith("No: 5 students")
    (whole,) = document["splits"]
    held, busy = whole.pop("held_fraction"), whole.pop("busy_fraction")
    assert held == busy == pytest.approx(0.975, abs=0.01)
    assert whole == {
        "split": "whole GPUs",
        "visits": 10,
        "served": 8,
        "waited": 0,
        "median_wait_seconds": 0.0,
        "p95_wait_seconds": 0.0,
        "refused": {"queue_timeout": 2},
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--class", "many students"], "gpuspawner plan: The class has a part 'many students'"),
        (["--split", "9"], "gpuspawner plan: The split '9' is unknown"),
    ],
)
def test_what_is_odd_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    status, out, err = run(capsys, *FOUR, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(sentence)


def test_the_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    path = tmp_path / "week.svg"
    status, _, err = run(
        capsys, *CLASS, "30 students, Mon 10-12", "--split", "whole,8 slices", "--picture", str(path)
    )
    assert (status, err) == (1, "")
    text = path.read_text()
    assert text.startswith("<?xml")
    assert "8 slices of 9.9 GiB" in text


def test_spans_in_words() -> None:
    assert [plan.span(each) for each in (None, 0.0, 119.0, 120.0, 7199.0, 7500.0)] == [
        "–", "0 s", "119 s", "2 min", "2 h 00 min", "2 h 05 min",
    ]  # fmt: skip


async def fill(path: Path, times: Any) -> None:
    """Two users in turn on one GPU, an hour each; the second waited as long."""
    ledger = times.make_ledger(path)
    await ledger.open()
    for number, user in enumerate(("a", "b")):
        asked = replace(lease(user * 32, RESERVED, "GPU-0"), created_at=times.now() - timedelta(hours=number))
        for state in (RESERVED, RUNNING, RELEASING, CLOSED):
            await ledger.save(replace(asked, state=state, since=times.now()), at=times.now())
            if state is RUNNING:
                times.pass_seconds(3600)
    await ledger.close()


def test_the_recorded_time_in_other_splits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, times: Any
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    began = times.now()
    asyncio.run(fill(tmp_path / "ledger.sqlite", times))
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(f'c.GpuBroker.database_url = "{url}"\nc.GpuSite.state_dir = "{tmp_path}"\n')
    weeks = str(int((datetime.now(UTC) - began).days / 7) + 2)
    status, out, err = run(
        capsys, "plan", "--config", str(config), "--devices", "1 x H100 80GB", "--recorded",
        "--split", "whole, 2 slices", "--weeks", weeks, "--json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    whole, halves = json.loads(out)["splits"]
    assert (whole["visits"], whole["waited"], whole["p95_wait_seconds"]) == (2, 1, 3600.0)
    assert (halves["visits"], halves["waited"], halves["p95_wait_seconds"]) == (2, 0, 0.0)
