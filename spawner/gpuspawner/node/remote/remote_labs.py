"""Another machine's Docker Engine, lease folders and homes, as its agent answers for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from ...core.errors import DeviceFault, EngineFault
from ...core.finding import Finding
from ..engine import Container, ContainerEvent, EventsConnected
from ..homes import HomeFacts, Skimmed
from .wire import WRITES_TOGETHER, docker_event_of

Ask = Callable[..., Awaitable[Any]]
"""Calls the agent by the name of a call. Raises what it raised; DeviceFault while the machine is away."""


class RemoteEngine:
    """Implements `Engine`. Each coroutine raises EngineFault, also while the machine is away."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._sink: Callable[[ContainerEvent | EventsConnected], None] = lambda item: None

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        """See `Engine`, as for all."""
        found: tuple[Container, ...] = await self._call("list", lease_id)
        return found

    async def remove(self, container_id: str) -> None:
        """See `Engine`."""
        await self._call("remove", container_id)

    async def stop(self, container_id: str) -> None:
        """See `Engine`."""
        await self._call("stop", container_id)

    async def finished_at(self, container_id: str) -> datetime | None:
        """See `Engine`."""
        time: datetime | None = await self._call("finished_at", container_id)
        return time

    async def started_at(self, container_id: str) -> datetime | None:
        """See `Engine`."""
        time: datetime | None = await self._call("started_at", container_id)
        return time

    async def main_pid(self, container_id: str) -> int | None:
        """See `Engine`; a number of that machine."""
        pid: int | None = await self._call("main_pid", container_id)
        return pid

    async def is_denied(self, container_id: str, device: str) -> bool:
        """See `Engine`."""
        denied: bool = await self._call("is_denied", container_id, device)
        return denied

    async def exists(self, container_id: str) -> bool:
        """See `Engine`."""
        exists: bool = await self._call("exists", container_id)
        return exists

    async def images(self) -> frozenset[str]:
        """See `Engine`; an agent of an earlier release has no answer, which is an EngineFault, too."""
        found: frozenset[str] = await self._call("images")
        return found

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Engine`."""
        facts: tuple[dict[str, Any], dict[str, Any]] = await self._call("facts")
        return facts

    def watch_events(self, sink: Callable[[ContainerEvent | EventsConnected], None]) -> None:
        """Events that come while the agent isn't connected are lost: compare when it is back."""
        self._sink = sink

    def report(self, value: Any) -> None:
        """The agent tells an event. Raises Garbled."""
        event = docker_event_of(value)
        if event is not None:
            self._sink(event)

    async def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return await self._ask(f"docker_{name}", *arguments)
        except DeviceFault as fault:
            raise EngineFault(str(fault)) from fault


class RemoteFolders:
    """Implements `LabFolders`. Raises DeviceFault while the machine is away. `version` is that of the agent's
    messages."""

    def __init__(self, ask: Ask, version: Callable[[], int]) -> None:
        self._ask, self._version = ask, version

    async def write(self, lease_id: str, files: Mapping[str, str], *, make: bool) -> None:
        """Raises LedgerFault if the machine can't write it."""
        await self._ask("folder_write", lease_id, dict(files), make)

    async def write_all(self, files: Mapping[str, Mapping[str, str]]) -> None:
        """Raises LedgerFault if the machine can't write one of them."""
        if self._version() >= WRITES_TOGETHER:
            await self._ask("folder_write_all", {key: dict(texts) for key, texts in files.items()})
            return
        for lease_id, texts in files.items():
            await self.write(lease_id, texts, make=False)

    async def remove(self, lease_id: str) -> None:
        """Removes the folder; no error if there is none."""
        await self._ask("folder_remove", lease_id)

    async def keep_only(self, lease_ids: Collection[str]) -> None:
        """Removes the folders of all other leases."""
        await self._ask("folder_keep_only", tuple(lease_ids))


class RemoteDoctor:
    """`MachineDoctor` through the agent."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def check_machine(self, images: Sequence[str]) -> tuple[Finding, ...]:
        """Raises DeviceFault while the machine is away."""
        found: tuple[Finding, ...] = await self._ask("check_machine", tuple(images))
        return found


class RemoteHomes:
    """`HomeFiles` through the agent. Each raises EngineFault, also while the machine is away."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def describe(self, volume: str) -> HomeFacts | None:
        """See `HomeFiles`, as for all."""
        found: HomeFacts | None = await self._call("describe", volume)
        return found

    async def prepare(self, volume: str, facts: HomeFacts) -> None:
        """See `HomeFiles`."""
        await self._call("prepare", volume, facts)

    async def begin_read(self, volume: str) -> str:
        """See `HomeFiles`."""
        copy_id: str = await self._call("begin_read", volume)
        return copy_id

    async def read(self, copy_id: str) -> bytes:
        """See `HomeFiles`."""
        data: bytes = await self._call("read", copy_id)
        return data

    async def skim(self, copy_id: str) -> Skimmed:
        """See `HomeFiles`."""
        skimmed: Skimmed = await self._call("skim", copy_id)
        return skimmed

    async def begin_write(self, volume: str) -> str:
        """See `HomeFiles`."""
        copy_id: str = await self._call("begin_write", volume)
        return copy_id

    async def write(self, copy_id: str, data: bytes) -> None:
        """See `HomeFiles`."""
        await self._call("write", copy_id, data)

    async def finish(self, copy_id: str) -> bool:
        """See `HomeFiles`."""
        done: bool = await self._call("finish", copy_id)
        return done

    async def end(self, copy_id: str) -> None:
        """See `HomeFiles`."""
        await self._call("end", copy_id)

    async def keep(self, volume: str) -> None:
        """See `HomeFiles`."""
        await self._call("keep", volume)

    async def drop(self, volume: str) -> None:
        """See `HomeFiles`."""
        await self._call("drop", volume)

    async def unfinished(self) -> tuple[str, ...]:
        """See `HomeFiles`."""
        found: tuple[str, ...] = await self._call("unfinished")
        return found

    async def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return await self._ask(f"home_{name}", *arguments)
        except DeviceFault as fault:
            raise EngineFault(str(fault)) from fault
