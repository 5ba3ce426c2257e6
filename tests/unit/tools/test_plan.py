"""`gpuspawner plan` as typed: the table, the answer in one line, JSON, the picture, the ledger."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.decision import Decision, DecisionKind
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
    assert rows[2:5] == [
        "8 slices of 9.9 GiB 60 60 0 0 s 0 s 90% 90%",
        "whole GPUs 60 8 52 0 s 0 s 100% 100%",
        "whole GPUs: 52 gave up at the end of class",
    ]


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
        "refused_by_quota": [],
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--class", "many students"], "gpuspawner plan: The class has a part 'many students'"),
        (["--split", "9"], "gpuspawner plan: The split '9' is unknown"),
        (
            ["--class", "2 students, Mon 10-12", "--recorded"],
            "gpuspawner plan: --class and --recorded are",
        ),
        (["--groups", "a"], "gpuspawner plan: --groups are those of a class"),
        (["--class", "2 students, Mon 10-12", "--groups", "a"], "gpuspawner plan: --groups and --tier only"),
        (["--quotas", "--tier", "gpu"], "gpuspawner plan: --tier is what a class asks for"),
        (["--class", "-2 students, Mon 10-12"], "gpuspawner plan: The class has a part '-2 students'"),
        (["--class", "2 students, Mon 12-10"], "gpuspawner plan: The class must end after it begins"),
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


QUOTAS = [{"devices": 1}, {"group": "students", "gpu_hours": 1.5, "timezone": "Europe/Berlin"}]


def with_quotas(folder: Path, quotas: list[dict[str, Any]], more: str = "") -> list[str]:
    """The arguments for settings with these quotas."""
    config = folder / "jupyterhub_config.py"
    config.write_text(f'c.GpuSite.state_dir = "{folder}"\nc.GpuSite.quotas = {quotas!r}\n{more}')
    return ["--config", str(config), "--quotas"]


def test_who_a_quota_refuses_and_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """1.5 GPU-hours a week are used up in Monday's class, which ends early; on Thursday all are refused."""
    arguments = [*with_quotas(tmp_path, QUOTAS), "--split", "whole", "--weeks", "2"]
    words = ["--class", "4 students, Mon+Thu 10-12", "--groups", "students"]
    status, out, err = run(capsys, *FOUR, *words, *arguments)
    assert (status, err) == (1, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[3] == "whole GPUs: 8 had used up their GPU-hours"
    assert lines[4].startswith(
        "whole GPUs: Refused 8 times: student-1, student-2, student-3 and 1 other. You have used 1.5 of 1.5 "
        "GPU-hours this week; new ones from"
    )
    _, out, _ = run(capsys, *FOUR, *words, *arguments, "--json")
    (whole,) = json.loads(out)["splits"]
    assert whole["refused"] == {"quota_gpu_hours": 8}
    (refused,) = whole["refused_by_quota"]
    assert (refused["reason"], refused["times"], len(refused["users"])) == ("quota_gpu_hours", 8, 4)
    status, _, _ = run(capsys, *FOUR, *words[:2], *arguments)  # not members: one GPU each is enough
    assert status == 0


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
    quotas = with_quotas(tmp_path, [{"user": "user-b", "gpu_hours": 0.5}], config.read_text())
    status, out, err = run(
        capsys, "plan", *quotas, "--devices", "1 x H100 80GB", "--recorded", "--split", "2 slices",
        "--weeks", weeks, "--json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    (halves,) = json.loads(out)["splits"]
    assert (halves["visits"], halves["served"], halves["refused"]) == (2, 2, {})
    assert halves["held_fraction"] == pytest.approx(2 * 0.5 / 2, abs=0.02)


def test_without_a_class_the_answer_says_that_it_is_invented(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(f'c.GpuSite.state_dir = "{tmp_path}"\n')
    status, out, err = run(capsys, *FOUR, "--weeks", "1", "--config", str(config), "--split", "whole")
    assert (status, err, list(tmp_path.iterdir())) == (1, "", [config])  # no ledger was made
    assert out.splitlines()[0] == plan.NO_HISTORY
    assert out.splitlines()[-1].startswith("No: 30 students at Mon 10:00 do not fit")


async def decide(path: Path, times: Any, *decisions: tuple[DecisionKind, str, dict[str, Any]]) -> None:
    ledger = times.make_ledger(path)
    await ledger.open()
    for kind, subject, document in decisions:
        await ledger.decide(Decision(times.now(), kind, subject, document, "noether", ""))
    await ledger.close()


def test_without_a_class_the_ledger_s_sessions_are_replayed_with_limits_on_their_tiers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, times: Any
) -> None:
    began = times.now()
    asyncio.run(fill(tmp_path / "ledger.sqlite", times))
    only_cpu = (DecisionKind.QUOTA, "everybody", {"tiers": ["cpu"]})
    asyncio.run(decide(tmp_path / "ledger.sqlite", times, only_cpu))
    weeks = str(int((datetime.now(UTC) - began).days / 7) + 2)
    more = f'c.GpuBroker.database_url = "sqlite:///{tmp_path}/ledger.sqlite"\n'
    tiers = "c.GpuSite.tiers = [{'name': 'cpu'}, {'name': 'gpu', 'devices': 1}]\n"
    arguments = with_quotas(tmp_path, [{"user": "ada", "leases": 3}], more + tiers)
    status, out, err = run(capsys, *FOUR, "--weeks", weeks, "--split", "whole", *arguments)
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"2 sessions of the last {weeks} weeks, as the ledger has them."
    assert lines[5] == "whole GPUs: 2 may not use that tier"


def test_a_class_meets_tier_limits_properties_of_its_group_and_a_lab_session(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, times: Any
) -> None:
    """Three of four GPUs are kept for another class; the group's own properties give one GPU each."""
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    lab = {
        "name": "lab", "group": "other", "tier": "gpu", "seats": 3, "first": "2026-01-05", "begins": "09:30",
        "length_seconds": 9000, "rule": "FREQ=WEEKLY;BYDAY=MO", "timezone": "UTC", "lead_seconds": 3600.0,
        "grace_seconds": 9000.0,
    }  # fmt: skip
    asyncio.run(
        decide(
            tmp_path / "ledger.sqlite",
            times,
            (DecisionKind.PROPERTIES, "students", {"tiers": ["gpu"]}),
            (DecisionKind.PROPERTIES, "guests", {"tiers": ["cpu"]}),
            (DecisionKind.SESSION, "lab", lab),
        )
    )
    more = (
        f'c.GpuBroker.database_url = "{url}"\n'
        "c.GpuSite.tiers = [{'name': 'cpu'}, {'name': 'gpu', 'devices': 1}]\n"
    )
    arguments = [*with_quotas(tmp_path, [], more), "--split", "whole", "--weeks", "1", "--json"]
    refused = []
    for group in ("students", "guests", "other"):
        words = ["--class", "4 students, Mon 10-12", "--groups", group, "--tier", "gpu"]
        _, out, err = run(capsys, *FOUR, *words, *arguments)
        assert err == ""
        (whole,) = json.loads(out)["splits"]
        refused.append(whole["refused"])
    assert refused == [{"session_reserved": 3}, {"quota_tier": 4}, {}]
    status, _, err = run(capsys, *FOUR, "--class", "4 students, Mon 10-12", "--tier", "x", *arguments)
    assert (status, err) == (
        2,
        "gpuspawner plan: There is no tier 'x' in the settings: there are cpu, gpu.\n",
    )


TURNS = {"name": "turns", "mode": "turns", "max_turn": 15, "pause_after": 5}
TURN_TIERS = [{"name": "cpu"}, {"name": "turns", "mode": "turns", "memory": "24G"}]


def with_turns(folder: Path, *pools: dict[str, Any], tiers: list[dict[str, Any]] = TURN_TIERS) -> list[str]:
    """The arguments for settings with these pools."""
    config = folder / "jupyterhub_config.py"
    config.write_text(
        f'c.GpuSite.state_dir = "{folder}"\nc.GpuSite.pools = {list(pools)!r}\nc.GpuSite.tiers = {tiers!r}\n'
    )
    return ["--config", str(config)]


def test_a_class_in_turns_beside_whole_gpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*CLASS, "30 students, Mon 10-11, busy 30%, 6 GB", "--split", "turns, whole"]
    status, out, err = run(capsys, *words, *with_turns(tmp_path, TURNS))
    assert (status, err) == (0, "")
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert max(map(len, out.splitlines()[:-1])) <= 80  # the last line is a sentence
    assert rows == [
        "Not Median 95 % wait GPUs GPUs",
        "Split Asked Served served wait at most held busy",
        "turns, 32 seats 60 60 0 0 s 0 s – 89%",
        "whole GPUs 60 8 52 0 s 0 s 99% 30%",
        "whole GPUs: 52 gave up at the end of class",
        "",
        "Cells, from Run Median 95 % wait GPUs",
        "to the first result wait at most busy Simulated",
        "turns, 32 seats 40 s 73 s 89% 30 students, 4 GPUs, 30 min",
        "whole GPUs 53 min 58 min 29% 30 students, 4 GPUs, 60 min",
        "",
        "Yes: 30 students at Mon 10:00 fit with turns, 32 seats: each has a seat. Half of their cells wait "
        "at most 40 s for a GPU, 95 % at most 73 s.",
    ]


def test_the_settings_pool_is_shown_without_being_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = with_turns(tmp_path, {**TURNS, "seats": 20})
    status, out, err = run(capsys, *CLASS, "21 students, Mon 10-11, busy 5%, 6 GB", *arguments, "--json")
    splits = json.loads(out)["splits"]
    assert (status, err) == (1, "")
    assert [each["split"] for each in splits] == [
        "whole GPUs", "2 slices of 40 GiB", "4 slices of 20 GiB", "8 slices of 9.9 GiB", "turns, 20 seats",
    ]  # fmt: skip
    assert ("cells" in splits[0], splits[-1]["cells"]["turns"]["students"]) == (False, 20)


def test_more_students_than_seats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [*with_turns(tmp_path, {**TURNS, "seats": 20}), "--split", "turns"]
    status, out, _ = run(capsys, *CLASS, "30 students, Mon 10-11, busy 5%, 6 GB", *arguments, "--json")
    document = json.loads(out)
    (turns,) = document["splits"]
    assert status == 1
    assert document["answer"] == "No: 30 students at Mon 10:00 do not fit with turns, 20 seats: 10 have none."
    assert (turns["seats"], turns["served"], turns["refused"]) == (20, 40, {"queue_timeout": 20})
    assert turns["held_fraction"] is None
    assert turns["busy_fraction"] == turns["cells"]["turns"]["used_fraction"]


def test_a_class_that_needs_more_than_any_tier_promises(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [*with_turns(tmp_path, TURNS), "--split", "turns", "--json"]
    status, out, _ = run(capsys, *CLASS, "3 students, Mon 10-11, 30 GB", *arguments)
    (turns,) = json.loads(out)["splits"]
    assert (status, turns["refused"], turns["cells"]) == (1, {"no_capacity": 6}, None)


def test_two_pools_of_turns_are_two_splits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pools = ({**TURNS, "name": name, "seats": seats, "devices": {"count": 2}}
             for name, seats in (("a", 1), ("b", 2)))  # fmt: skip
    tiers = [{"name": name, "mode": "turns", "pool": name, "memory": "24G"} for name in ("a", "b")]
    arguments = [*with_turns(tmp_path, *pools, tiers=tiers), "--split", "turns"]
    status, out, _ = run(capsys, *CLASS, "2 students, Mon 10-11, busy 5%, 6 GB", *arguments)
    assert status == 1
    assert out.splitlines()[-1] == (
        "No: 2 students at Mon 10:00 do not fit with turns of pool a, 1 seat: 1 have none."
        " They fit with turns of pool b, 2 seats."
    )


def test_a_budget_does_not_count_in_turns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*CLASS, "2 students, Mon 10-11, busy 5%, 6 GB", "--split", "turns, whole", "--json"]
    _, out, err = run(capsys, *words, *with_quotas(tmp_path, [{"gpu_hours": 0.5}]))
    turns, whole = json.loads(out)["splits"]
    assert err == ""
    assert turns["refused"] == {}
    assert whole["held_fraction"] == pytest.approx(2 * 0.5 / 4, abs=0.01)


def test_gpus_of_two_types_have_no_turns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["plan", "--devices", "1 x H100 80GB, 1 x A100 40GB", "--class", "2 students, Mon 10-11"]
    status, out, err = run(capsys, *words, *with_turns(tmp_path, TURNS), "--split", "turns")
    assert (status, out) == (2, "")
    assert "GPUs in turns must be of one type" in err


def test_the_ledger_has_no_cells(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, *FOUR, "--recorded", "--split", "turns", *with_turns(tmp_path, TURNS))
    assert (status, out) == (2, "")
    assert err == (
        "gpuspawner plan: Turns are forecast for a class, not for the ledger's sessions: give --class.\n"
    )
