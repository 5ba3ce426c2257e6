"""The broker's HTTP on the unix socket: parsing at the edge, the streamed request, the hold.

POST   /leases               one JSON object per line; the open connection is the hold
POST   /leases/{id}/confirm  204: confirms the lease right before `docker start`
DELETE /leases/{id}          202: the server was stopped
GET    /leases/{id}/exit     how its container ended that nobody stopped
GET    /tiers /metrics

What else the hub asks is in `rules.py`. Below /api is the API, for accounts of this machine
(`public/local.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, Protocol

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler

from ...core.errors import (
    BadOption,
    BrokerUnavailable,
    ConfigError,
    EngineFault,
    Fault,
    LeaseConflict,
    LedgerFault,
    QueueTimeout,
    Refusal,
    refusal_in,
)
from ...core.model import GpuRequest, Lease, LeaseState
from ...core.units import format_bytes, ordinal, utc_now
from ...core.want import Mode, Want
from ...protocol.messages import (
    Event,
    ExitDocument,
    HeartbeatEvent,
    QueuedEvent,
    RefusalMessage,
    document,
    event_to_line,
    lease_event,
    refused_event,
    request_from_json,
)
from ...protocol.stream import WAITED_HEADER
from ..decide.line.estimate import Estimate
from ..decide.line.queue import Place
from ..decide.snapshot import Change
from ..leases.hurry import Hurry
from ..leases.leasing import LeaseService
from ..leases.logline import log_context
from ..observe.metrics import Metrics

MAX_BODY_BYTES = 512 * 1024
"""The longest request that `messages.py` accepts: a thousand groups with long names."""
MAX_PATH_BYTES = 107
"""`sun_path` of unix(7), without its closing zero."""
_BACKLOG = 512
"""Connections that may wait to be accepted: enough for a whole class that clicks at once."""
HEARTBEAT_SECONDS = 15.0
"""Interval of heartbeats, from the first line on: after a long silence, the client assumes that the broker
hangs. A thousand requests may be open, so it is not shorter than that needs."""
_BEAT_TOGETHER_SECONDS = 0.2
"""Heartbeats that are due within so long are sent together."""
_HEARTBEAT = event_to_line(HeartbeatEvent())


class View(Protocol):
    """The source of the documents; answers from memory, at once."""

    def tiers(self) -> dict[str, Any]:
        """The tiers and how much of each is free."""
        ...

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        ...


class Beats:
    """One timer for the heartbeats of all open requests: with one each, a thousand of them wake the process
    125 times a second."""

    def __init__(self) -> None:
        self._due: dict[LeasesHandler, float] = {}
        """In the order in which they are due, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, handler: LeasesHandler) -> None:
        """From now on it gets its heartbeats."""
        self._due[handler] = asyncio.get_running_loop().time() + HEARTBEAT_SECONDS
        self._arm()

    def remove(self, handler: LeasesHandler) -> None:
        """It gets none any more."""
        self._due.pop(handler, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None and self._due:
            loop, first = asyncio.get_running_loop(), next(iter(self._due.values()))
            self._timer = loop.call_at(max(first, loop.time() + _BEAT_TOGETHER_SECONDS), self._beat)

    def _beat(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for handler, _ in tuple(takewhile(lambda item: item[1] <= now, self._due.items())):
            del self._due[handler]
            self._due[handler] = now + HEARTBEAT_SECONDS
            handler.beat()
        self._arm()


@dataclass(frozen=True, slots=True)
class Site:
    """The objects that the handlers need."""

    service: LeaseService
    view: View
    metrics: Metrics
    queue_timeout_seconds: float
    log: logging.Logger
    simulated: bool = False
    tier_timeouts_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of tiers that have another queue timeout, by name."""
    unknown: Callable[[], Collection[str]] = frozenset
    """The leases whose server the hub doesn't know."""
    beats: Beats = field(default_factory=Beats)
    hurry: Hurry = field(default_factory=Hurry)

    def timeout_of(self, tier: str) -> float:
        """How long a request of this tier waits at most, in seconds."""
        return self.tier_timeouts_seconds.get(tier, self.queue_timeout_seconds)


def make_app(site: Site, more: Sequence[tuple[Any, ...]] = ()) -> Application:
    """The tornado application for the unix socket; `more` are routes of other files."""
    wanted: dict[str, Any] = {"site": site}
    lease_id = "([0-9a-f]{32})"
    return Application(
        [
            (r"/leases", LeasesHandler, wanted),
            (rf"/leases/{lease_id}/confirm", ConfirmHandler, wanted),
            (rf"/leases/{lease_id}/exit", ExitHandler, wanted),
            (rf"/leases/{lease_id}", LeaseHandler, wanted),
            (r"/tiers", TiersHandler, wanted),
            (r"/metrics", MetricsHandler, wanted),
            *more,
            (r".*", UnknownHandler, wanted),
        ],
        log_function=lambda handler: None,
    )


class Handler(RequestHandler):
    """Converts refusals and faults to JSON for the client."""

    def initialize(self, site: Site, **more: Any) -> None:
        self.site = site

    def answer(self, document: dict[str, Any]) -> None:
        """Writes a JSON document."""
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(document))

    def refuse(self, refusal: Refusal) -> None:
        """Answers with the refusal's status, reason and sentence, and counts it."""
        self.set_status(refusal.status)
        self.explain(refusal.reason, refusal.message)
        self.site.metrics.refused(refusal.reason)

    def explain(self, reason: str, message: str) -> None:
        """Writes the reason and the message of an error."""
        self.set_header("Content-Type", "application/json")
        self.write(RefusalMessage(reason=reason, message=message).model_dump_json())

    def refusal_of(self, fault: Fault) -> Refusal:
        """The message for the user about a fault; the details go to the log."""
        self.site.log.error("A request failed: %s", fault)
        what = {EngineFault: "Docker reports an error", LedgerFault: "the ledger can't be written"}
        why = what.get(type(fault), "a GPU reports an error")
        return BrokerUnavailable(
            f"GPUs can't be given out right now: {why}. Try again in a minute, or choose CPU. "
            "Admin: see the log of the broker."
        )

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Sends tornado's own errors (wrong method, exception) as JSON."""
        if status_code == 405:
            self.explain(BadOption.reason, f"This address does not accept {self.request.method}")
            return
        self.explain(BrokerUnavailable.reason, f"The GPU broker failed ({status_code})")


class UnknownHandler(Handler):
    """Answers all unknown addresses."""

    def prepare(self) -> None:
        self.set_status(404)
        self.explain(BadOption.reason, "The broker has no such address")
        self.finish()


class ConfirmHandler(Handler):
    """POST /leases/{id}/confirm"""

    async def post(self, lease_id: str) -> None:
        """204 if the lease is held and may be used; 409 if not: the container must not start."""
        try:
            self.site.service.confirm(lease_id)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        self.set_status(204)


class ExitHandler(Handler):
    """GET /leases/{id}/exit"""

    def get(self, lease_id: str) -> None:
        """200 for any lease."""
        self.answer(document(ExitDocument(exit_code=self.site.service.exit_code(lease_id))))


class LeaseHandler(Handler):
    """DELETE /leases/{id}"""

    async def delete(self, lease_id: str) -> None:
        """202 when the ledger has recorded that the lease ends; an unknown lease has already ended."""
        try:
            await self.site.service.stopped(lease_id)
        except Fault as fault:
            self.refuse(self.refusal_of(fault))
            return
        self.set_status(202)


class TiersHandler(Handler):
    """GET /tiers"""

    def get(self) -> None:
        """The tiers and what is free of each."""
        self.answer(self.site.view.tiers())


class MetricsHandler(Handler):
    """GET /metrics"""

    def get(self) -> None:
        """Prometheus' text format."""
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.write(self.site.view.metrics())


class LeasesHandler(Handler):
    """POST /leases: from the request to the lease, and then the hold."""

    _answered = True
    """Until it is known that there is a request to answer."""

    def prepare(self) -> None:
        self._closed = asyncio.Event()
        self._granted = False
        self._answered = False
        self.site.hurry.begin()
        self._streaming = False
        self._beating: asyncio.Future[None] | None = None
        self._started = time.monotonic()

    def on_connection_close(self) -> None:
        """Ends the hold when the client closes the connection.

        It cancels nothing: a running commit is finished.
        """
        self._have_answered()
        self._closed.set()

    async def post(self) -> None:
        """Answers 200 and streams, or the refusal's status."""
        try:
            request = request_from_json(self.request.body)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        service = self.site.service
        try:
            with service.hold(request.lease_id), suppress(StreamClosedError):
                await self._serve(request)
        finally:
            await service.dropped(request.lease_id)

    async def _serve(self, request: GpuRequest) -> None:
        self.site.beats.add(self)
        try:
            refusal = await self._stream(request)
        finally:
            self.site.beats.remove(self)
        if refusal is None:
            return
        self.site.log.info(
            "Refused (%s): %s user=%s server=%s lease=%s devices=- container=-",
            refusal.reason,
            refusal.message,
            request.user,
            request.server or "-",
            request.lease_id,
        )
        if self._streaming:
            self.site.metrics.refused(refusal.reason)
            await self._send(refused_event(refusal))
        else:
            self.refuse(refusal)

    async def _stream(self, request: GpuRequest) -> Refusal | None:
        """Handles the request until the hold ends; returns the refusal that ended it, or None."""
        try:
            deadline = self._started + self.site.timeout_of(request.tier) - self._waited_seconds()
            lease = await self.site.service.open(request)
            await self._begin_stream()
            await self._follow(lease, deadline)
        except Refusal as refusal:
            return refusal
        except Fault as fault:
            return self.refusal_of(fault)
        return None

    def _waited_seconds(self) -> float:
        """Seconds since the client first asked for this lease, also over earlier connections. By the client's
        clock, so neither a change of the wall clock nor a restart of this broker affects it. Raises
        BadOption.
        """
        text = self.request.headers.get(WAITED_HEADER, "0")
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise BadOption(f"The header {WAITED_HEADER} must be a number of seconds")
        return seconds

    async def _begin_stream(self) -> None:
        if self._set_stream_up():
            await self.flush()

    def _set_stream_up(self) -> bool:
        """Sets the stream's header if it begins now; returns whether it does."""
        if self._streaming:
            return False
        self._streaming = True
        self.set_header("Content-Type", "application/x-ndjson")
        return True

    def beat(self) -> None:
        """Sends a heartbeat, also during other work for the client, such as removing an old container.

        A refusal before the first one is sent as an HTTP status. Who hasn't read the last one gets none.
        """
        if self._closed.is_set() or not (self._beating is None or self._beating.done()):
            return
        self._set_stream_up()
        self.write(_HEARTBEAT)
        self._beating = asyncio.ensure_future(self.flush())
        self._beating.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _follow(self, lease: Lease, deadline: float) -> None:
        """Sends changes until the client closes the connection. Raises the refusal that ends the stream.

        `deadline` is the end of the queue timeout, by the monotonic clock.
        """
        site = self.site
        closed = asyncio.ensure_future(self._closed.wait())
        coming: asyncio.Future[Any] | None = None
        obstacle = ""
        try:
            async with site.service.watch(lease.id) as changes:
                while not closed.done():
                    coming = coming or asyncio.ensure_future(anext(changes))
                    pause = None if self._granted else max(0.0, deadline - time.monotonic())
                    await asyncio.wait({coming, closed}, timeout=pause, return_when="FIRST_COMPLETED")
                    if coming.done():
                        change, coming = coming.result(), None
                        obstacle = change.obstacle or change.idle_but_out
                        await self._tell(change, max(0.0, deadline - time.monotonic()))
                    elif not closed.done() and not self._granted:
                        await self._time_out(lease, obstacle)
        finally:
            for future in (closed, coming):
                if future is not None:
                    future.cancel()
                    await asyncio.wait({future})

    async def _tell(self, change: Change, left_seconds: float) -> None:
        """`left_seconds`: until the queue timeout."""
        lease, position, waiting, obstacle, wait, idle_but_out = change
        if lease.state is LeaseState.WAITING:
            if position is not None and waiting is not None:
                place = Place(position, waiting)
                message = obstacle or wait_message(place, lease.want, wait, self.site.simulated)
                if idle_but_out:
                    message = f"{message}. {idle_but_out}"
                ends_at = utc_now() + timedelta(seconds=left_seconds)
                event = queued_event(place, message, wait)
                await self._send(event.model_copy(update={"ends_at": ends_at}))
        elif lease.state in (LeaseState.RELEASING, LeaseState.CLOSED):
            raise refusal_in(lease.reason) or LeaseConflict(
                f"The lease of this server has ended ({lease.reason}): start the server again"
            )
        elif not self._granted:
            patch = await self.site.service.patch(lease)
            self._granted = True
            self.site.metrics.acquire_seconds.observe(time.monotonic() - self._started)
            await self._send(lease_event(lease, patch))

    async def _time_out(self, lease: Lease, obstacle: str) -> None:
        self.site.log.info("The queue timeout is over %s", log_context(lease))
        await self.site.service.release(lease.id, "the queue's time was over")
        seconds = self.site.timeout_of(lease.tier)
        raise QueueTimeout(timeout_message(seconds, lease.want.device_count, obstacle))

    async def _send(self, event: Event) -> None:
        if self._have_answered():
            self.site.metrics.answer_seconds.observe(time.monotonic() - self._started)
        await self._send_line(event_to_line(event))

    def _have_answered(self) -> bool:
        """Nobody waits for the answer any more; returns whether somebody did."""
        if self._answered:
            return False
        self._answered = True
        self.site.hurry.end()
        return True

    def on_finish(self) -> None:
        """Also of a refusal."""
        self._have_answered()

    async def _send_line(self, line: str) -> None:
        self.write(line)
        await self.flush()


def bind_socket(path: str) -> socket.socket:
    """Listens on the unix socket `path`, mode 0600; replaces a socket that a dead broker left.

    Call it with the lock held. Raises ConfigError with the remedy if the path can't be used.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"The socket's path {path!r} is longer than {MAX_PATH_BYTES} bytes, which Linux refuses: set "
            "c.GpuSite.socket_path to a shorter one, like /run/gpuspawner/broker.sock"
        )
    if _answers(path):
        raise ConfigError(f"Another broker answers on {path}: set c.GpuSite.socket_path to another one")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # mode 0600 from the first moment on
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise FileExistsError("another file, which is not a socket, has this path")
            os.unlink(path)
        listener.bind(path)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The socket {path} can't be created: {error}. Its folder must exist and be writable; set "
            "c.GpuSite.socket_path to another path if needed"
        ) from error
    finally:
        os.umask(before)
    return listener


def unbind_socket(path: str) -> None:
    """Removes the socket's file; call it before the lock is released."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(path) == 0


def queued_event(place: Place, message: str, wait: Estimate | None) -> QueuedEvent:
    """The place and the likely wait for programs and, in words, for people."""
    if wait is None:
        return QueuedEvent(position=place.position, waiting=place.waiting, message=message)
    return QueuedEvent(
        position=place.position,
        waiting=place.waiting,
        message=message,
        earliest_at=datetime.fromtimestamp(wait.earliest_seconds, UTC),
        latest_at=datetime.fromtimestamp(wait.latest_seconds, UTC),
        sessions_before=wait.endings,
    )


def wait_message(place: Place, want: Want, wait: Estimate | None, simulated: bool = False) -> str:
    """The place and the likely wait: "2nd in line for a GPU" where nothing is known of the wait, else
    "3rd of 7 for an 8 GiB slice: likely between 11:35 and 12:10, when two sessions have ended". Also on which
    machine, if only one may serve.
    """
    what = asked_for(want, simulated)
    where = "" if want.node is None else f". Your files are on the machine {want.node}: it starts there"
    if wait is None:
        return f"{ordinal(place.position)} in line for {what}{where}"
    ended = f", when {_sessions(wait.endings)} ended" if wait.endings else ""
    when = likely(wait.earliest_seconds, wait.latest_seconds)
    return f"{ordinal(place.position)} of {place.waiting} for {what}: {when}{ended}{where}"


def likely(earliest_seconds: float, latest_seconds: float) -> str:
    """A range of times in words, on the machine's clock: "likely between 11:35 and 12:10 CET"."""
    earliest, latest = _local(earliest_seconds), _local(latest_seconds)
    zone = f" {latest:%Z}".rstrip()
    first = f"{earliest:%H:%M}" if earliest.date() == latest.date() else f"{earliest:%a %H:%M}"
    last = f"{latest:%H:%M}" if earliest.date() == latest.date() else f"{latest:%a %H:%M}"
    return f"likely about {last}{zone}" if first == last else f"likely between {first} and {last}{zone}"


def asked_for(want: Want, simulated: bool = False) -> str:
    """What is waited for, in words: "a GPU", "2 simulated GPUs", "an 8 GiB slice"."""
    word = "simulated " if simulated else ""
    if want.mode is Mode.SLICE:
        size = "" if want.memory_bytes is None else f"{format_bytes(want.memory_bytes)} "
        name = f"{word}{size}slice"
    elif want.mode is Mode.TURNS:
        name = f"{word}GPU in turns"
    else:
        name = f"{word}MIG instance" if want.mode is Mode.MIG else f"{word}GPU"
    if want.device_count > 1:
        return f"{want.device_count} {name}s"
    return f"{'an' if name.startswith(('8', '11', '18')) else 'a'} {name}"


def _sessions(count: int) -> str:
    numbers = ("", "one session has", "two sessions have", "three sessions have")
    return numbers[count] if count < len(numbers) else f"{count} sessions have"


def _local(seconds: float) -> datetime:
    """The time on the clock of the machine, as people read it; a minute is precise enough."""
    return datetime.fromtimestamp(round(seconds / 60) * 60, UTC).astimezone()


def timeout_message(seconds: float, device_count: int, obstacle: str = "") -> str:
    """Why the spawn ended, and what to do; `obstacle` is why no healthy device could serve it."""
    span = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    what = "No GPU" if device_count == 1 else f"Not enough GPUs (you asked for {device_count})"
    if obstacle:
        return f"{what} became free in {span}. {obstacle} Choose another tier or CPU, or try again later."
    return f"{what} became free in {span}: all are in use. Choose CPU, or try again later."
