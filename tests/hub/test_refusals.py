"""Each limit that a user can meet, through a real hub: the same refusal by form, by REST and by link.

A refusal has its status and sentence, its reason is a metric's label, and no log has a traceback. The spawn
page shows the tier greyed out with that sentence, before anybody asks for it.
"""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.hub.hubprocess import HubProcess
from tests.hub.test_quota import make_group
from tests.hub.test_rules import command, refusals, rules
from tests.hub.test_spawn import Browser

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("refused_config.py"))}


@dataclass(frozen=True)
class Case:
    """`user` asks for `tier` while a server "train" of theirs has `holds`, and reads `sentence`.

    The card of the tier says the same, where `on_card` isn't something else.
    """

    user: str
    tier: str
    reason: str
    sentence: str
    holds: str = ""
    status: int = 403
    on_card: str = ""


CASES = [
    Case(
        "tina", "gpu", "quota_tier",
        "Your quota does not include the tier 'One GPU': choose 'CPU'. An admin can change your quota.",
    ),
    Case(
        "lea", "slice", "quota_leases",
        "You have 1 of 1 server with a GPU (server 'train'): stop it, or choose CPU.", holds="gpu",
    ),
    Case(
        "dan", "gpu", "quota_devices",
        "You hold 1 of 1 GPU in server 'train': stop it, or choose CPU.", holds="gpu",
    ),
    Case(
        "sid", "slice", "quota_slices",
        "You hold 1 of 1 slice in server 'train': stop it, or choose CPU.", holds="slice",
    ),
    Case("zoe", "gpu", "quota_gpu_hours", "Your quota has no GPU-hours: choose CPU, or ask for a quota."),
    Case(
        "una", "gpu", "quota_unreadable",
        "The properties of the hub's group 'odd': devices is 'lots'",
    ),
    Case(
        "max", "big", "no_capacity",
        "You asked for 3 GPUs, but this machine has only 2: choose another tier, or CPU.",
        on_card="Needs 3 simulated GPUs; 2 are in service for this tier now.", status=503,
    ),
]  # fmt: skip


@asynccontextmanager
async def holding(hub: HubProcess, case: Case) -> AsyncIterator[None]:
    """The user's other server runs meanwhile."""
    if case.holds:
        assert (await hub.spawn(case.user, {"profile": case.holds}, "train")).ready
    yield
    if case.holds:
        await hub.stop_server(case.user, "train")


async def refused_by_all_ways(hub: HubProcess, case: Case) -> None:
    """The form's greyed card, then form, REST and link."""
    before, log = await refusals(hub, case.reason), len(hub.log)
    status, body = await hub.post(case.user, {"profile": case.tier})
    assert (status, case.sentence in body) == (case.status, True), body
    async with Browser(hub, case.user, hub.password) as browser:
        page = html.unescape(await browser.get("/hub/spawn"))
        assert browser.status == 200
        assert (case.on_card or case.sentence) in page
        (card,) = re.findall(rf'<input[^>]*id="tier-{case.tier}"[^>]*>', page)
        assert "disabled" in card
        for page in (
            await browser.post_spawn(f"/hub/spawn/{case.user}", {"profile": case.tier}),
            await browser.get(f"/hub/spawn/{case.user}?opt-profile={case.tier}"),
        ):
            assert (browser.status, case.sentence in html.unescape(page)) == (case.status, True), page
    assert await refusals(hub, case.reason) == before + 3
    assert "Traceback" not in hub.log[log:]
    assert ("", "running") not in [(server, state) for _, server, state in await hub.leases(case.user)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
async def test_a_limit_refuses_the_same_by_form_rest_and_link(hub: HubProcess, case: Case) -> None:
    await hub.add_users(case.user)
    if case.user == "una":
        await make_group(hub, "odd", ["una"], {"devices": "lots"})
    async with holding(hub, case):
        await refused_by_all_ways(hub, case)
    assert (await hub.spawn(case.user, {"profile": "cpu"})).ready  # CPU stays possible
    await hub.stop_server(case.user)


async def test_used_up_gpu_hours_say_when_there_are_new_ones(hub: HubProcess) -> None:
    """Hugo has some hundredths of a second a week: his server runs on until he stops it."""
    assert (await hub.spawn("hugo", {"profile": "gpu"})).ready
    await hub.stop_server("hugo")
    used = "GPU-hours this week; new ones from Monday 00:00 (UTC)."
    case = Case("hugo", "slice", "quota_gpu_hours", used)
    await refused_by_all_ways(hub, case)
    grant = ("quota", "grant", "user:hugo", "1", "--reason", "exam")
    assert (await command(hub, *grant))[0] == 0
    assert (await hub.spawn("hugo", {"profile": "slice"})).ready
    await hub.stop_server("hugo")


async def test_a_lab_session_refuses_who_is_not_in_it_and_says_when_it_ends(hub: HubProcess) -> None:
    begin = datetime.now(UTC) + timedelta(minutes=5)
    lab = {
        "name": "lab", "group": "course", "tier": "gpu", "seats": 2, "first": f"{begin:%Y-%m-%d}",
        "begins": f"{begin:%H:%M}", "length_seconds": 3600, "timezone": "UTC",
    }  # fmt: skip
    await make_group(hub, "course", ["mia"], {})
    assert (await rules(hub, "POST", "sessions", {"session": lab, "reason": "course"}))[0] == 200
    end = begin + timedelta(hours=1)
    sentence = f"The lab session 'lab' has these GPUs from {begin:%H:%M} to {end:%H:%M} (UTC): choose CPU, or"
    await refused_by_all_ways(hub, Case("otto", "gpu", "session_reserved", sentence, status=409))
    assert (await hub.spawn("mia", {"profile": "gpu"})).ready  # a member of the class
    assert (await hub.spawn("otto", {"profile": "slice"})).ready  # nothing that the class needs
    await hub.stop_server("otto")
    await hub.stop_server("mia")


async def test_an_extension_beyond_the_quota_is_refused_with_its_reason(hub: HubProcess) -> None:
    assert (await command(hub, "quota", "set", "user:hugo", "gpu_hours=9", "--reason", "exam"))[0] == 0
    assert (await hub.spawn("hugo", {"profile": "slice"})).ready
    (lease,) = [each for each in (await hub.broker_status())["leases"] if each["user"] == "hugo"]
    status, answer = await rules(hub, "POST", f"leases/{lease['id']}/extend", {"seconds": 3600})
    assert (status, answer["reason"]) == (403, "not_allowed")
    assert answer["message"].startswith("The quota of hugo allows no further extension")
    await hub.stop_server("hugo")
    assert "Traceback" not in hub.log
