"""The hub's side of the unix socket: asks the broker for a lease and keeps the connection as the hold.

If the connection closes before the lease is used, the broker frees the queue place or the reservation. So
no clean-up is needed when a spawn is cancelled or the hub ends: the kernel closes the socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp

from ..core.errors import BrokerUnavailable, LeaseConflict, Refusal, all_refusals
from ..core.model import ContainerPatch, GpuRequest, Lease
from .messages import (
    EndDocument,
    ExitDocument,
    HeartbeatEvent,
    LeaseEvent,
    Message,
    QueuedEvent,
    RefusalMessage,
    RefusedEvent,
    TiersDocument,
    document,
    event_from_line,
    request_to_json,
)
from .paging import MOST, Listed
from .patience import patience
from .public import LeaseDone, LeaseReason, VisibleStatus
from .stream import WAITED_HEADER

M = TypeVar("M", bound=Message)
L = TypeVar("L", bound=Listed)

OnQueued = Callable[[QueuedEvent], None]
"""Called when the request joins the queue, and when its place or its likely wait changes."""

UNAVAILABLE = (
    "GPUs can't be given out right now: the GPU broker isn't running. A CPU server still starts. "
    "Admin: see the log of the broker, or run 'gpuspawner doctor'."
)
_SILENT = (
    "GPUs can't be given out right now: the GPU broker doesn't answer. A CPU server still starts. "
    "Admin: see the log of the broker, or run 'gpuspawner doctor'."
)
_UNREADABLE = (
    "The GPU broker's answer can't be read. A CPU server still starts. Admin: hub and broker must run "
    "the same version of gpuspawner; restart both."
)

CONNECT_SECONDS = 2.0
"""A broker that isn't running is asked again for this long: it may be starting."""
RETRY_SECONDS = 60.0
"""A broken connection is retried for this long under the same lease id. A broker restart takes less, also on
a busy machine: with a hundred machines of its own and a load of 15 it took more than 10 s."""
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 1.0
"""The pause doubles up to this, so that a thousand requests leave a broker that starts the CPU. Less than the
time that the broker gives a hub to come back (`leasing.RESTORE_SECONDS`)."""
_LEAST_TRIES = 5
ANSWER_SECONDS = 30.0
"""Longest wait for an answer's first byte: the broker may have to remove an old container first."""
SILENCE_SECONDS = 40.0
"""The broker sends a heartbeat every 15 s: a longer silence means that it hangs."""
_MAX_LINE_BYTES = 1 << 20

_NO_LIMIT = aiohttp.ClientTimeout(total=None)
"""aiohttp's own limits are by the clock; see `patience`."""

_Broken = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass(slots=True)
class Grant:
    """A lease and what it changes in the container. `lost` says why the hold ended early, if it did."""

    lease: Lease
    patch: ContainerPatch
    lost: Refusal | None = None


class BrokerClient:
    """Talks to the broker on `socket_path`; one client is enough for a whole hub.

    Every method raises the broker's refusals as the classes of `errors.py`, and BrokerUnavailable,
    with a sentence, when the broker can't be reached or doesn't answer. No method blocks the event loop.
    """

    def __init__(self, socket_path: str, *, log: logging.Logger | None = None) -> None:
        self.socket_path = socket_path
        self.log = log or logging.getLogger("gpuspawner.protocol.client")
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def acquire(self, request: GpuRequest, on_queued: OnQueued) -> AbstractAsyncContextManager[Grant]:
        """Waits for the lease and holds it during the `async with` block.

        If the connection breaks, while waiting or holding, it is retried under the same id for
        `RETRY_SECONDS`. Raises Refusal; cancelling closes the connection at once.
        """
        return self._hold(request, on_queued)

    @asynccontextmanager
    async def _hold(self, request: GpuRequest, on_queued: OnQueued) -> AsyncIterator[Grant]:
        stream = _LeaseStream(self, request, on_queued)
        keeper: asyncio.Task[None] | None = None
        try:
            grant = await stream.first_grant()
            keeper = asyncio.create_task(stream.keep(grant), name=f"hold {request.lease_id}")
            yield grant
        finally:
            stream.close()  # first, without an await: a cancelled spawn frees its lease at once
            if keeper is not None:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)

    async def confirm(self, lease_id: str) -> None:
        """Asks right before `docker start` whether the lease is still valid. Raises LeaseConflict if not."""
        await self._call("POST", f"/leases/{lease_id}/confirm")

    async def release(self, lease_id: str) -> None:
        """Says that the server was stopped; the broker removes its container and frees the devices.

        Idempotent.
        """
        await self._call("DELETE", f"/leases/{lease_id}")

    async def exit_code(self, lease_id: str) -> int | None:
        """How a server's container ended that nobody stopped, if the broker knows it. Raises Refusal."""
        return (await self.ask(f"/leases/{lease_id}/exit", ExitDocument)).exit_code

    async def turn(self, lease_id: str, action: str) -> dict[str, Any]:
        """Asks for a GPU now ("wake") or gives up the turn ("yield"), for a lease in turns; where it is.

        Raises LeaseConflict if the server has ended or has no turns.
        """
        done = await self.ask(f"/api/leases/{lease_id}/{action}", LeaseDone, LeaseReason(reason=""))
        assert done.turn is not None
        return document(done.turn)

    async def may_end(self, lease_id: str) -> bool:
        """Whether the server's container may be stopped now; if not, it is being prepared: ask again."""
        text = await self._call("POST", f"/turns/{lease_id}/end")
        return EndDocument.model_validate_json(text).ready

    async def tiers(self) -> dict[str, Any]:
        """The document of `GET /tiers`: what is free now in each tier."""
        return await self._document("/tiers", TiersDocument)

    async def status(self) -> dict[str, Any]:
        """The document of `GET /api/status` with all its pages: devices, leases and queue."""
        return document(await self.ask_all("/api/status", VisibleStatus))

    async def ask(
        self, path: str, kind: type[M], body: Message | None = None, seconds: float = ANSWER_SECONDS
    ) -> M:
        """The message of `kind` at `path`: GET, or POST with a body; waits so long. Raises Refusal."""
        text = await self._call("GET" if body is None else "POST", path, body, seconds)
        try:
            return kind.model_validate_json(text)
        except ValueError as error:
            raise BrokerUnavailable(_UNREADABLE) from error

    async def ask_all(self, path: str, kind: type[L]) -> L:
        """The message of `kind` at `path`, with the lists of all its pages. Raises Refusal."""
        mark = "&" if "?" in path else "?"
        found = await self.ask(f"{path}{mark}limit={MOST}", kind)
        while found.next is not None:
            following = f"{path}{mark}limit={MOST}&cursor={quote(found.next, safe='')}"
            found = found.joined(await self.ask(following, kind))
        return found

    async def text(self, path: str) -> str:
        """What `GET` of the path answers, as it is. Raises Refusal."""
        return await self._call("GET", path)

    async def tell(self, method: str, path: str, body: Message) -> None:
        """Send a message that has no answer but success. Raises Refusal."""
        await self._call(method, path, body)

    async def close(self) -> None:
        """Closes every connection, and with them every hold."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post_lease(self, request: GpuRequest, waited_seconds: float = 0.0) -> aiohttp.ClientResponse:
        """One `POST /leases`; the caller closes the stream. Raises Refusal, or what aiohttp raises.

        `waited_seconds`: since the first request for this lease.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        session = self._open_session()
        head = {"Content-Type": "application/json", WAITED_HEADER: f"{waited_seconds:.3f}"}
        body = request_to_json(request)
        post = session.post("http://broker/leases", data=body, headers=head, timeout=timeout)
        async with patience(ANSWER_SECONDS):
            response = await post
        if response.status != 200:
            async with response:
                raise await _refusal_of(response)
        return response

    async def _document(self, path: str, kind: type[Message]) -> dict[str, Any]:
        text = await self._call("GET", path)
        try:
            return document(kind.model_validate_json(text))
        except ValueError as error:
            raise BrokerUnavailable(_UNREADABLE) from error

    async def _call(
        self, method: str, path: str, body: Message | None = None, seconds: float = ANSWER_SECONDS
    ) -> str:
        data = None if body is None else body.model_dump_json()
        head = {} if body is None else {"Content-Type": "application/json"}
        try:
            session = self._open_session()
            request = session.request(
                method, "http://broker" + path, data=data, headers=head, timeout=_NO_LIMIT
            )
            async with patience(seconds), request as response:
                if response.status >= 300:
                    raise await _refusal_of(response)
                return await response.text()
        except _Broken as error:
            raise _unavailable(error) from error

    def _open_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            # limit=0: a hold keeps its connection, and as many spawns may wait as there are users.
            connector = aiohttp.UnixConnector(self.socket_path, limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector,
                read_bufsize=_MAX_LINE_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._loop = loop
        return self._session


class _LeaseStream:
    """The stream of one lease, over one or more connections."""

    def __init__(self, client: BrokerClient, request: GpuRequest, on_queued: OnQueued) -> None:
        self._client = client
        self._request = request
        self._on_queued = on_queued
        self._response: aiohttp.ClientResponse | None = None
        self._begun_at = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Closes the connection at once; the broker notices it and frees the lease."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    async def first_grant(self) -> Grant:
        """Connects, and reads until the lease arrives. Raises Refusal."""
        await self._connect(CONNECT_SECONDS)
        while True:
            try:
                return await self._read_grant()
            except _Broken as error:
                self._log_broken(error)
                await self._connect(RETRY_SECONDS)

    async def keep(self, grant: Grant) -> None:
        """Keeps the hold until cancelled; reconnects when it breaks. Sets `grant.lost` if the hold ends."""
        try:
            while True:
                try:
                    await self._read_grant()  # only a broken or refused stream ends this
                except _Broken as error:
                    self._log_broken(error)
                    await self._connect(RETRY_SECONDS)
        except Refusal as refusal:
            self.close()
            grant.lost = refusal
            self._client.log.warning(
                "The hold ended: %s user=%s server=%s lease=%s devices=%s container=-",
                refusal.message,
                self._request.user,
                self._request.server,
                self._request.lease_id,
                ",".join(grant.lease.device_uuids),
            )

    async def _connect(self, seconds: float) -> None:
        """POSTs until a broker answers.

        Raises BrokerUnavailable after `seconds`, and the broker's refusals. On a busy loop, one try may take
        longer than that: a connection that fails at once is tried `_LEAST_TRIES` times all the same.
        """
        self.close()
        loop, tries = asyncio.get_running_loop(), 0
        deadline, pause = loop.time() + seconds, _PAUSE_SECONDS
        while True:
            try:
                waited = loop.time() - self._begun_at
                self._response = await self._client.post_lease(self._request, waited)
                return
            except _Broken as error:
                tries += 1
                often = tries >= _LEAST_TRIES or isinstance(error, TimeoutError)
                if often and loop.time() + pause >= deadline:
                    raise _unavailable(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _read_grant(self) -> Grant:
        """Reads events until a lease comes. Raises Refusal, or an error of `_Broken`."""
        if self._response is None:
            raise aiohttp.ClientConnectionError("no connection")
        while True:
            line = await self._response.content.readline()
            if not line.endswith(b"\n"):
                raise aiohttp.ClientPayloadError("the stream ended")
            grant = self._handle(line)
            if grant is not None:
                return grant

    def _handle(self, line: bytes) -> Grant | None:
        try:
            event = event_from_line(line)
        except ValueError as error:
            raise BrokerUnavailable(_UNREADABLE) from error
        match event:
            case LeaseEvent():
                return Grant(event.lease.lease(), event.patch.patch())
            case RefusedEvent():
                raise _refusal(event)
            case QueuedEvent():
                self._on_queued(event)
            case HeartbeatEvent() | None:  # None: a kind of event that a later version added
                pass
        return None

    def _log_broken(self, error: BaseException) -> None:
        self._client.log.warning(
            "The connection to the GPU broker broke (%s); reconnecting user=%s server=%s lease=%s "
            "devices=- container=-",
            str(error) or type(error).__name__,
            self._request.user,
            self._request.server,
            self._request.lease_id,
        )


def _unavailable(error: BaseException) -> BrokerUnavailable:
    silent = isinstance(error, TimeoutError)
    return BrokerUnavailable(_SILENT if silent else UNAVAILABLE)


async def _refusal_of(response: aiohttp.ClientResponse) -> Refusal:
    try:
        return _refusal(RefusalMessage.model_validate_json(await response.text()))
    except ValueError:
        if response.status == LeaseConflict.status:
            return LeaseConflict("The lease is no longer valid: start the server again")
        return BrokerUnavailable(_SILENT)


def _refusal(said: RefusalMessage) -> Refusal:
    """The refusal as an exception; BrokerUnavailable if this version doesn't know its reason."""
    kind = all_refusals().get(said.reason, BrokerUnavailable)
    return kind(said.message or _SILENT)
