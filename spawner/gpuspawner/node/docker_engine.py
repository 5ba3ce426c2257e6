"""Docker Engine, through docker-py: containers by label, removal, events, the engine's facts.

Every call runs in this module's own threads, each with its own client, and has a timeout. Calls that may hang
on one container run in other threads than calls about all containers. Every failure is raised as EngineFault:
the caller then knows nothing, and unknown is not free. Docker Engine API as of 20.10 (1.41).
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.utils import kwargs_from_env

from ..core import labels
from ..core.errors import EngineFault
from ..protocol.call import Call
from .daemon_pool import DaemonPool
from .engine import OUT_OF_MEMORY, STOP_SECONDS, Container, ContainerEvent, EventsConnected

T = TypeVar("T")

LIST_SECONDS = 5
REMOVE_SECONDS = 20
"""Docker itself waits up to 10 s for a killed process to go before it removes its container."""
ENDING_THREADS = 64
"""Threads for calls that concern one container that ends: each may hang for REMOVE_SECONDS, and the calls for
all containers must not wait for them."""
_EVENTS = ("start", "die", "destroy", OUT_OF_MEMORY)
SERVICE_ID = "com.docker.swarm.service.id"
"""Docker's own label of a container that is a task of a service (moby 28)."""
_RECONNECT_SECONDS = 0.5
_NANOSECONDS = re.compile(r"(\.\d{6})\d+")
# docker-py does not convert some errors of the libraries that it uses.
_Errors = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
    KeyError,
)


class DockerEngine:
    """The Docker Engine at `DOCKER_HOST` (default: the local socket), through docker-py."""

    def __init__(self, *, threads: int = 4, log: logging.Logger | None = None) -> None:
        self._log = log or logging.getLogger("gpuspawner.broker")
        self._pool = DaemonPool("docker", most=threads)
        self._endings = DaemonPool("docker-end", most=ENDING_THREADS)
        self._local = threading.local()
        self._events: _EventThread | None = None

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        label = labels.LEASE if lease_id is None else f"{labels.LEASE}={lease_id}"

        def read(client: docker.APIClient) -> tuple[Container, ...]:
            found = client.containers(all=True, trunc=False, filters={"label": label})
            return tuple(_container(item) for item in found)

        return await self.call(LIST_SECONDS, "list containers", read)

    async def remove(self, container_id: str) -> None:
        def remove(client: docker.APIClient) -> None:
            # v: removes its anonymous volumes too; homes are named volumes and stay.
            unless_gone(lambda: client.remove_container(container_id, v=True, force=True))

        await self.call(REMOVE_SECONDS, "remove a container", remove, self._endings)

    async def stop(self, container_id: str) -> None:
        def stop(client: docker.APIClient) -> None:
            unless_gone(lambda: client.stop(container_id, timeout=STOP_SECONDS))

        await self.call(REMOVE_SECONDS, "stop a container", stop, self._endings)

    async def finished_at(self, container_id: str) -> datetime | None:
        state = await self._state(container_id)
        return None if state.get("Running") else _time(state.get("FinishedAt"))

    async def started_at(self, container_id: str) -> datetime | None:
        state = await self._state(container_id)
        return _time(state.get("StartedAt")) if state.get("Running") else None

    async def main_pid(self, container_id: str) -> int | None:
        state = await self._state(container_id)
        return int(state["Pid"]) if state.get("Running") and state.get("Pid") else None

    async def is_denied(self, container_id: str, device: str) -> bool:
        def look(client: docker.APIClient) -> bool:
            found: list[bytes] = []

            def attempt() -> None:
                made = client.exec_create(container_id, ["sh", "-c", f": < {device}"])["Id"]
                found.append(client.exec_start(made))

            unless_gone(attempt)
            return any(b"Operation not permitted" in each for each in found)

        return await self.call(LIST_SECONDS, "look into a container", look, self._endings)

    async def exists(self, container_id: str) -> bool:
        return bool(await self._state(container_id))

    async def _state(self, container_id: str) -> dict[str, Any]:
        """Docker's state of the container; empty if it is gone."""

        def inspect(client: docker.APIClient) -> dict[str, Any]:
            state: dict[str, Any] = {}
            unless_gone(lambda: state.update(client.inspect_container(container_id)["State"]))
            return state

        return await self.call(LIST_SECONDS, "inspect a container", inspect, self._endings)

    async def images(self) -> frozenset[str]:
        def read(client: docker.APIClient) -> frozenset[str]:
            return frozenset(client.images(quiet=True))

        return await self.call(LIST_SECONDS, "list images", read)

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return await self.call(
            LIST_SECONDS, "read the engine's facts", lambda client: (client.info(), client.version())
        )

    async def image_size_bytes(self, reference: str) -> int | None:
        """The image's size; None if it isn't here. Raises EngineFault."""
        found = await self._inspect_image(reference)
        return int(found["Size"]) if found else None

    async def image_labels(self, reference: str) -> dict[str, str] | None:
        """The image's labels; None if it isn't here. Raises EngineFault."""
        found = await self._inspect_image(reference)
        return dict(found["Config"].get("Labels") or {}) if found else None

    async def _inspect_image(self, reference: str) -> dict[str, Any]:
        """Docker's document of an image; empty if it isn't here. Raises EngineFault."""

        def inspect(client: docker.APIClient) -> dict[str, Any]:
            found: dict[str, Any] = {}
            unless_gone(lambda: found.update(client.inspect_image(reference)))  # type: ignore[no-untyped-call]
            return found

        return await self.call(LIST_SECONDS, "inspect an image", inspect)

    def watch_events(self, sink: Callable[[ContainerEvent | EventsConnected], None]) -> None:
        """Starts the event thread; `sink` is called on the current loop for each event and connection."""
        if self._events is not None:
            raise RuntimeError("the events are watched already")
        loop = asyncio.get_running_loop()
        self._events = _EventThread(lambda item: _post(loop, sink, item), self._log)
        self._events.start()

    async def close(self) -> None:
        """Ends the event thread and the idle threads; does not wait for a call that hangs."""
        if self._events is not None:
            self._events.stop()
            await asyncio.to_thread(self._events.join, 5)
            self._events = None
        self._pool.close()
        self._endings.close()

    async def call(
        self,
        seconds: int,
        what: str,
        function: Callable[[docker.APIClient], T],
        pool: DaemonPool | None = None,
    ) -> T:
        """`function` with a client of a thread of this module's, for so long at most. Raises EngineFault."""

        def run() -> T:
            client = self._client(seconds)
            client.timeout = seconds  # docker-py's only per-call timeout: the client is this thread's own
            return function(client)

        try:
            return await (pool or self._pool).submit(run)
        except _Errors as error:
            raise fault_of(error, what) from error

    async def run(
        self, seconds: int, what: str, work: Callable[[Call], T], pool: DaemonPool | None = None
    ) -> T:
        """`work(call)` in a thread of this module's; each call may take so long. Raises EngineFault."""

        def with_client(client: docker.APIClient) -> T:
            def call(method: str, *args: Any, **kwargs: Any) -> Any:
                try:
                    return getattr(client, method)(*args, **kwargs)
                except _Errors as error:
                    raise fault_of(error, what) from error

            return work(call)

        return await self.call(seconds, what, with_client, pool)

    def _client(self, seconds: int) -> docker.APIClient:
        client: docker.APIClient | None = getattr(self._local, "client", None)
        if client is None:
            client = docker.APIClient(version="auto", timeout=seconds, **kwargs_from_env())  # asks the engine
            self._local.client = client
        return client


class _EventThread(threading.Thread):
    """Reads Docker's event stream and reconnects for ever; each connection first sends EventsConnected."""

    def __init__(self, post: Callable[[ContainerEvent | EventsConnected], None], log: logging.Logger) -> None:
        super().__init__(name="docker-events", daemon=True)
        self._post = post
        self._log = log
        self._halt = threading.Event()
        self._stream: Any = None

    def stop(self) -> None:
        """Makes `run` return, also out of a read."""
        self._halt.set()
        stream = self._stream
        if stream is not None:
            _close_quietly(stream)

    def run(self) -> None:
        down = False
        while not self._halt.is_set():
            try:
                self._read()
                down = False
            except Exception as error:  # the top of this thread's loop
                if not down and not self._halt.is_set():
                    self._log.warning("Docker's events can't be read, retrying: %s", _short(error))
                down = True
            self._halt.wait(_RECONNECT_SECONDS)

    def _read(self) -> None:
        client = docker.APIClient(version="auto", timeout=LIST_SECONDS, **kwargs_from_env())
        try:
            filters = {"type": "container", "label": labels.LEASE, "event": list(_EVENTS)}
            self._stream = client.events(filters=filters, decode=True)
            self._post(EventsConnected())
            for item in () if self._halt.is_set() else self._stream:
                event = _event(item)
                if event is not None:
                    self._post(event)
        finally:
            self._stream = None
            client.close()


def _post(loop: asyncio.AbstractEventLoop, sink: Callable[[T], None], item: T) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(sink, item)


def _close_quietly(stream: Any) -> None:
    try:
        stream.close()
    except (*_Errors, AttributeError):
        return  # it is closed already


def unless_gone(call: Callable[[], Any]) -> None:
    """404: gone. 409: already being removed. `list` has to verify both."""
    try:
        call()
    except docker.errors.APIError as error:
        if error.response is None or error.response.status_code not in (404, 409):
            raise


def _container(item: dict[str, Any]) -> Container:
    names = item.get("Names") or [""]
    return Container(
        id=item["Id"],
        labels=labels.parse(item.get("Labels")),
        state=item["State"],
        name=names[0].lstrip("/"),
        created_unix_seconds=int(item.get("Created", 0)),
        service_id=(item.get("Labels") or {}).get(SERVICE_ID, ""),
    )


def _event(item: dict[str, Any]) -> ContainerEvent | None:
    attributes = item.get("Actor", {}).get("Attributes", {})
    found = labels.parse(attributes)  # Docker puts a container's labels among an event's attributes
    if item.get("Type") != "container" or not found.lease_id:
        return None
    limit, code = str(attributes.get(labels.MEMORY_LIMIT, "")), str(attributes.get("exitCode", ""))
    return ContainerEvent(
        action=item.get("Action", ""),
        container_id=item["Actor"].get("ID", ""),
        lease_id=found.lease_id,
        broker=found.broker,
        mem_limit_bytes=int(limit) if limit.isdecimal() else None,
        exit_code=int(code) if code.isdecimal() else None,
    )


def _time(text: object) -> datetime | None:
    """Docker's time, in nanoseconds; its year 1 means never."""
    if not text or str(text).startswith("0001-"):
        return None
    return datetime.fromisoformat(_NANOSECONDS.sub(r"\1", str(text))).astimezone(UTC)


def fault_of(error: Exception, what: str) -> EngineFault:
    """An error of docker-py's as ours, with Docker's status if it has answered with one."""
    response = error.response if isinstance(error, docker.errors.APIError) else None
    status = None if response is None else response.status_code
    return EngineFault(f"Docker did not {what}: {_short(error)}", status)


def faults(stream: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The parts of a stream of docker-py's; its errors are raised as EngineFault."""
    try:
        yield from stream
    except _Errors as error:
        raise fault_of(error, what) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
