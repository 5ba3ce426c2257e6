"""A service and its task read as a container: what runs, how it ended, why it didn't start."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault, StartFault
from gpuspawner.hub.docker_answers import exit_status, running
from gpuspawner.hub.swarm.document import document_of, is_starting, newest_task, start_fault

SERVICE: dict[str, Any] = {
    "ID": "s1",
    "Spec": {
        "Name": "gpuspawner-ada",
        "Labels": {"gpuspawner.user": "ada", "gpuspawner.lane": "7"},
        "TaskTemplate": {"ContainerSpec": {"Image": "sha256:12", "Env": ["A=1"]}},
    },
}


def task(state: str, error: str = "", code: int = 0, created: str = "2026-11-27T00:00:00Z") -> dict[str, Any]:
    status = {"State": state, "Err": error, "ContainerStatus": {"ExitCode": code}}
    return {"CreatedAt": created, "Status": status}


def test_the_whole_document() -> None:
    assert document_of(SERVICE, [task("running")]) == {
        "Id": "s1",
        "Name": "/gpuspawner-ada",
        "Config": {
            "Labels": {"gpuspawner.user": "ada", "gpuspawner.lane": "7"},
            "Env": ["A=1"],
            "Image": "sha256:12",
        },
        "State": {"Running": True, "ExitCode": 0, "OOMKilled": False, "Error": ""},
        "NetworkSettings": {"Networks": {}},
    }


@pytest.mark.parametrize(
    ("tasks", "runs", "status"),
    [
        ([], False, "exit code 0"),
        ([task("preparing")], True, ""),
        ([task("running")], True, ""),
        ([task("orphaned")], True, ""),
        ([task("complete")], False, "exit code 0"),
        ([task("failed", "task: non-zero exit (3)", 3)], False, "exit code 3"),
        (
            [task("failed", "task: non-zero exit (137)", 137)],
            False,
            "exit code 137, it was killed, probably because it ran out of memory",
        ),
        ([task("shutdown", "", 143)], False, "exit code 143"),
        ([task("rejected", "No such image: x")], False, "exit code 0, No such image: x"),
    ],
)
def test_what_runs_and_how_it_ended(tasks: list[dict[str, Any]], runs: bool, status: str) -> None:
    document = document_of(SERVICE, tasks)
    assert running(document) is runs
    if not runs:
        assert exit_status(document) == status


def test_the_newest_task_counts() -> None:
    old, new = task("failed", created="2026-11-27T00:00:00Z"), task("running", created="2026-11-27T00:00:01Z")
    assert newest_task([new, old]) is new
    assert newest_task([]) is None


@pytest.mark.parametrize(("state", "starting"), [("pending", True), ("starting", True), ("running", False)])
def test_what_is_starting(state: str, starting: bool) -> None:
    assert is_starting(task(state)) is starting
    assert is_starting(None)


def test_why_it_did_not_start() -> None:
    missing = start_fault(task("rejected", "No such image: sha256:12"), "b", "sha256:12")
    assert isinstance(missing, StartFault)
    assert missing.reason == "image_missing"
    assert str(missing) == (
        "The image sha256:12 isn't on the machine b. Admin: bring it there (`docker save sha256:12 | ssh b "
        "docker load`), or use one that a registry has."
    )
    words = 'starting container failed: exec: "/x": stat /x: no such file or directory'
    failed = start_fault(task("failed", words, 127), "b", "sha256:12")
    assert isinstance(failed, EngineFault)
    assert str(failed) == words
    assert start_fault(task("failed", "task: non-zero exit (3)", 3), "b", "x") is None
    assert start_fault(task("running"), "b", "x") is None
