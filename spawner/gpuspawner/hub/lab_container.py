"""What the hub asks of Docker about one container, so that "unknown" never reads as "gone".

Nothing here imports docker: the caller gives `call`, an async function that runs a method of
docker-py's APIClient by name and raises EngineFault. Only a 404 means that a container isn't there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..core.errors import EngineFault

Call = Callable[..., Awaitable[Any]]
"""`await call("inspect_container", name)`; raises EngineFault."""

GONE_SECONDS = 60.0
"""How long a removal that Docker says is under way may take before it counts as failed."""
_PAUSE_SECONDS = 0.1
_TAIL_LINES = 5
_TAIL_CHARS = 600


async def inspect(call: Call, container: str) -> dict[str, Any] | None:
    """Docker's document of a container by name or id; None only if Docker says that there is none."""
    try:
        found: dict[str, Any] = await call("inspect_container", container)
    except EngineFault as error:
        if error.status == 404:
            return None
        raise
    return found


async def stop(call: Call, container: str, grace_seconds: int) -> None:
    """SIGTERM, then SIGKILL after `grace_seconds`. No error if it is gone. Raises EngineFault."""
    try:
        await call("stop", container, timeout=grace_seconds)
    except EngineFault as fault:
        if fault.status != 404:
            raise


async def remove(call: Call, container: str) -> None:
    """Kills and removes a container and its anonymous volumes, and waits until Docker says it is gone.

    409 is Docker's "removal is already in progress": asked again until 404. Raises EngineFault for
    any other answer, and after GONE_SECONDS.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GONE_SECONDS
    while True:
        try:
            await call("remove_container", container, v=True, force=True)
            return
        except EngineFault as error:
            if error.status == 404:
                return
            if error.status != 409 or loop.time() > deadline:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)


async def log_tail(call: Call, container: str, secret: str = "") -> str:
    """The last words of a container in one line, without `secret`; empty if they can't be read."""
    raw: Any = b""
    with suppress(EngineFault):
        raw = await call("logs", container, stdout=True, stderr=True, tail=_TAIL_LINES)
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else ""
    if secret:
        text = text.replace(secret, "***")
    return " / ".join(line.strip() for line in text.splitlines() if line.strip())[-_TAIL_CHARS:]


def running(container: dict[str, Any]) -> bool:
    """Whether Docker's document says that the container runs (paused counts)."""
    return bool(container.get("State", {}).get("Running"))


def exit_status(container: dict[str, Any]) -> str:
    """How it ended, in words."""
    state = container.get("State", {})
    if state.get("OOMKilled"):
        return "it ran out of memory"
    error = str(state.get("Error") or "")
    return f"exit code {state.get('ExitCode')}" + (f", {error}" if error else "")


NOT_RUN = frozenset({126, 127})
"""Exit codes of a shell, of tini and of Docker for a command that can't be run or isn't there."""
_NOT_RUN_SIGNS = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "exec format error",
)


def exit_code(container: dict[str, Any]) -> int | None:
    """The exit code in Docker's document of a container that has ended."""
    code = container.get("State", {}).get("ExitCode")
    return code if isinstance(code, int) else None


def unable_to_run(words: str) -> str | None:
    """What Docker said of a command that the image can't run; None if it failed to start for another reason.

    Engine 20.10 and 28.5 pass on runc's words: `exec: "jupyterhub-singleuser": executable file not found`.
    """
    lower = words.lower()
    if "exec" not in lower or "mount" in lower or not any(sign in lower for sign in _NOT_RUN_SIGNS):
        return None
    return words[words.find("exec:") :] if "exec:" in words else words


def unmet_condition(words: str) -> str | None:
    """The condition of an NVIDIA image that NVIDIA's hook found unmet; None if it was something else.

    libnvidia-container 1.17: "requirement error: unsatisfied condition: cuda>=13.0, please update ...".
    """
    _, found, rest = words.partition("unsatisfied condition: ")
    return rest.split(", please")[0].strip() if found else None


def network_is_full(fault: EngineFault) -> bool:
    """Whether Docker found no address for a container (Engine 20.10)."""
    return "no available ipv4 addresses" in str(fault).lower()


def address_is_taken(fault: EngineFault) -> bool:
    """Whether Docker holds the address that a container asks for (Engine 20.10 and 28.5)."""
    return fault.status == 403 and "address already in use" in str(fault).lower()


class Removals:
    """What is being taken away in the background, by container name: one task a name.

    A start waits for the removal of its own name; a stop waits for it too.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Starts `work`, after what is under way for the same name."""
        earlier = self._tasks.get(name)

        async def run() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            await work

        task = asyncio.create_task(run(), name=f"remove {name}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._forget(name, done))

    def pending(self, name: str) -> bool:
        """Whether something is still being taken away."""
        return name in self._tasks

    async def wait(self, name: str) -> None:
        """Returns when nothing is under way for this name. Cancelling it doesn't stop the removal."""
        while (task := self._tasks.get(name)) is not None:
            await asyncio.wait([task])
            await asyncio.sleep(0)  # lets the done callback run

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
