"""`gpuspawner plan` with several machines: their pools, labels and homes, in table, JSON and picture."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.decide.replay.course import parse_split, replay
from gpuspawner.broker.decide.replay.replay_homes import ReplayHomes, SharedHomes
from gpuspawner.broker.decide.replay.simulate import MachineSummary, Visit
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.core.model import Device, Tier
from gpuspawner.core.want import Want
from gpuspawner.node.inventory.simulated import parse_simulated
from gpuspawner.tools import cli, plan

from tests.unit.lease_examples import CLOSED, RELEASING, RESERVED, RUNNING, lease
from tests.unit.tools.test_plan import run

TWO = ["plan", "--devices", "gpu-a: 2 x H100 80GB; gpu-b: 4 x A100 40GB", "--weeks", "1"]
ONE_EACH = parse_simulated("a: 1 x H100 80GB; b: 1 x H100 80GB")
HOUR = 3600.0
GPU = Tier("gpu", "GPU", want=Want(1))
SITE = """
c.GpuSite.pools = [
    {"name": "class", "mode": "slice", "slices": 4, "nodes": ["gpu-b"]},
    {"name": "whole", "nodes": ["gpu-a"]},
]
c.GpuSite.node_labels = {"gpu-a": ["infiniband"]}
c.GpuSite.tiers = [
    {"name": "cpu"},
    {"name": "slice", "mode": "slice", "memory": "9G"},
    {"name": "pair", "devices": 2, "node_label": "infiniband"},
]
"""


def settings(folder: Path, more: str = SITE) -> list[str]:
    """The arguments for this settings file."""
    config = folder / "jupyterhub_config.py"
    config.write_text(f'c.GpuSite.state_dir = "{folder}"\n{more}')
    return ["--config", str(config)]


def rows(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_each_machine_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *TWO, "--class", "10 students, Mon 10-12", "--split", "whole")
    assert (status, err) == (1, "")
    assert rows(out)[2:5] == [
        "whole GPUs 10 6 4 0 s 0 s 98% 98%",
        "gpu-a, 2 GPUs 2 96% 96%",
        "gpu-b, 4 GPUs 4 99% 99%",
    ]


def test_json_has_the_machines_and_one_machine_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, *TWO, "--class", "6 students, Mon 10-12", "--split", "whole", "--json")
    (whole,) = json.loads(out)["splits"]
    fractions = {key: pytest.approx(0.95, abs=0.05) for key in ("held_fraction", "busy_fraction")}
    assert whole["machines"] == [
        {"name": "gpu-a", "gpus": 2, "served": 2, **fractions},
        {"name": "gpu-b", "gpus": 4, "served": 4, **fractions},
    ]
    one = ["plan", "--devices", "gpu-a: 2 x H100 80GB", "--weeks", "1", "--split", "whole", "--json"]
    _, out, _ = run(capsys, *one, "--class", "2 students, Mon 10-12")
    assert "machines" not in json.loads(out)["splits"][0]


def test_the_picture_names_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    path = tmp_path / "week.svg"
    run(capsys, *TWO, "--class", "6 students, Mon 10-12", "--split", "whole", "--picture", str(path))
    assert all(f"<!-- on {name} -->" in path.read_text() for name in ("gpu-a", "gpu-b"))


def test_the_pools_of_the_settings_on_their_machines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site = settings(tmp_path)
    words = [*TWO, *site, "--class", "20 students, Mon 10-12, 6 GB", "--split", "pools"]
    status, out, err = run(capsys, *words)
    assert (status, err) == (1, "")
    assert rows(out)[2:5] == [
        "pools of the settings 20 16 4 0 s 0 s 65% 65%",
        "gpu-a, 2 GPUs 0 0% 0%",
        "gpu-b, 4 GPUs 16 97% 97%",
    ]
    status, out, _ = run(capsys, *words, "--tier", "pair")  # two GPUs of one machine with the label
    assert rows(out)[2:5] == [
        "pools of the settings 20 1 19 0 s 0 s 33% 33%",
        "gpu-a, 2 GPUs 1 100% 100%",
        "gpu-b, 4 GPUs 0 0% 0%",
    ]
    # Without --split they are shown beside the others.
    _, out, _ = run(capsys, *TWO, *site, "--class", "2 students, Mon 10-12")
    assert [row for row in rows(out) if row.startswith("pools of the settings")]


@pytest.mark.parametrize(
    ("arguments", "more", "sentence"),
    [
        (["--homes", "far"], SITE, "--homes is 'far': give local or shared."),
        (["--split", "turns"], SITE, "Turns are forecast for the GPUs of one machine"),
        (["--split", "pools"], "c.GpuSite.tiers = [{'name': 'cpu'}]", "The settings have no tier with a GPU"),
        (["--split", "pools", "--tier", "x"], SITE, "There is no tier 'x' in the settings: there are cpu,"),
        (["--split", "pools"], "c.GpuSite.pools = [{'name': 't', 'mode': 'turns'}]\n"
         "c.GpuSite.tiers = [{'name': 't', 'mode': 'turns'}]", "Pool 't' has no seats in the settings, and"),
        (["--split", "pools"], "c.GpuSite.pools = [{'name': 'w', 'nodes': ['z']}]",
         "None of these GPUs is in a pool of the settings"),
    ],
)  # fmt: skip
def test_what_is_odd_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], more: str, sentence: str
) -> None:
    words = [*TWO, *settings(tmp_path, more), "--class", "2 students, Mon 10-12", *arguments]
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"gpuspawner plan: {sentence}")


def visits() -> list[Visit]:
    """Ada is on a first; when she comes again, a is held by cy, and b is free."""
    return [
        Visit(0, "ada", GPU, HOUR),
        Visit(2 * HOUR, "cy", GPU, 5 * HOUR),
        Visit(3 * HOUR, "ada", GPU, HOUR),
    ]


@pytest.mark.parametrize(
    ("homes", "waited_hours", "node"),
    [(ReplayHomes(("a", "b")), 4, "a"), (SharedHomes(), 0, "b"), (None, 0, "b")],
)
def test_who_comes_again_gets_a_gpu_where_the_home_is(homes: Any, waited_hours: int, node: str) -> None:
    made = replay(ONE_EACH, parse_split("whole", ONE_EACH), visits(), 10 * HOUR, (homes,))
    _, cy, ada = made.outcomes
    assert (cy.node, ada.node, ada.wait_seconds) == ("a", node, waited_hours * HOUR)
    assert [each.name for each in made.machines] == ["a", "b"]
    assert sum(each.served for each in made.machines) == 3


@pytest.mark.parametrize(("recorded", "node"), [("b", "b"), ("elsewhere", "a"), (None, "a")])
def test_a_recorded_home_counts_on_a_machine_that_is_planned(recorded: str | None, node: str) -> None:
    tier = replace(GPU, want=replace(GPU.want, node=recorded))
    made = replay(
        ONE_EACH, parse_split("whole", ONE_EACH), [Visit(0, "ada", tier, HOUR)], HOUR, (ReplayHomes("ab"),)
    )
    assert made.machines == tuple(
        MachineSummary(each, 1, int(each == node), float(each == node), float(each == node)) for each in "ab"
    )


async def fill(path: Path, times: Any) -> None:
    """One session of ada, whose home is on b and whose tier wants the label; another one of ben."""
    ledger = times.make_ledger(path)
    await ledger.open()
    for key, user, want in (
        ("a" * 32, "ada", Want(1, node="b", node_label="infiniband")),
        ("b" * 32, "ben", Want(1)),
    ):
        asked = replace(lease(key, RESERVED, f"GPU-{user}"), user=user, want=want, created_at=times.now())
        for state in (RESERVED, RUNNING, RELEASING, CLOSED):
            await ledger.save(replace(asked, state=state, since=times.now()), at=times.now())
            if state is RUNNING:
                times.pass_seconds(HOUR)
    await ledger.close()


def test_recorded_sessions_keep_their_machines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, times: Any
) -> None:
    began = times.now()
    asyncio.run(fill(tmp_path / "ledger.sqlite", times))
    more = (
        f'c.GpuBroker.database_url = "sqlite:///{tmp_path}/ledger.sqlite"\n'
        'c.GpuSite.node_labels = {"b": ["infiniband"]}\n'
    )
    weeks = str(int((datetime.now(UTC) - began) / timedelta(weeks=1)) + 2)
    words = ["plan", *settings(tmp_path, more), "--recorded", "--weeks", weeks, "--json"]
    machines = ["--devices", "a: 1 x H100 80GB; b: 1 x H100 80GB", "--split", "whole, 2 slices, pools"]
    status, out, err = run(capsys, *words, *machines)
    assert (status, err) == (0, "")
    served = [[each["served"] for each in split["machines"]] for split in json.loads(out)["splits"]]
    assert served == [[1, 1], [1, 1], [1, 1]]
    _, out, _ = run(capsys, *words, "--devices", "a: 1 x H100 80GB; c: 1 x H100 80GB", "--split", "whole")
    (whole,) = json.loads(out)["splits"]
    assert whole["refused"] == {"no_capacity": 1}  # no machine has the label


def test_the_gpus_that_the_running_broker_knows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = 'c.GpuBroker.agents_address = "10.0.0.1:8098"\nc.GpuSite.inventory = "simulated"\n'
    known: list[dict[str, Any]] = []

    async def ask_status(path: str) -> tuple[dict[str, Any], str]:
        if not known:
            raise BrokerUnavailable("no broker")
        return {"devices": known}, "UTC"

    monkeypatch.setattr(cli, "ask_status", ask_status)
    words = ["plan", *settings(tmp_path, more), "--class", "1 student, Mon 10-12", "--split", "whole"]
    _, out, err = run(capsys, *words)
    assert err == "The broker doesn't answer: these are the GPUs of this machine alone.\n"
    known += [document(each) for each in ONE_EACH]
    known.append({**known[0], "uuid": "MIG-1", "mode": "mig"})
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    assert rows(out)[3:5] == ["a, 1 GPU 15 100% 100%", "b, 1 GPU 0 0% 0%"]


def document(device: Device) -> dict[str, Any]:
    """What a plan reads of a device in the broker's status."""
    names = ("uuid", "model", "index", "memory_bytes", "node")
    return {**{name: getattr(device, name) for name in names}, "mode": "whole"}


def test_a_single_machine_takes_no_notice_of_homes() -> None:
    fleet = plan.fleet_of(parse_simulated("2 x H100 80GB"), has_local_homes=True)
    assert isinstance(fleet.homes(), SharedHomes)
    assert (fleet.machines, len(fleet.gpus)) == (("",), 2)
