"""One pull for all who want an image; what is told meanwhile; what an error means."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub import pulls as pulls_module
from gpuspawner.hub.pulls import SILENT, Event, Layers, Pulls, explain
from hypothesis import given
from hypothesis import strategies as st


def layer(name: str, status: str, current: int | None = None, total: int | None = None) -> Event:
    detail = {} if current is None else {"current": current, "total": total}
    return {"id": name, "status": status, "progressDetail": detail}


def test_how_far_a_pull_is() -> None:
    layers, told = Layers(), []
    for event in (
        {"id": "2026-1", "status": "Pulling from jupyter/lab"},
        layer("a", "Already exists"),
        layer("b", "Pulling fs layer"),
        layer("c", "Waiting"),
        layer("b", "Downloading", 5_000_000, 40_000_000),
        layer("c", "Downloading", 1_000_000, 60_000_000),
        layer("b", "Verifying Checksum"),
        layer("b", "Extracting", 1_000_000, 40_000_000),
        layer("b", "Pull complete"),
        {"status": "Digest: sha256:0a"},
        layer("c", "Download complete"),
        layer("c", "Pull complete"),
    ):
        layers.feed(event)
        told.append(str(layers))
    assert told == [
        "",
        "1 of 1 layers",
        "1 of 2 layers, 0.0 MB so far",
        "1 of 3 layers, 0.0 MB so far",
        "1 of 3 layers, 5.0 MB so far",
        "1 of 3 layers, 6.0 of 100 MB, 6 %",
        "1 of 3 layers, 41 of 100 MB, 41 %",
        "1 of 3 layers, 41 of 100 MB, 41 %",
        "2 of 3 layers, 41 of 100 MB, 41 %",
        "2 of 3 layers, 41 of 100 MB, 41 %",
        "2 of 3 layers, 100 of 100 MB, 100 %",
        "3 of 3 layers, 100 of 100 MB, 100 %",
    ]


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.sampled_from(["a", "b", 7, None]),
                "status": st.sampled_from(["Downloading", "Pull complete", "Waiting", "x", None]),
                "progressDetail": st.none()
                | st.dictionaries(st.sampled_from(["current", "total"]), st.integers() | st.text()),
            },
        )
    )
)
def test_odd_events_break_nothing(events: list[Event]) -> None:
    layers = Layers()
    for event in events:
        layers.feed(event)
        assert len(str(layers)) < 200


class Docker:
    """The blocking side: each pull waits until it is let go, and gives the events that were put in."""

    def __init__(self, fault: EngineFault | None = None) -> None:
        self.go, self.fault, self.pulls = threading.Event(), fault, 0

    def work(self, feed: Callable[[Event], None]) -> None:
        self.pulls += 1
        feed(layer("a", "Downloading", 1_000_000, 4_000_000))
        assert self.go.wait(10)
        if self.fault:
            raise self.fault
        feed(layer("a", "Pull complete"))


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> Pulls:
    monkeypatch.setattr(pulls_module, "TELL_SECONDS", 0.02)
    return Pulls(logging.getLogger("test"))


async def test_thirty_users_share_one_pull_and_all_are_told(pulls: Pulls) -> None:
    docker, told = Docker(), [[] for _ in range(30)]
    waiting = [asyncio.create_task(pulls.pull("lab", docker.work, told[user].append)) for user in range(30)]
    await asyncio.sleep(0.1)
    late: list[str] = []
    waiting.append(asyncio.create_task(pulls.pull("lab", docker.work, late.append)))
    await asyncio.sleep(0.05)
    assert not pulls.fresh("lab")
    docker.go.set()
    await asyncio.gather(*waiting)
    assert docker.pulls == 1
    news = "Pulling image lab: 0 of 1 layers, 1.0 of 4.0 MB, 25 %"
    assert all(lines[:2] == ["Pulling image lab", news] for lines in told)
    assert late[0] == news
    assert pulls.fresh("lab")
    assert not pulls.fresh("other")


async def test_it_goes_on_without_who_asked_and_the_next_joins(pulls: Pulls) -> None:
    docker = Docker()
    first = asyncio.create_task(pulls.pull("lab", docker.work, lambda news: None))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    second = asyncio.create_task(pulls.pull("lab", docker.work, lambda news: None))
    await asyncio.sleep(0.05)
    docker.go.set()
    await second
    assert docker.pulls == 1
    await pulls.pull("lab", docker.work, lambda news: None)  # later, it is a new one
    assert docker.pulls == 2


async def test_all_learn_of_a_fault_and_the_next_tries_again(pulls: Pulls) -> None:
    docker = Docker(EngineFault("manifest unknown", 404))
    waiting = [asyncio.create_task(pulls.pull("lab", docker.work, lambda news: None)) for _ in range(3)]
    await asyncio.sleep(0.05)
    docker.go.set()
    faults = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(str(fault), getattr(fault, "status", None)) for fault in faults] == [
        ("manifest unknown", 404)
    ] * 3
    assert len({id(fault) for fault in faults}) == 3
    assert not pulls.fresh("lab")
    docker.fault = None
    await pulls.pull("lab", docker.work, lambda news: None)
    assert docker.pulls == 2


async def test_a_thread_that_breaks_is_a_fault(pulls: Pulls, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()  # by Python, in the thread, after the fault was passed on
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.set())

    def broken(feed: Callable[[Event], None]) -> None:
        raise RuntimeError("odd")

    with pytest.raises(EngineFault, match="the pull's thread broke"):
        await pulls.pull("lab", broken, lambda news: None)
    assert await asyncio.to_thread(told.wait, 5)


@pytest.mark.parametrize(
    ("words", "status", "reason", "sentence"),
    [
        # Engine 20.10.24 against Debian's docker-registry, as seen in tests/docker/test_pull.py
        ("manifest for 127.0.0.1:5000/lab:2 not found: manifest unknown: manifest unknown", 404,
         "image_missing", "The registry doesn't have it: check the name and the tag."),
        ("Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused", 500,
         "registry_silent", "The registry doesn't answer: "),
        ("pull access denied for lab, repository does not exist or may require 'docker login': denied: "
         "requested access to the resource is denied", 404, "registry_denied",
         "The registry doesn't give it out: "),
        ("Get \"https://r/v2/\": no basic auth credentials", 500, "registry_denied",
         "The registry doesn't give it"),
        ("Get https://r/v2/: net/http: request canceled while waiting for connection (Client.Timeout "
         "exceeded while awaiting headers)", 500, "registry_silent", "The registry doesn't answer: "),
        ("Get \"https://r/v2/\": http: server gave HTTP response to HTTPS client", 500, "registry_silent",
         "The registry's connection can't be trusted. "),
        ("failed to register layer: write /x: no space left on device", 500, "disk_full",
         "This machine's disk is full"),
        ("toomanyrequests: You have reached your pull rate limit.", 500, "registry_denied",
         "The registry has had too"),
        ("something new", 500, "image_missing",
         "Docker says: something new. Admin: run 'docker pull lab' to see more."),
        ("", SILENT, "pull_stalled", "Nothing came for 300 seconds: try again, what has come is kept. "),
    ],
)  # fmt: skip
def test_what_an_error_means(words: str, status: int, reason: str, sentence: str) -> None:
    fault = explain("lab", EngineFault(words, status), silence_seconds=300)
    assert fault.reason == reason
    assert str(fault).startswith(f"The image lab isn't here and could not be pulled. {sentence}")


def test_an_older_one_and_the_projects_own_are_spoken_of() -> None:
    fault = EngineFault("connection refused", 500)
    assert str(explain("lab", fault, here=True)).startswith("The image lab could not be pulled. The registry")
    assert str(explain("lab", fault, here=True)).endswith(
        " An older one is here. Admin: pull_policy = 'ifnotpresent' starts that."
    )
    assert str(explain("gpuspawner/lab:1", fault)).endswith(" 'make images' builds the project's own.")
