"""The GPU page: what a viewer may see, the page's content as values, and its HTML where users typed."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpuspawner.broker.api.access import EVERYBODY, Viewer
from gpuspawner.broker.api.visible import visible_status
from gpuspawner.broker.pages.counts import ModelRow
from gpuspawner.broker.pages.look import Look, PageUser, look_of
from gpuspawner.broker.pages.meters import Meter
from gpuspawner.broker.pages.own.card import Card
from gpuspawner.broker.pages.own.page import OwnPage, Records, facts_at, own_page
from gpuspawner.broker.pages.rows import Holding
from gpuspawner.broker.pages.words import Moment, moment
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from traitlets.config.loader import Config

ANNA = Viewer("anna", hub="here")
ADMIN = Viewer("admin", EVERYBODY, hub="here")


def device(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{number}",
        "model": "NVIDIA H100 80GB HBM3",
        "index": number,
        "memory_bytes": 80 << 30,
        "compute_capability": "9.0",
        "healthy": True,
        "reason": "",
        "since": None,
        "guarantee": "hard",
        "simulated": False,
        "lease_id": None,
        "user": None,
        "server": None,
        **changes,
    }


def lease(name: str, user: str, *uuids: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "user": user,
        "server": "",
        "hub": "here",
        "tier": "gpu",
        "state": "running",
        "device_uuids": list(uuids),
        "memory_bytes": len(uuids) * (80 << 30),
        "compute_percent": 100.0,
        "since": "2026-03-01T09:00:00Z",
        "notice": "",
        **changes,
    }


def place(name: str, user: str, position: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "user": user,
        "server": "",
        "tier": "gpu",
        "position": position,
        "since": "2026-03-01T09:30:00Z",
        **changes,
    }


def document() -> dict[str, Any]:
    """Anna and bob hold a device each, one is withdrawn, one is free; carl and anna wait."""
    return {
        "simulated": False,
        "fault": "NVML hangs",
        "devices": [
            device(0, lease_id="a" * 32, user="anna", server=""),
            device(1, lease_id="b" * 32, user="bob", server="train"),
            device(2, healthy=False, reason="XID 79: off the bus", since="2026-03-01T08:00:00Z"),
            device(3),
        ],
        "leases": [lease("a" * 32, "anna", "GPU-0"), lease("b" * 32, "bob", "GPU-1", server="train")],
        "queue": [place("c" * 32, "carl", 1), place("d" * 32, "anna", 2, server="second")],
        "ended": [],
    }


def test_scope_shows_everything() -> None:
    whole = document()
    expected = document()
    for shown, free in zip(expected["devices"], (False, False, False, True), strict=True):
        shown["free"] = free
    whole["disks"] = [{"holds": "homes", "state": "low"}]
    whole["machines"] = [{"name": "b", "state": "away"}]
    lists = {name: whole[name] for name in ("disks", "machines")}
    assert visible_status(whole, ADMIN) == {**expected, **lists}
    assert not lists.keys() & visible_status(whole, ANNA).keys()


def test_without_scope_only_what_is_ones_own() -> None:
    assert visible_status(document(), ANNA) == {
        "simulated": False,
        "fault": "NVML hangs",
        "devices": [
            {**device(0, lease_id="a" * 32, user="anna", server=""), "free": False},
            {**device(1), "free": False},
            {**document()["devices"][2], "free": False},
            {**device(3), "free": True},
        ],
        "leases": [lease("a" * 32, "anna", "GPU-0")],
        "queue": [place("d" * 32, "anna", 2, server="second")],
        "ended": [],
    }  # fmt: skip


def test_the_broker_keeps_its_document() -> None:
    whole = document()
    before = copy.deepcopy(whole)
    visible_status(whole, ANNA)
    visible_status(whole, ADMIN)
    assert whole == before


def test_same_name_on_another_hub_is_somebody_else() -> None:
    whole = document()
    whole["leases"][0]["hub"] = "elsewhere"
    whole["queue"][1]["hub"] = "elsewhere"
    seen = visible_status(whole, ANNA)
    assert (seen["leases"], seen["queue"]) == ([], [])
    assert seen["devices"][0] == {**device(0), "free": False}


def test_a_service_owns_nothing() -> None:
    seen = visible_status(document(), Viewer("anna", owns=False, hub="here"))
    assert (seen["leases"], seen["queue"]) == ([], [])


NAMES = st.sampled_from(["bob", "carl", "dora"])


@given(st.lists(st.tuples(NAMES, st.booleans()), max_size=8))
def test_no_foreign_name_or_id_reaches_a_student(holders: list[tuple[str, bool]]) -> None:
    whole: dict[str, Any] = {"simulated": True, "devices": [], "leases": [], "queue": [], "ended": []}
    for number, (user, waits) in enumerate(holders):
        name = f"lease{number}"
        if waits:
            whole["queue"].append(place(name, user, number + 1, server=f"of-{user}"))
            continue
        holder = {"lease_id": name, "user": user, "server": f"of-{user}"}
        whole["devices"].append(device(number, **holder, since="2026-03-01T07:07:07Z"))
        whole["leases"].append(lease(name, user, f"GPU-{number}", server=f"of-{user}"))
    text = json.dumps(visible_status(whole, Viewer("anna")))
    assert not [word for word in ("bob", "carl", "dora", "lease0", "07:07:07") if word in text]


NOW = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
TIERS = {"simulated": False, "tiers": [{"name": "gpu", "title": "One GPU"}]}
HUB_AUTH = SimpleNamespace(hub_host="", hub_prefix="/base/hub/")


def build(whole: dict[str, Any], viewer: Viewer) -> OwnPage:
    return own_page(facts_at(whole, NOW), TIERS, viewer, "/base/hub/", Records())


def html(page: OwnPage, look: Look | None = None, live: bool = False) -> str:
    """The whole page, or its part that changes."""
    look = look or Look()
    model = {"name": page.viewer.name, "scopes": []}
    name = "own"
    variables = look.namespace(HUB_AUTH, "/base/services/gpu/", model, "xsrf")  # type: ignore[arg-type]
    form = {"service_url": "/base/services/gpu/", "xsrf": "xsrf"}
    where = {"navigation": (), "live_url": "/base/services/gpu/live", "form": form}
    return look.render(f"{name}_live.html" if live else f"{name}.html", page=page, **variables, **where)


def test_student_sees_counts_and_own() -> None:
    page = build(document(), Viewer("anna", hub="here"))
    assert page == OwnPage(
        viewer=Viewer("anna", hub="here"),
        simulated=False,
        summary="1 of 4 GPUs free, 2 servers wait.",
        cards=(
            Card(
                holding=Holding(
                    id="a" * 32,
                    user="anna",
                    server="",
                    tier="One GPU",
                    state="running",
                    devices=("NVIDIA H100 80GB HBM3 #0",),
                    memory="80 GiB",
                    since=Moment("2026-03-01T09:00:00Z", "since 2026-03-01 09:00:00 UTC", "1 hour"),
                    notice="",
                    simulated=False,
                    mine=True,
                    links={
                        "open": "/base/hub/user/anna/",
                        "pending": "/base/hub/spawn-pending/anna",
                        "home": "/base/hub/home",
                    },
                ),
                title="NVIDIA H100 80GB HBM3 #0",
                wait=(),
                memory=Meter(None, "not known now · 80 GiB are yours"),
                memory_curve=None,
                compute=Meter(None, "not known"),
                compute_curve=None,
                compute_help="",
                whole_device="",
                end=None,
                turn=None,
                happenings=(),
                can_stop=False,
                can_use_cpu=False,
            ),
            Card(
                holding=Holding(
                    id="d" * 32,
                    user="anna",
                    server="second",
                    tier="One GPU",
                    state="waiting",
                    devices=(),
                    memory="",
                    since=Moment("2026-03-01T09:30:00Z", "since 2026-03-01 09:30:00 UTC", "30 minutes"),
                    notice="",
                    simulated=False,
                    mine=True,
                    links={
                        "open": "/base/hub/user/anna/second",
                        "pending": "/base/hub/spawn-pending/anna/second",
                        "home": "/base/hub/home",
                    },
                    position=2,
                ),
                title="You are 2nd in line for a GPU",
                wait=(),
                memory=None,
                memory_curve=None,
                compute=None,
                compute_curve=None,
                compute_help="",
                whole_device="",
                end=None,
                turn=None,
                happenings=(),
                can_stop=False,
                can_use_cpu=False,
            ),
        ),
        models=(
            ModelRow(
                model="NVIDIA H100 80GB HBM3",
                memory="80 GiB",
                guarantee="hard",
                guarantee_help="the whole device, enforced by hardware or by the container's device list",
                simulated=False,
                free=1,
                total=4,
                withdrawn=1,
            ),
        ),
        notices=(),
        spawn_url="/base/hub/spawn",
    )


@pytest.mark.parametrize(
    ("free", "waiting", "simulated", "sentence"),
    [
        (0, 0, False, "No GPU on this machine, nobody waits."),
        (1, 0, True, "1 of 1 simulated GPU free, nobody waits."),
        (2, 1, True, "2 of 2 simulated GPUs free, 1 server waits."),
        (3, 2, False, "3 of 3 GPUs free, 2 servers wait."),
    ],
)
def test_summary(free: int, waiting: int, simulated: bool, sentence: str) -> None:
    whole = {
        "simulated": simulated,
        "devices": [device(number) for number in range(free)],
        "leases": [],
        "queue": [place(str(number), "carl", number + 1) for number in range(waiting)],
        "ended": [],
    }
    assert build(whole, Viewer("anna")).summary == sentence


def seated(number: int, pool: str, free: int, **changes: Any) -> dict[str, Any]:
    """A GPU in turns, of a pool with eight seats."""
    turns = {"pool": pool, "mode": "turns", "free_seats": free, "total_seats": 8}
    return {**device(number), **turns, **changes}


def test_in_turns_the_seats_of_a_pool_count_once() -> None:
    """Also if somebody is awake there, or one of its GPUs is out of service."""
    awake = seated(0, "turns", 5, lease_id="a" * 32)
    lost = seated(1, "turns", 5, healthy=False, reason="Xid 79")
    whole = {
        "simulated": False,
        "devices": [awake, lost, seated(2, "more", 0), device(3)],
        "leases": [],
        "queue": [],
        "ended": [],
    }
    page = build(whole, Viewer("anna"))
    assert page.summary == "1 of 1 GPU, 5 of 16 seats in turns free, nobody waits."
    seats = [(row.free, row.total, row.unit) for row in page.models]
    assert seats == [(5, 16, "seats in turns"), (1, 1, "")]


def test_gpus_that_do_not_answer_are_said() -> None:
    whole = {**document(), "devices": [], "leases": [], "queue": []}
    summary = "The GPUs of this machine don't answer; they appear here when they answer. Nobody waits."
    assert build(whole, ANNA).summary == summary


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(seconds=-5), "less than a minute"),
        (timedelta(seconds=59), "less than a minute"),
        (timedelta(seconds=60), "1 minute"),
        (timedelta(minutes=59, seconds=59), "59 minutes"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=47), "1 day"),
        (timedelta(days=3), "3 days"),
    ],
)
def test_moment(age: timedelta, words: str) -> None:
    seen = moment((NOW - age).isoformat(), NOW)
    assert seen is not None
    assert seen.span == words


def test_no_moment() -> None:
    assert moment(None, NOW) is None


HOSTILE = """x"'><script>alert(1)</script>ü/../"""


def hostile_document() -> dict[str, Any]:
    whole = document()
    whole["devices"] = [device(0, lease_id="h", user=HOSTILE, server=HOSTILE)]
    whole["leases"] = [lease("h", HOSTILE, "GPU-0", server=HOSTILE, notice=HOSTILE)]
    whole["queue"] = [place("q", HOSTILE, 1, server=HOSTILE)]
    return whole


def test_names_are_escaped_everywhere() -> None:
    text = html(build(hostile_document(), Viewer(HOSTILE)))
    assert "<script>alert" not in text
    assert "alert(1)" in text
    assert "/base/hub/user/x%22%27%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E%C3%BC%2F..%2F/x%22" in text


def test_name_in_the_hubs_script() -> None:
    assert PageUser("""a"b</script>'""").json_escaped_name == """a\\"b\\u003c/script\\u003e\\u0027"""


def test_simulated_is_said_beside_every_gpu() -> None:
    whole = document()
    whole["simulated"] = True
    for shown in whole["devices"]:
        shown.update(simulated=True, guarantee="none")
    badge = '<span class="badge text-bg-warning">simulated</span>'
    own = html(build(whole, Viewer("anna")), live=True)
    assert own.count(badge) == 3
    help_text = "the broker gives it to one server at a time; simulated: no GPU behind it"
    assert f'<span title="{help_text}">one server alone</span>' in own
    assert "simulated GPUs free" in own


def test_real_gpus_are_not_called_simulated() -> None:
    assert "simulated" not in html(build(document(), ANNA))


def test_addresses_follow_the_base_url() -> None:
    text = html(build(document(), Viewer("anna")))
    for address in (
        'href="/base/hub/static/css/style.min.css"',
        'href="/base/hub/home"',
        'href="/base/hub/logout"',
        'href="/base/services/gpu/"',
        'data-url="/base/services/gpu/live"',
        'src="/base/services/gpu/static/gpu.js?v=',
    ):
        assert address in text
    assert '"/hub/' not in text
    assert '"/services/' not in text


def test_after_its_templates_are_compiled_no_page_waits_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "error.html").write_text("{% broken %}")
    broken, look = Look([str(tmp_path)]), Look()
    broken.compile()  # the page that needs it says so
    look.compile()
    monkeypatch.setattr(Environment, "compile", None)
    page = build(document(), Viewer("anna"))
    assert "My GPU" in html(page, look=look)
    with pytest.raises(TypeError):  # None can't be called: this one has compiled nothing
        html(page, look=Look())


def test_a_sites_own_template_and_variables(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '{% extends "templates/page.html" %}{% block footer %}Our faculty{% endblock %}', encoding="utf-8"
    )
    look = Look([str(tmp_path)], {"announcement": "Closed on Monday", "of_user": lambda user: user.x})
    text = html(build(document(), Viewer("anna")), look=look)
    assert "Our faculty" in text
    assert "Closed on Monday" in text


def test_the_look_comes_from_the_shared_config(tmp_path: Path) -> None:
    config = Config()
    (tmp_path / "page.html").write_text('{% extends "templates/page.html" %}', encoding="utf-8")
    config.JupyterHub.template_paths.append(str(tmp_path))
    config.JupyterHub.template_vars = {"announcement": "Closed on Monday"}
    text = html(build(document(), Viewer("anna")), look=look_of(config))
    assert "Closed on Monday" in text


@pytest.mark.parametrize(
    ("servers", "has_gpu", "runs"),
    [({""}, False, True), ({""}, True, False), ({"train"}, False, False), (set(), False, False)],
)
def test_a_default_server_without_a_gpu_is_known(servers: set[str], has_gpu: bool, runs: bool) -> None:
    leases = [lease("lease1", "anna", "GPU-0", server="")] if has_gpu else []
    whole = {**document(), "leases": leases, "queue": []}
    viewer = Viewer("anna", servers=dict.fromkeys(servers))
    assert build(whole, viewer).default_runs is runs
    assert build(whole, Viewer("anna")).default_runs is False
