"""Describes a service of a Swarm and its task as Docker describes a container. Pure.

So the hub reads labs of both kinds with `docker_answers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import EngineFault, StartFault
from ..docker_answers import KILLED

LANE = "gpuspawner.lane"
"""The label of a service and of its network: the number of the lab's own network."""
_BEFORE = frozenset({"new", "pending", "assigned", "accepted", "preparing", "ready", "starting"})
_ENDED = frozenset({"complete", "failed", "shutdown", "rejected", "remove"})
"""A task's states (moby 28, `api/types/swarm/task.go`). Others ("running", "orphaned") may compute."""
_NO_CONTAINER = 404


def newest_task(tasks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The task that counts; None if there is none."""
    return max(tasks, key=lambda task: str(task.get("CreatedAt", "")), default=None)


def state_of(task: Mapping[str, Any] | None) -> str:
    """Swarm's word for the state of a task; "" if there is none."""
    return str((task or {}).get("Status", {}).get("State", ""))


def is_starting(task: Mapping[str, Any] | None) -> bool:
    """Whether its program was not started yet."""
    return task is None or state_of(task) in _BEFORE


def may_run(task: Mapping[str, Any] | None) -> bool:
    """Whether its program may run; what a lost machine did last counts as running."""
    return task is not None and state_of(task) not in _ENDED


def document_of(service: Mapping[str, Any], tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The service as a container."""
    spec = service["Spec"]
    container = spec["TaskTemplate"]["ContainerSpec"]
    task = newest_task(tasks)
    status = (task or {}).get("Status", {})
    return {
        "Id": service["ID"],
        "Name": f"/{spec['Name']}",
        "Config": {
            "Labels": dict(spec.get("Labels") or {}),
            "Env": list(container.get("Env") or ()),
            "Image": container.get("Image", ""),
        },
        "State": {
            "Running": may_run(task),
            "ExitCode": int((status.get("ContainerStatus") or {}).get("ExitCode") or 0),
            "OOMKilled": False,
            "Error": _why_ended(task),
        },
        "NetworkSettings": {"Networks": {}},
    }


def _why_ended(task: Mapping[str, Any] | None) -> str:
    """What is known besides the exit code, for people; "" if that is nothing."""
    if task is None or may_run(task):
        return ""
    status = task["Status"]
    code = (status.get("ContainerStatus") or {}).get("ExitCode")
    if state_of(task) == "failed" and code == KILLED:
        return "it was killed, probably because it ran out of memory"
    words = str(status.get("Err") or "")
    return "" if words.startswith("task: non-zero exit") else words


def start_fault(task: Mapping[str, Any], machine: str, image: str) -> EngineFault | StartFault | None:
    """Why a task could not be started, as Docker says it of a container; None if it was started.

    Swarm passes the engine's words on (seen with moby 28.5).
    """
    words = str(task.get("Status", {}).get("Err") or "")
    if state_of(task) == "rejected" and "No such image" in words:
        return StartFault(
            f"The image {image} isn't on the machine {machine}. Admin: bring it there "
            f"(`docker save {image} | ssh {machine} docker load`), or use one that a registry has.",
            "image_missing",
        )
    started = state_of(task) not in ("rejected",) and not words.startswith("starting container failed")
    return None if started else EngineFault(words, _NO_CONTAINER if "not found" in words else 500)


def unplaced(task: Mapping[str, Any] | None) -> str:
    """Why Swarm gives the task to no machine, in its words; "" if it does or is still looking."""
    words = str((task or {}).get("Status", {}).get("Err") or "")
    return words if state_of(task) == "pending" else ""
