"""What our versions of JupyterHub's pages show of one server."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest
from gpuspawner.core.errors import (
    BadOption,
    ConfigError,
    EngineFault,
    GpuSpawnerError,
    HubFull,
    NoCapacity,
    QueueTimeout,
    StartFault,
)
from gpuspawner.hub.pages import Link, Meanwhile, SpawnLinks, StartView, render_failure
from gpuspawner.hub.progress import Step, StepView

from tests.unit.fake_spawner import make_container, make_spawner

CPU = Link("Start with CPU now", "/hub/spawn/Ada?opt-profile=cpu")
CHOOSE = Link("Choose again", "/hub/spawn/Ada", "again")


def test_a_failure_is_a_sentence_with_its_log_folded_away_and_buttons() -> None:
    html = render_failure("It <ended>.", "line & one\nline two", [CPU, CHOOSE])
    assert [text.strip() for text in re.findall(r">([^<>]+)<", html) if text.strip()] == [
        "It &lt;ended&gt;.", "Last log lines", "line &amp; one\nline two", "Start with CPU now",
        "Choose again",
    ]  # fmt: skip
    assert re.findall(r'<a class="([^"]*)" href="([^"]*)"', html) == [
        ("btn btn-primary", CPU.url),
        ("btn btn-outline-contrast gpu-again", CHOOSE.url),
    ]
    assert "<details" not in render_failure("It ended.", "", [])


def test_options_in_an_address_are_quoted() -> None:
    links = SpawnLinks("/hub/spawn/a%40b/train")
    assert links.start({"profile": "cpu", "image": "quay.io/x:1&y"}) == (
        "/hub/spawn/a%40b/train?opt-profile=cpu&opt-image=quay.io%2Fx%3A1%26y"
    )


def test_where_the_user_wanted_to_go_is_kept_in_each_address() -> None:
    links = SpawnLinks("/hub/spawn/ada", "/hub/user-redirect/git-pull?repo=a&b=c")
    to = "next=%2Fhub%2Fuser-redirect%2Fgit-pull%3Frepo%3Da%26b%3Dc"
    assert links.start({"profile": "cpu"}) == f"/hub/spawn/ada?opt-profile=cpu&{to}"
    assert links.choose == f"/hub/spawn/ada?{to}"
    assert SpawnLinks("/hub/spawn/ada").choose == "/hub/spawn/ada"


def test_the_buttons_after_an_error_lead_to_where_the_start_was_to_lead() -> None:
    spawner = make_spawner()
    spawner.handler = SimpleNamespace(
        get_argument=lambda name, default: {"next": "/hub/to"}.get(name, default)
    )
    urls = [link.url for link in spawner.next_steps.after(QueueTimeout("waited"), {"profile": "gpu"})]
    assert urls == [
        "/hub/spawn/Ada?opt-profile=cpu&next=%2Fhub%2Fto",
        "/hub/spawn/Ada?opt-profile=gpu&next=%2Fhub%2Fto",
        "/hub/spawn/Ada?next=%2Fhub%2Fto",
    ]


@pytest.mark.parametrize(
    ("error", "links"),
    [
        (BadOption("no"), [CHOOSE]),
        (ConfigError("set x"), [CHOOSE]),
        (NoCapacity("too many"), [CPU, CHOOSE]),
        (QueueTimeout("waited"), [CPU, Link("Wait again", "/hub/spawn/Ada?opt-profile=gpu"), CHOOSE]),
        (EngineFault("gone"), [Link("Try again", "/hub/spawn/Ada?opt-profile=gpu"), CHOOSE]),
        (HubFull("full"), [Link("Try again", "/hub/spawn/Ada?opt-profile=gpu"), CHOOSE]),
        (StartFault("ended", "exited"), [Link("Try again", "/hub/spawn/Ada?opt-profile=gpu"), CHOOSE]),
    ],
)
def test_after_an_error_there_are_buttons_for_what_can_work(
    error: GpuSpawnerError, links: list[Link]
) -> None:
    spawner = make_spawner()
    spawner.user_options = {"profile": "gpu"}
    assert spawner.next_steps.after(error, spawner.user_options) == links


@pytest.mark.parametrize(
    ("named", "settings", "names", "meanwhile"),
    [
        ("", {}, [], Meanwhile("CPU", "/hub/spawn/Ada?opt-profile=cpu", keeps_place=False)),
        (
            "", {"allow_named_servers": True}, [],
            Meanwhile("CPU", "/hub/spawn/Ada/cpu?opt-profile=cpu", keeps_place=True),
        ),
        (
            "train", {"allow_named_servers": True, "named_server_limit_per_user": 1}, ["train"],
            Meanwhile("CPU", "/hub/spawn/Ada/train?opt-profile=cpu", keeps_place=False),
        ),
        (
            "train", {"allow_named_servers": True, "named_server_limit_per_user": 2}, ["train", "cpu"],
            Meanwhile("CPU", "/hub/spawn/Ada/cpu?opt-profile=cpu", keeps_place=True),
        ),
        (
            "cpu", {"allow_named_servers": True}, ["cpu"],
            Meanwhile("CPU", "/hub/spawn/Ada/cpu?opt-profile=cpu", keeps_place=False),
        ),
    ],
)  # fmt: skip
def test_who_waits_may_work_without_a_gpu_and_keeps_the_place_where_servers_have_names(
    named: str, settings: dict[str, Any], names: list[str], meanwhile: Meanwhile
) -> None:
    spawner = make_spawner(name=named)
    spawner.user_options = {"profile": "gpu"}
    spawner.user.settings = settings
    spawner.user.orm_spawners = {name: SimpleNamespace() for name in ("", *names)}
    spawner._progress.begin(tuple(Step))
    spawner._progress.say(10, "2nd in line", Step.GPU)
    view = spawner.start_view
    assert view == StartView(
        named,
        "One GPU",
        "2nd in line",
        [
            StepView("image", "Image", "done"),
            StepView("gpu", "GPU", "active", "2nd in line"),
            StepView("container", "Container", "todo"),
            StepView("server", "JupyterLab", "todo"),
        ],
        meanwhile,
    )
    assert view.waits


def test_a_start_without_a_gpu_waits_for_none() -> None:
    spawner = make_spawner()
    spawner.user_options = {"profile": "cpu"}
    assert (spawner.start_view.meanwhile, spawner.start_view.waits) == (None, False)
    spawner.user_options = {"profile": "gone"}
    assert (spawner.start_view.tier, spawner.start_view.meanwhile) == ("", None)


# ---- how it ended


async def test_a_cancelled_start_says_so_also_after_a_restart_of_the_hub() -> None:
    spawner = make_spawner(inspect_container=[EngineFault("gone", 404)])
    spawner.user_options = {"profile": "cpu"}

    async def wait(*_: Any) -> Any:
        spawner._progress.say(10, "2nd in line", Step.GPU, queue={"position": 2})
        await asyncio.Event().wait()

    spawner.pull_image = wait  # type: ignore[method-assign]
    starting = asyncio.create_task(spawner.start())
    await asyncio.sleep(0.05)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    sentence = "The start was cancelled, and its place in the queue given up."
    spawner.clear_state()
    assert (spawner.how_it_ended, spawner.get_state()) == (sentence, {"ended": sentence})
    again = make_spawner()
    again.load_state({"ended": sentence})
    assert again.how_it_ended == sentence


async def test_a_server_that_ended_or_was_stopped_says_so_until_the_next_start() -> None:
    spawner = make_spawner(inspect_container=[make_container(running=False), EngineFault("gone", 404)])
    spawner.object_id = "c1"
    assert await spawner.poll() == "exit code 137"
    assert spawner.how_it_ended == "The server was killed (exit code 137)."
    stopped = make_spawner(inspect_container=[EngineFault("gone", 404)])
    await stopped.stop()
    assert stopped.how_it_ended == "The server was stopped."
    stopped.object_id = "c2"
    assert "ended" not in stopped.get_state()
    stopped.user_options = {"profile": "none"}
    with pytest.raises(Exception, match="There is no tier"):
        await stopped.start()
    assert stopped.how_it_ended == ""


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (137, "exit code 137", "The server was killed (exit code 137)."),
        (1, "exit code 1", "The server ended by itself (exit code 1)."),
        (None, 0, ""),
    ],
)
async def test_a_server_whose_container_the_broker_has_removed_says_how_it_ended(
    code: int | None, status: Any, said: str
) -> None:
    spawner = make_spawner(inspect_container=[EngineFault("gone", 404)])
    spawner.load_state({"object_id": "c1", "lease_id": "a1"})
    if code is not None:
        spawner.shared.broker.exit_codes["a1"] = code
    assert await spawner.poll() == status
    assert await spawner.poll() == status  # the hub asks again for its log
    assert spawner.how_it_ended == said
