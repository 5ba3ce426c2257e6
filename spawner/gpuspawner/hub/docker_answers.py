"""What Docker's answers about one container mean: its state, its exit code, its error messages. Pure."""

from __future__ import annotations

from typing import Any

from ..core.errors import EngineFault

NOT_RUN = frozenset({126, 127})
"""Exit codes of a shell, tini and Docker for a command that can't be run or doesn't exist."""
_NOT_RUN_SIGNS = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "exec format error",
)
_TAIL_CHARS = 600
KILLED = 137
"""The exit code of a process that SIGKILL ended, 128 + 9: `docker kill`, or a machine without memory."""


def running(container: dict[str, Any]) -> bool:
    """Whether the container runs, or is paused, according to Docker's document."""
    return bool(container.get("State", {}).get("Running"))


def exit_code(container: dict[str, Any]) -> int | None:
    """The exit code in Docker's document of a container that has ended."""
    code = container.get("State", {}).get("ExitCode")
    return code if isinstance(code, int) else None


def exit_status(container: dict[str, Any]) -> str:
    """How it ended, as a phrase."""
    state = container.get("State", {})
    if state.get("OOMKilled"):
        return "it ran out of memory"
    error = str(state.get("Error") or "")
    return exit_words(state.get("ExitCode")) + (f", {error}" if error else "")


def exit_words(code: int | None) -> str:
    """The phrase for an exit code."""
    return f"exit code {code}"


def log_end(raw: bytes, secret: str) -> str:
    """The end of a container's log, without empty lines and without `secret`."""
    text = raw.decode("utf-8", "replace")
    if secret:
        text = text.replace(secret, "***")
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())[-_TAIL_CHARS:]


def unable_to_run(message: str) -> str | None:
    """Docker's message about a command that the image can't run; None if the start failed for another reason.

    Engine 20.10 and 28.5 pass on runc's message: `exec: "jupyterhub-singleuser": executable file not found`.
    `docker-init` is Docker's own program: if that is missing, the image is not the reason.
    """
    lower = message.lower()
    if '"docker-init"' in lower:
        return None
    if "exec" not in lower or "mount" in lower or not any(sign in lower for sign in _NOT_RUN_SIGNS):
        return None
    return message[message.find("exec:") :] if "exec:" in message else message


def unmet_condition(message: str) -> str | None:
    """The condition of an NVIDIA image that NVIDIA's hook found not met; None for another error.

    libnvidia-container 1.17: "requirement error: unsatisfied condition: cuda>=13.0, please update ...".
    """
    _, found, rest = message.partition("unsatisfied condition: ")
    return rest.split(", please")[0].strip() if found else None


def network_is_full(fault: EngineFault) -> bool:
    """Whether Docker had no free address for a container (Engine 20.10)."""
    return "no available ipv4 addresses" in str(fault).lower()


def address_is_taken(fault: EngineFault) -> bool:
    """Whether Docker uses the requested address for another container (Engine 20.10 and 28.5)."""
    return fault.status == 403 and "address already in use" in str(fault).lower()


def network_is_missing(fault: EngineFault, network: str) -> bool:
    """Whether a container could not start because its network doesn't exist (Engine 20.10 and 28.5)."""
    return fault.status == 404 and f"network {network} not found" in str(fault)
