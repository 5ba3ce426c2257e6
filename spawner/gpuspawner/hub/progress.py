"""The steps of one start, sent to every browser that shows its progress page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from typing import Any


class Step(StrEnum):
    """What a start goes through, in this order."""

    IMAGE = "image"
    GPU = "gpu"
    CONTAINER = "container"
    SERVER = "server"


LABELS = {
    Step.IMAGE: "Image",
    Step.GPU: "GPU",
    Step.CONTAINER: "Container",
    Step.SERVER: "JupyterLab",
}
WITHOUT_GPU = (Step.IMAGE, Step.CONTAINER, Step.SERVER)


@dataclass(frozen=True, slots=True)
class StepView:
    """A step for the page: `state` is "todo", "active" or "done", `detail` the last sentence about it."""

    name: str
    label: str
    state: str
    detail: str = ""


class Progress:
    """Collects events; each follower gets all of them, also those from before it connected.

    `passed(step, seconds)` is called for each step that was completed, with how long it took.
    """

    def __init__(
        self,
        passed: Callable[[Step, float], None] = lambda step, seconds: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._steps: tuple[Step, ...] = WITHOUT_GPU
        self.ended = False
        self._cancelled = ""
        self._passed, self._monotonic = passed, monotonic
        self._current: tuple[Step, float] | None = None

    def begin(self, steps: Sequence[Step]) -> None:
        """Says which steps the start has."""
        self._steps = tuple(steps)
        self._current = self._steps[0], self._monotonic()

    def say(self, percent: int, message: str, step: Step = Step.IMAGE, advice: str = "", **more: Any) -> None:
        """Adds an event in the format of JupyterHub's progress page. The same event isn't repeated.

        JupyterHub passes our own keys on: `step`, all `steps`, and `more`, which is JSON. `advice` is for
        people who read JupyterHub's own page; programs get only the message.
        """
        self.enter(step)
        event: dict[str, Any] = {"progress": percent, "message": message, "step": step.value}
        event["steps"] = [each.value for each in self._steps]
        event.update(more)
        if advice:
            event["html_message"] = f"<strong>{escape(message)}</strong><br>{escape(advice)}"
        if not self._events or self._events[-1] != event:
            self._events.append(event)
            self._wake()

    def end(self, *, done: bool = False, cancelled: str = "") -> None:
        """Ends the stream: every follower stops after the last event.

        `done`: the server has started. `cancelled`: the sentence for a start that somebody has cancelled;
        JupyterHub has none (6.1: "Spawn cancelled"). A start that failed is told of by JupyterHub.
        """
        if done:
            self.enter(None)
        self._cancelled = cancelled
        self.ended = True
        self._wake()

    @property
    def last(self) -> Mapping[str, Any]:
        """The last event; empty if there is none."""
        return self._events[-1] if self._events else {}

    def view(self) -> list[StepView]:
        """The steps as they are now, for a page that is made on the server."""
        current = Step(self.last["step"]) if self.last else self._steps[0]
        details = {event["step"]: str(event["message"]) for event in self._events}
        at = self._steps.index(current) if current in self._steps else 0
        return [
            StepView(
                step.value,
                LABELS[step],
                "done" if number < at else "active" if number == at else "todo",
                details.get(step.value, ""),
            )
            for number, step in enumerate(self._steps)
        ]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yields all events from the first one until the end."""
        sent = 0
        while True:
            changed = self._changed
            while sent < len(self._events):
                sent += 1
                yield dict(self._events[sent - 1])
            if self.ended:
                if self._cancelled:
                    yield {"progress": 100, "failed": True, "message": self._cancelled}
                return
            if not changed.is_set():
                await changed.wait()

    def enter(self, step: Step | None) -> None:
        """The start is in this step now, or through with all of them (None). Tells followers nothing."""
        if self._current is None or self._current[0] is step:
            return
        now = self._monotonic()
        before, since = self._current
        self._current = None if step is None else (step, now)
        self._passed(before, now - since)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
