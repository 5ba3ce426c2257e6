"""Pulls of images: one pull serves all users who want an image; limits in total and per user.

A pull continues when its user leaves; the next start of the image joins it. But nobody can occupy a slot
for ever: a pull that nobody waits for is cancelled after a while, and at once if another pull needs
its slot. This module doesn't use Docker's client: `work` does, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..core.errors import EngineFault
from ..protocol.pulls import PullMessage
from .pull_progress import Event, Layers, PullNews

__all__ = ["SILENT", "Cancel", "Event", "PullLimits", "Pulls", "Tell", "Work"]

Tell = Callable[[str], None]
"""Gets a sentence, which is a `PullNews` if it is about a pull's progress."""
TELL_SECONDS = 2.0
"""Shortest time between two updates of a progress page: Docker sends tens of events per second."""
FRESH_SECONDS = 60.0
"""With `always`, an image isn't pulled again within this time, for example for thirty users at once."""
_MOST_SHOWN = 255
"""Characters of an image's name, and of a sentence, that the broker is told."""
SILENT = 504
"""Status of the EngineFault of a pull that sent no data for too long."""


class Cancel:
    """Tells a pull's thread to stop. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._action: Callable[[], None] | None = None
        self._set = False

    @property
    def is_set(self) -> bool:
        """Whether the thread must stop."""
        return self._set

    def set(self) -> None:
        """Stops the thread: calls the action given to `then`."""
        with self._lock:
            self._set = True
            if self._action is not None:
                self._action()

    def then(self, action: Callable[[], None]) -> None:
        """Calls `action` when this is set; at once if it already is."""
        with self._lock:
            self._action = action
            if self._set:
                action()


Work = Callable[[Callable[[Event], None], Cancel], None]
"""Pulls in the calling thread, passes on each event, and stops if cancelled; raises EngineFault."""


@dataclass(frozen=True, slots=True)
class PullLimits:
    """How many pulls run at a time, in total and per user; how long a pull may run that nobody waits for."""

    at_once: int = 6
    by_user: int = 2
    unattended_seconds: float = 300.0


class _State(Enum):
    IN_LINE = "in line"
    RUNNING = "running"
    GIVEN_UP = "given up"
    """Its slot is free; its thread may need a moment to end and counts for its user until then."""


@dataclass(eq=False, slots=True)
class _Pull:
    image: str
    user: str
    """The first user who waits for it; if nobody waits, the last user who left."""
    work: Work
    done: asyncio.Future[EngineFault | None]
    state: _State = _State.IN_LINE
    layers: Layers = field(default_factory=Layers)
    listeners: list[tuple[str, Tell]] = field(default_factory=list)
    cancel: Cancel = field(default_factory=Cancel)
    said: str = ""
    """The last sentence that was sent to everybody who waits."""
    unattended_since: float = 0.0
    timer: asyncio.TimerHandle | None = None

    def sentence(self) -> PullNews:
        """The sentence for the progress page."""
        if self.state is _State.IN_LINE:
            return PullNews(f"Waiting for other pulls to finish before pulling image {self.image}")
        how_far = str(self.layers)
        text = f"Pulling image {self.image}" + (f": {how_far}" if how_far else "")
        return PullNews(text, self.layers.percent)

    def tell(self) -> None:
        """Sends the sentence, if it has changed, to everybody who waits."""
        if (news := self.sentence()) != self.said:
            self.said = news
            for _, tell in list(self.listeners):
                tell(news)


class Pulls:
    """The current pulls, by image. One object for a hub's event loop."""

    def __init__(self, log: logging.Logger, limits: PullLimits | None = None) -> None:
        self._log = log
        self._limits = limits or PullLimits()
        self._by_image: dict[str, _Pull] = {}
        """Pulls that a start may join, in the order of their requests."""
        self._working: list[_Pull] = []
        """Pulls that have a thread: running or cancelled."""
        self._pulled_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_begin: Callable[[], None] = lambda: None
        """Called when somebody asks for a pull; must not fail."""

    def views(self) -> tuple[PullMessage, ...]:
        """The pulls that run or wait for a slot, in the order of their requests."""
        return tuple(
            PullMessage(
                image=pull.image[:_MOST_SHOWN],
                message=pull.sentence()[:_MOST_SHOWN],
                percent=pull.sentence().percent,
                waiting=len(pull.listeners),
            )
            for pull in self._by_image.values()
        )

    def fresh(self, image: str) -> bool:
        """Whether it was pulled within the last FRESH_SECONDS."""
        at = self._pulled_at.get(image)
        return at is not None and asyncio.get_running_loop().time() - at < FRESH_SECONDS

    def forget_pulled(self) -> None:
        """Clears the list of recent pulls, so that `always` asks the registry again."""
        self._pulled_at.clear()

    async def pull(self, image: str, user: str, work: Work, tell: Tell) -> None:
        """Waits until the image is pulled; joins a pull of the same image. Raises EngineFault.

        `tell` gets a sentence at once and at each progress. If the caller is cancelled, the pull continues.
        """
        pull = self._by_image.get(image)
        if pull is None:
            pull = _Pull(image, user, work, asyncio.get_running_loop().create_future())
            self._by_image[image] = pull
        self.on_begin()
        with self._listening(pull, user, tell):
            self._start_next()
            pull.said = pull.sentence()
            tell(pull.said)
            fault = await asyncio.shield(pull.done)
        if fault is not None:
            raise EngineFault(str(fault), fault.status) from fault

    # ---- users who wait

    @contextmanager
    def _listening(self, pull: _Pull, user: str, tell: Tell) -> Iterator[None]:
        listener = (user, tell)
        pull.listeners.append(listener)
        pull.user = pull.listeners[0][0]
        if pull.timer is not None:
            pull.timer.cancel()
            pull.timer = None
        try:
            yield
        finally:
            pull.listeners.remove(listener)
            pull.user = pull.listeners[0][0] if pull.listeners else user
            if not pull.listeners and not pull.done.done():
                self._leave_alone(pull)
            self._start_next()

    def _leave_alone(self, pull: _Pull) -> None:
        """Called when nobody waits for it any more."""
        if pull.state is _State.IN_LINE:
            del self._by_image[pull.image]
            return
        loop = asyncio.get_running_loop()
        pull.unattended_since = loop.time()
        pull.timer = loop.call_later(self._limits.unattended_seconds, self._give_up, pull)

    # ---- which pull runs next

    def _start_next(self) -> None:
        """Starts queued pulls that have a free slot; if needed, cancels pulls that nobody waits for."""
        for pull in list(self._by_image.values()):
            if pull.state is not _State.IN_LINE:
                continue
            if not self._has_place(pull) and (unattended := self._in_the_way(pull)) is not None:
                self._give_up(unattended)
            if self._has_place(pull):
                self._begin(pull)

    def _has_place(self, pull: _Pull) -> bool:
        running = sum(each.state is _State.RUNNING for each in self._working)
        return running < self._limits.at_once and len(self._of(pull.user)) < self._limits.by_user

    def _of(self, user: str) -> list[_Pull]:
        return [each for each in self._working if each.user == user]

    def _in_the_way(self, pull: _Pull) -> _Pull | None:
        """The pull to cancel for this one: the one without users for the longest time; None if all have
        users.

        If the user is at their own limit, it is one of their pulls; then this one waits until its thread has
        ended.
        """
        candidates = self._working
        if len(own := self._of(pull.user)) >= self._limits.by_user:
            candidates = own
            if any(each.state is _State.GIVEN_UP for each in own):
                return None
        alone = [each for each in candidates if each.state is _State.RUNNING and not each.listeners]
        return min(alone, key=lambda each: each.unattended_since, default=None)

    def _give_up(self, pull: _Pull) -> None:
        self._log.info("Cancelled the pull of image %s: nobody waits for it user=%s", pull.image, pull.user)
        if pull.timer is not None:
            pull.timer.cancel()
        pull.state = _State.GIVEN_UP
        del self._by_image[pull.image]
        pull.cancel.set()

    # ---- the work

    def _begin(self, pull: _Pull) -> None:
        pull.state = _State.RUNNING
        self._working.append(pull)
        task = asyncio.create_task(self._run(pull), name=f"pull {pull.image}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, pull: _Pull) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._log.info("Pulling image %s user=%s", pull.image, pull.user)
        done = _in_thread(pull)
        pull.tell()
        while not done.done():
            await asyncio.wait([done], timeout=TELL_SECONDS)
            pull.tell()
        self._end(pull, done.result(), loop.time() - begun)

    def _end(self, pull: _Pull, fault: EngineFault | None, seconds: float) -> None:
        self._working.remove(pull)
        if pull.timer is not None:
            pull.timer.cancel()
        if fault is None:
            self._pulled_at[pull.image] = asyncio.get_running_loop().time()
            self._log.info("Pulled image %s in %.1f s", pull.image, seconds)
        elif pull.state is _State.RUNNING:
            self._log.warning("The pull of image %s failed after %.1f s: %s", pull.image, seconds, fault)
        if pull.state is _State.RUNNING:
            del self._by_image[pull.image]
        pull.done.set_result(fault)
        self._start_next()


def _in_thread(pull: _Pull) -> asyncio.Future[EngineFault | None]:
    """Runs the work in its own daemon thread: an executor's thread would delay the hub's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[EngineFault | None] = loop.create_future()

    def finish(fault: EngineFault | None) -> None:
        if not done.done():
            done.set_result(fault)

    def on_loop(call: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the hub has ended
            loop.call_soon_threadsafe(call, value)

    def run() -> None:
        fault: EngineFault | None = EngineFault("the pull's thread failed")
        try:
            pull.work(lambda event: on_loop(pull.layers.feed, event), pull.cancel)
            fault = None
        except EngineFault as error:
            fault = error
        finally:
            on_loop(finish, fault)

    threading.Thread(target=run, name=f"pull {pull.image}"[:60], daemon=True).start()
    return done
