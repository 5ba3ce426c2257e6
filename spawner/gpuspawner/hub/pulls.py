"""Pulls of images: one for all who want the same, with what is told meanwhile and why one failed.

A pull goes on when who asked for it leaves: the next start of the image joins it. It ends with the hub,
and when nothing has come for too long. Nothing here knows Docker's client: `work` blocks on it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import EngineFault, StartFault

Event = Mapping[str, Any]
"""A line of Docker's `POST /images/create`."""
Work = Callable[[Callable[[Event], None]], None]
"""Pulls in the calling thread and gives each event; raises EngineFault."""
Tell = Callable[[str], None]

TELL_SECONDS = 2.0
"""How often a progress page hears of a pull, at most: Docker sends tens of events a second."""
FRESH_SECONDS = 60.0
"""With `always`, an image that was pulled so lately isn't pulled again: thirty users who click together."""
_AT_ONCE = 6
"""Pulls of different images at a time. The engine loads three layers at a time in any case."""
SILENT = 504
"""Status of the EngineFault of a pull of which nothing was heard for too long."""
_HERE_ALREADY = "Already exists"
_DONE = frozenset({_HERE_ALREADY, "Pull complete"})
_LOADED = frozenset({"Verifying Checksum", "Download complete", "Extracting"})
_MEGABYTE = 1_000_000
_OURS = "gpuspawner/"


@dataclass(slots=True)
class _Layer:
    status: str = ""
    current_bytes: int = 0
    total_bytes: int | None = None


class Layers:
    """How far a pull is, from Docker's events."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def feed(self, event: Event) -> None:
        """Takes one event. Those that are of no layer are passed over."""
        name, status = event.get("id"), str(event.get("status") or "")
        if not isinstance(name, str) or status.startswith("Pulling from"):
            return
        layer = self._layers.setdefault(name, _Layer())
        layer.status = status
        detail = event.get("progressDetail") or {}
        current, total = detail.get("current"), detail.get("total")
        if status == "Downloading" and isinstance(current, int):
            layer.current_bytes = current
            if isinstance(total, int) and total > 0:
                layer.total_bytes = total
        elif status in _LOADED and layer.total_bytes is not None:
            layer.current_bytes = layer.total_bytes

    def __str__(self) -> str:
        """ "3 of 7 layers, 120 of 840 MB, 14 %"; sizes once Docker has told those of all layers."""
        if not self._layers:
            return ""
        done = sum(layer.status in _DONE for layer in self._layers.values())
        text = f"{done} of {len(self._layers)} layers"
        coming = [layer for layer in self._layers.values() if layer.status != _HERE_ALREADY]
        # A small layer may be through before Docker says its size: it doesn't count.
        sized = [layer for layer in coming if layer.total_bytes is not None]
        current = sum(layer.current_bytes for layer in sized)
        if any(layer.total_bytes is None and layer.status not in _DONE | _LOADED for layer in coming):
            return f"{text}, {_megabytes(current)} MB so far"
        total = sum(layer.total_bytes or 0 for layer in sized)
        if not total:
            return text
        return f"{text}, {_megabytes(current)} of {_megabytes(total)} MB, {100 * current // total} %"


def _megabytes(size_bytes: int) -> str:
    size = size_bytes / _MEGABYTE
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"


@dataclass(slots=True)
class _Pull:
    layers: Layers = field(default_factory=Layers)
    listeners: list[Tell] = field(default_factory=list)
    task: asyncio.Task[EngineFault | None] | None = None


class Pulls:
    """What is being pulled now, by image. One for a hub's loop."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._running: dict[str, _Pull] = {}
        self._pulled_at: dict[str, float] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def fresh(self, image: str) -> bool:
        """Whether it was pulled within the last FRESH_SECONDS."""
        at = self._pulled_at.get(image)
        return at is not None and asyncio.get_running_loop().time() - at < FRESH_SECONDS

    async def pull(self, image: str, work: Work, tell: Tell) -> None:
        """Waits until the image is pulled, with all others who wait for it. Raises EngineFault.

        `tell` gets a sentence at once and then whenever there is news. Cancelling leaves the pull to itself.
        """
        pull = self._running.get(image)
        if pull is None:
            pull = self._running[image] = _Pull()
            pull.task = asyncio.create_task(self._run(image, work, pull), name=f"pull {image}")
            pull.task.add_done_callback(lambda _: self._running.pop(image, None))
        assert pull.task is not None
        pull.listeners.append(tell)
        tell(_sentence(image, pull.layers))
        try:
            fault = await asyncio.shield(pull.task)
        finally:
            pull.listeners.remove(tell)
        if fault is not None:
            raise EngineFault(str(fault), fault.status) from fault

    async def _run(self, image: str, work: Work, pull: _Pull) -> EngineFault | None:
        async with self._turns:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            self._log.info("Pulling image %s", image)
            done = _in_thread(work, pull.layers.feed, image)
            told = ""
            while not done.done():
                await asyncio.wait([done], timeout=TELL_SECONDS)
                if (news := _sentence(image, pull.layers)) != told:
                    told = news
                    for tell in list(pull.listeners):
                        tell(news)
            fault = done.result()
            seconds = loop.time() - begun
            if fault is None:
                self._pulled_at[image] = loop.time()
                self._log.info("Pulled image %s in %.1f s", image, seconds)
            else:
                self._log.warning("Image %s was not pulled, after %.1f s: %s", image, seconds, fault)
            return fault


def _sentence(image: str, layers: Layers) -> str:
    how_far = str(layers)
    return f"Pulling image {image}" + (f": {how_far}" if how_far else "")


def _in_thread(work: Work, feed: Callable[[Event], None], image: str) -> asyncio.Future[EngineFault | None]:
    """Runs `work` in a thread of its own that doesn't keep the hub from ending, as an executor's would."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[EngineFault | None] = loop.create_future()

    def finish(fault: EngineFault | None) -> None:
        if not done.done():
            done.set_result(fault)

    def on_loop(call: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the hub has ended
            loop.call_soon_threadsafe(call, value)

    def run() -> None:
        fault: EngineFault | None = EngineFault("the pull's thread broke")
        try:
            work(lambda event: on_loop(feed, event))
            fault = None
        except EngineFault as error:
            fault = error
        finally:
            on_loop(finish, fault)

    threading.Thread(target=run, name=f"pull {image}"[:60], daemon=True).start()
    return done


# What Docker says (20.10 and 28.5, with the registries of Docker, Quay and Debian's docker-registry), and
# what it means. The first that fits counts.
_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("no space left on device",),
        "disk_full",
        "This machine's disk is full: tell your admin. Admin: see 'docker system df', and make room with "
        "'docker image prune'.",
    ),
    (
        ("manifest unknown", "not found: manifest", "manifest for"),
        "image_missing",
        "The registry doesn't have it: check the name and the tag.",
    ),
    (
        ("toomanyrequests", "too many requests", "rate limit"),
        "registry_denied",
        "The registry has had too many requests from here: try again later. Admin: 'docker login' raises the "
        "limit of most registries.",
    ),
    (
        ("pull access denied", "unauthorized", "authentication required", "denied", "no basic auth",
         "forbidden"),
        "registry_denied",
        "The registry doesn't give it out: it isn't there, or needs a login. Check the name. Admin: "
        "'docker login' as the user whom the hub runs as.",
    ),
    (
        ("http response to https", "x509", "certificate", "tls"),
        "registry_silent",
        "The registry's connection can't be trusted. Admin: install its certificate, or name it under "
        "'insecure-registries' in Docker's daemon.json.",
    ),
    (
        ("connection refused", "no such host", "i/o timeout", "timeout exceeded", "no route", "unreachable",
         "server misbehaving", "connection reset", "deadline exceeded", "eof"),
        "registry_silent",
        "The registry doesn't answer: try again in a few minutes, or choose an image that is here. Admin: "
        "see that this machine reaches it ('docker pull' on the command line).",
    ),
)  # fmt: skip


def explain(image: str, fault: EngineFault, *, here: bool = False, silence_seconds: float = 0) -> StartFault:
    """The sentence for an image that could not be pulled. `here`: an older one of that name is present."""
    what = f"The image {image} could not be pulled" if here else f"The image {image} isn't here"
    what += ". " if here else " and could not be pulled. "
    use = " An older one is here. Admin: pull_policy = 'ifnotpresent' starts that." if here else ""
    if image.removeprefix("docker.io/").startswith(_OURS) and not here:
        use = " 'make images' builds the project's own."
    if fault.status == SILENT:
        return StartFault(
            f"{what}Nothing came for {silence_seconds:.0f} seconds: try again, what has come is kept. Admin: "
            f"see the network to its registry.{use}",
            "pull_stalled",
        )
    words = str(fault).lower()
    for signs, reason, sentence in _MEANINGS:
        if any(sign in words for sign in signs):
            return StartFault(f"{what}{sentence}{use}", reason)
    return StartFault(
        f"{what}Docker says: {str(fault)[:300]}. Admin: run 'docker pull {image}' to see more.{use}",
        "image_missing",
    )
