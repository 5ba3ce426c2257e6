"""Homes of this machine's Docker, read and written through its archive API by containers that never start.

Nothing of an image runs, and the machine needs none: the containers are made of an empty one. Docker's tar
has names, types, owners by number, modes, times in whole seconds, symbolic and hard links, and file
capabilities. It leaves out sockets and other extended attributes, and writes the holes of sparse files as
zeros (moby 28, `pkg/archive`). It walks in the order of names, so two copies that are the same give the same
bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import queue
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..core.errors import ConfigError, EngineFault
from ..core.labels import BROKER
from ..protocol.call import Call, or_none, unless_gone
from .daemon_pool import DaemonPool
from .docker_engine import DockerEngine, faults
from .homes import CHUNK_BYTES, PASS_SECONDS, HomeFacts, Skimmed

T = TypeVar("T")

UNFINISHED = "gpuspawner.home-unfinished"
"""The label of a mark, an empty volume; its value is the unfinished home's."""
COPYING = "gpuspawner.home-copying"
"""The label of a container that reads or writes a home; its value is the home's."""
COPY_SECONDS = 120
"""Docker's longest silence in a copy."""
_SECONDS = 30
_ABOVE, _AT = "/gpuspawner", "/gpuspawner/home"
"""Where the container has the volume. The tar has its folder too, with owner and mode; it is unpacked into
the folder above, since Docker leaves the one into which it unpacks as it is."""
_EMPTY = "gpuspawner-empty:latest"
_QUEUED = 2
_ENDED = "the copy of the home has ended"
_STEP_SECONDS = 0.2
_THREADS = 32


@dataclass
class _Reading:
    """A tar that is read. `parts` come from Docker; `done` is whether they have ended."""

    container: str
    parts: Iterator[bytes]
    stream: Any
    left: bytearray = field(default_factory=bytearray)
    digest: Any = field(default_factory=hashlib.sha256)
    size_bytes: int = 0
    done: bool = False
    ended: bool = False
    taking: threading.Lock = field(default_factory=threading.Lock)

    def take(self, most: int = CHUNK_BYTES) -> bytes:
        """The next bytes; blocks on Docker. Raises EngineFault."""
        while len(self.left) < most and not self.done:
            with self.taking:
                if self.ended:
                    raise EngineFault(_ENDED)
                part = next(self.parts, b"")
            self.done = not part
            self.left += part
        found = bytes(self.left[:most])
        del self.left[:most]
        self.digest.update(found)
        self.size_bytes += len(found)
        return found

    def skim(self) -> Skimmed:
        """Takes for PASS_SECONDS."""
        until = time.monotonic() + PASS_SECONDS
        while self.take():
            if time.monotonic() > until:
                return Skimmed(self.size_bytes)
        return Skimmed(self.size_bytes, self.digest.hexdigest())

    def close(self) -> None:
        """Lets Docker go: it holds the container until the last byte was read or the connection is closed."""
        self.ended = True
        with self.taking, suppress(OSError):
            self.stream.close()


@dataclass
class _Writing:
    """A tar that is written: `upload` takes what is in the queue, until None comes."""

    container: str
    queued: queue.Queue[bytes | None] = field(default_factory=lambda: queue.Queue(_QUEUED))
    ended: threading.Event = field(default_factory=threading.Event)
    upload: asyncio.Future[Any] | None = None
    is_whole: bool = False

    def parts(self) -> Iterator[bytes]:
        """What Docker gets. An unexpected end makes the upload fail."""
        while True:
            try:
                part = self.queued.get(timeout=_STEP_SECONDS)
            except queue.Empty:
                if self.ended.is_set():
                    raise ConnectionError("the copy was ended") from None
                continue
            if part is None:
                return
            yield part

    def put(self, part: bytes | None) -> None:
        """Waits for a place in the queue; gives up when the upload has ended."""
        while not self.ended.is_set():
            with suppress(queue.Full):
                self.queued.put(part, timeout=_STEP_SECONDS)
                return

    def check(self) -> None:
        """Raises EngineFault if Docker has refused what came so far."""
        if self.upload is not None and self.upload.done():
            self.upload.result()


class DockerHomes:
    """Implements `HomeFiles` with the engine of this machine."""

    def __init__(self, engine: DockerEngine, owner: str) -> None:
        """`owner` is the state folder of broker or agent: another one's copies are left alone."""
        self._engine, self._owner = engine, owner
        self._pool = DaemonPool("docker-home", most=_THREADS)
        self._copies: dict[str, _Reading | _Writing] = {}

    # ---- what is there

    async def describe(self, volume: str) -> HomeFacts | None:
        """See `HomeFiles`, as for all."""
        return await self._run("look at a home", lambda call: _describe(call, volume))

    async def prepare(self, volume: str, facts: HomeFacts) -> None:
        """See `HomeFiles`."""
        await self._run("create a home", lambda call: _prepare(call, volume, facts, self._owner))

    async def keep(self, volume: str) -> None:
        """See `HomeFiles`."""
        await self._run("keep a home", lambda call: unless_gone(call, "remove_volume", _mark(volume)))

    async def drop(self, volume: str) -> None:
        """See `HomeFiles`."""
        await self._run("remove an unfinished home", lambda call: _drop(call, volume))

    async def unfinished(self) -> tuple[str, ...]:
        """See `HomeFiles`; also removes the containers of copies that a killed process has left."""

        own = f"{BROKER}={self._owner}"

        def look(call: Call) -> tuple[str, ...]:
            known = {each.container for each in self._copies.values()}
            for each in call("containers", all=True, filters={"label": [COPYING, own]}):
                if each["Id"] not in known:
                    unless_gone(call, "remove_container", each["Id"])
            found = call("volumes", filters={"label": [UNFINISHED, own]}).get("Volumes") or ()
            return tuple(sorted(each["Labels"][UNFINISHED] for each in found))

        return await self._run("list unfinished homes", look)

    # ---- copies

    async def begin_read(self, volume: str) -> str:
        """See `HomeFiles`."""

        def begin(call: Call) -> _Reading:
            container = _make_container(call, volume, "ro", self._owner)
            try:
                stream, _ = call("get_archive", container, _AT, chunk_size=CHUNK_BYTES)
            except EngineFault:
                unless_gone(call, "remove_container", container)
                raise
            return _Reading(container, faults(stream, "read a home"), stream)

        return self._remember(await self._run("read a home", begin, COPY_SECONDS))

    async def read(self, copy_id: str) -> bytes:
        """See `HomeFiles`."""
        return await self._pool.submit(self._reading(copy_id).take)

    async def skim(self, copy_id: str) -> Skimmed:
        """See `HomeFiles`."""
        return await self._pool.submit(self._reading(copy_id).skim)

    async def begin_write(self, volume: str) -> str:
        """See `HomeFiles`."""

        def make(call: Call) -> str:
            if or_none(call, "inspect_volume", _mark(volume)) is None:
                raise EngineFault(f"the home {volume} isn't an unfinished one")
            return _make_container(call, volume, "rw", self._owner)

        writing = _Writing(await self._run("write a home", make))
        uploading = self._run(
            "write a home",
            lambda call: call("put_archive", writing.container, _ABOVE, writing.parts()),
            COPY_SECONDS,
        )
        writing.upload = asyncio.ensure_future(uploading)
        writing.upload.add_done_callback(lambda done: _close(writing, done))
        return self._remember(writing)

    async def write(self, copy_id: str, data: bytes) -> None:
        """See `HomeFiles`."""
        writing = self._writing(copy_id)
        await self._pool.submit(lambda: writing.put(data))
        writing.check()

    async def finish(self, copy_id: str) -> bool:
        """See `HomeFiles`."""
        writing = self._writing(copy_id)
        assert writing.upload is not None
        if not writing.is_whole:
            writing.is_whole = True
            await self._pool.submit(lambda: writing.put(None))
        await asyncio.wait({writing.upload}, timeout=PASS_SECONDS)
        writing.check()
        return writing.upload.done()

    async def end(self, copy_id: str) -> None:
        """See `HomeFiles`."""
        copy = self._copies.pop(copy_id, None)
        if copy is None:
            return
        if isinstance(copy, _Writing):
            copy.ended.set()
            assert copy.upload is not None
            await asyncio.wait({copy.upload}, timeout=PASS_SECONDS)
        else:
            closing = asyncio.ensure_future(self._pool.submit(copy.close))
            await asyncio.wait({closing}, timeout=PASS_SECONDS)  # not for ever: Docker may hang
        await self._run(
            "end a copy", lambda call: unless_gone(call, "remove_container", copy.container, force=True)
        )

    async def end_all(self) -> None:
        """Ends all copies; for an agent whose broker has gone. What Docker refuses, a later look removes."""
        for copy_id in tuple(self._copies):
            with suppress(EngineFault):
                await self.end(copy_id)

    def close(self) -> None:
        """Ends the idle threads."""
        self._pool.close()

    # ---- private

    def _remember(self, copy: _Reading | _Writing) -> str:
        copy_id = uuid.uuid4().hex
        self._copies[copy_id] = copy
        return copy_id

    def _reading(self, copy_id: str) -> _Reading:
        copy = self._copies.get(copy_id)
        if not isinstance(copy, _Reading):
            raise EngineFault(_ENDED)
        return copy

    def _writing(self, copy_id: str) -> _Writing:
        copy = self._copies.get(copy_id)
        if not isinstance(copy, _Writing):
            raise EngineFault(_ENDED)
        return copy

    async def _run(self, what: str, work: Callable[[Call], T], seconds: int = _SECONDS) -> T:
        return await self._engine.run(seconds, what, work, self._pool)


def _close(writing: _Writing, upload: asyncio.Future[Any]) -> None:
    """The upload is over, well or not: nobody waits for a place in the queue any more."""
    writing.ended.set()
    if not upload.cancelled():
        upload.exception()  # looked at: `check` raises it


def _describe(call: Call, volume: str) -> HomeFacts | None:
    found = or_none(call, "inspect_volume", volume)
    if found is None:
        return None
    mounting = call("containers", all=True, filters={"volume": volume})
    users = [each for each in mounting if COPYING not in (each.get("Labels") or {})]
    return HomeFacts(
        driver=str(found["Driver"]),
        options={str(key): str(value) for key, value in (found.get("Options") or {}).items()},
        labels={str(key): str(value) for key, value in (found.get("Labels") or {}).items()},
        containers=tuple(sorted((each.get("Names") or [each["Id"]])[0].lstrip("/") for each in users)),
        unfinished=or_none(call, "inspect_volume", _mark(volume)) is not None,
    )


def _prepare(call: Call, volume: str, facts: HomeFacts, owner: str) -> None:
    there = _describe(call, volume)
    if there is not None and not there.unfinished:
        raise ConfigError(f"There is a volume {volume} already, which no move has begun")
    _drop(call, volume)
    call("create_volume", _mark(volume), labels={UNFINISHED: volume, BROKER: owner})
    options, labels = dict(facts.options), dict(facts.labels)
    call("create_volume", volume, driver=facts.driver, driver_opts=options, labels=labels)


def _drop(call: Call, volume: str) -> None:
    if or_none(call, "inspect_volume", _mark(volume)) is None:
        return
    _end_copies(call, volume)
    unless_gone(call, "remove_volume", volume)
    unless_gone(call, "remove_volume", _mark(volume))


def _end_copies(call: Call, volume: str) -> None:
    """Removes the containers of earlier copies of the home."""
    for each in call("containers", all=True, filters={"label": f"{COPYING}={volume}"}):
        unless_gone(call, "remove_container", each["Id"], force=True)


def _make_container(call: Call, volume: str, mode: str, owner: str) -> str:
    """A container that has the home at _AT, and is never started; its id."""
    _end_copies(call, volume)
    if or_none(call, "inspect_image", _EMPTY) is None:
        nothing = io.BytesIO()
        tarfile.open(fileobj=nothing, mode="w").close()
        repository, _, tag = _EMPTY.partition(":")
        call("import_image_from_data", nothing.getvalue(), repository=repository, tag=tag)
    host = call("create_host_config", binds={volume: {"bind": _AT, "mode": mode}}, network_mode="none")
    labels = {COPYING: volume, BROKER: owner}
    made = call("create_container", _EMPTY, command=["none"], host_config=host, labels=labels)
    return str(made["Id"])


def _mark(volume: str) -> str:
    """The name of the volume that says that this one is unfinished; no pattern of homes has it."""
    return f"gpuspawner-unfinished-{hashlib.sha256(volume.encode()).hexdigest()[:40]}"
