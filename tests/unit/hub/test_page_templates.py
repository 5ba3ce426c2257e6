"""Our versions of JupyterHub's pages, rendered as the hub does (6.1), with what its handlers give them."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpuspawner import HUB_TEMPLATES
from gpuspawner.hub.pages import Meanwhile, StartView
from gpuspawner.hub.progress import Progress, Step
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from jupyterhub._data import DATA_FILES_PATH
from jupyterhub.scopes import Scope

OURS = (
    "home.html",
    "spawn.html",
    "spawn_pending.html",
    "not_running.html",
    "stop_pending.html",
    "error.html",
)
HOSTILE = "<script>alert('x')</script>\u202e\"" + "y" * 200


def render(template: str, site: str = "", **values: Any) -> str:
    """The page; `site` is the text of a site's own page.html."""
    theirs = FileSystemLoader(str(Path(DATA_FILES_PATH) / "templates"))
    own = [FileSystemLoader(site)] if site else []
    loaders = [*own, FileSystemLoader(HUB_TEMPLATES), PrefixLoader({"templates": theirs}), theirs]
    namespace = {
        "base_url": "/jupyter/hub/", "prefix": "/jupyter/", "static_url": lambda path, **_: f"/static/{path}",
        "user": user(), "no_spawner_check": True, "logout_url": "/logout", "login_url": "/login",
        "services": [], "parsed_scopes": (), "xsrf_token": "x", "version_hash": "",
        "progress_url": "/jupyter/hub/api/progress",
    }  # fmt: skip
    page = Environment(autoescape=True, loader=ChoiceLoader(loaders)).get_template(template)
    return page.render(**{**namespace, **values})


def user(**spawners: Any) -> SimpleNamespace:
    return SimpleNamespace(
        name=HOSTILE,
        escaped_name="u%40",
        json_escaped_name="u",
        spawners=spawners,
        server_url=lambda name: "/",
    )


def spawner(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(name="train", display_name=HOSTILE, **more)


def text(page: str) -> str:
    """What a page says in its main part, with hidden parts, on one line."""
    main = re.search(r"<main.*?</main>", page, re.DOTALL)
    assert main is not None
    bare = re.sub(r"<noscript>.*?</noscript>", "", main[0], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", bare).split())


def test_no_other_file_replaces_a_page_of_the_hub() -> None:
    theirs = {path.name for path in (Path(DATA_FILES_PATH) / "templates").iterdir()}
    found = {path.name for path in Path(HUB_TEMPLATES).iterdir()}
    assert found & theirs == {*OURS, "admin.html"}
    assert all(name.startswith("gpuspawner") for name in found - theirs)


@pytest.mark.parametrize(
    ("reach", "link"),
    [
        (Scope.ALL, 'href="/services/gpu/admin/">GPUs: devices, timeline, quotas, audit log</a>'),
        ({"group": {"cs231n"}}, 'href="/services/gpu/classes/">GPUs of your classes</a>'),
        (None, ""),
    ],
)
def test_the_admin_page_leads_to_the_gpu_pages_that_the_viewer_may_open(reach: Any, link: str) -> None:
    scopes = {"admin-ui": True} if reach is None else {"admin-ui": True, "custom:gpu:read": reach}
    service = SimpleNamespace(name="gpu", host="", prefix="/services/gpu/")
    page = render("admin.html", services=[service], parsed_scopes=scopes)
    assert re.findall(r'<a id="gpu-admin-link" (.*)', page) == ([link] if link else [])


def view(*, keeps_place: bool = True) -> StartView:
    progress = Progress()
    progress.begin(tuple(Step))
    progress.say(10, "2nd in line", Step.GPU)
    meanwhile = Meanwhile("CPU", "/spawn/cpu?opt-profile=cpu", keeps_place)
    return StartView(HOSTILE, HOSTILE, "2nd in line", progress.view(), meanwhile)


def test_a_waiting_page_needs_no_script_to_say_what_is_so() -> None:
    page = render("spawn_pending.html", spawner=spawner(start_view=view()))
    assert 'id="gpu-start" data-state="wait"' in page
    assert re.findall(r'data-step="(\w+)" data-state="(\w+)"', page) == [
        ("image", "done"), ("gpu", "active"), ("container", "todo"), ("server", "todo"),
    ]  # fmt: skip
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "Start a server on CPU meanwhile" in text(page)
    assert "If you start a server on CPU, your place in the queue stays." in text(page)
    assert '<a class="btn btn-primary" href="/jupyter/hub/spawn/u%40/train">Choose again</a>' in page
    other = text(render("spawn_pending.html", spawner=spawner(start_view=view(keeps_place=False))))
    assert "Start on CPU instead" in other
    assert "your place in the queue stays" not in other


def test_the_home_page_says_which_servers_wait_or_start() -> None:
    starting = StartView("", "CPU", "Container created", Progress().view())
    mine = user(
        default=SimpleNamespace(name="", pending="spawn", start_view=starting),
        train=spawner(pending="spawn", start_view=view()),
        runs=spawner(pending=None, start_view=view()),
        other=SimpleNamespace(name="other", pending="spawn"),
    )
    page = render("home.html", user=mine, default_server=SimpleNamespace(active=True), url="/")
    pending = re.search(r'<div class="container" id="gpu-pending">.*?</div>', page, re.DOTALL)
    assert pending is not None
    assert " ".join(unescape(re.sub(r"<[^>]*>", " ", pending[0])).split()) == (
        f"Your default server is starting: Container created. See progress "
        f"Your server “ {HOSTILE} ” waits for a GPU: 2nd in line. "
        "If you stop it, you leave the queue. See progress"
    )
    for said in ("GPU 1 has been drained.", "The hub doesn't answer …"):  # it has its own end
        mine = user(train=spawner(pending="spawn", start_view=replace(view(), message=said)))
        shown = render("home.html", user=mine, default_server=SimpleNamespace(active=True), url="/")
        assert f"waits for a GPU: {said} If you stop it" in " ".join(unescape(shown).split())
    assert re.findall(r'href="([^"]*)">See progress', page) == [
        "/jupyter/hub/spawn-pending/u%40", "/jupyter/hub/spawn-pending/u%40/train",
    ]  # fmt: skip


def test_a_spawner_of_another_kind_has_a_waiting_page_without_steps() -> None:
    page = render("spawn_pending.html", spawner=SimpleNamespace(name="", display_name=""))
    assert 'id="gpu-start" data-state="start"' in page
    assert 'id="gpu-steps"' not in page
    assert "default server" in text(page)


@pytest.mark.parametrize(
    ("given", "ended", "said", "button"),
    [
        ({}, "", "Your server isn't running", "Start it"),
        ({}, "The start was cancelled.", "The start was cancelled.", "Start it"),
        ({"implicit_spawn_seconds": 3}, "", "It starts again in a moment.", "Start it"),
        ({"failed": True, "failed_message": "Why <b>"}, "", "Why &lt;b&gt;", "Start it again"),
        (
            {"failed": True, "failed_html_message": '<p class="gpu-links"><a href="/a">Try again</a></p>'},
            "", "Your server did not start", "Try again",
        ),
    ],
)  # fmt: skip
def test_a_server_that_isnt_running(given: dict[str, Any], ended: str, said: str, button: str) -> None:
    one = user(train=spawner(how_it_ended=ended))
    page = render("not_running.html", user=one, server_name="train", spawn_url="/spawn", **given)
    assert said in text(page)
    main = re.search(r"<main.*?</main>", page, re.DOTALL)
    assert main is not None
    assert re.findall(r"<a [^>]*>([^<]*)</a>", main[0]) == [button, "Home"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"status_code": 400, "message": "ada:train is pending spawn"}, "Your server is already starting"),
        ({"status_code": 400, "message": "ada is pending stop"}, "Your server is already stopping"),
        ({"status_code": 400, "message": "ada is already running"}, "Your server is already running"),
        (
            {"status_code": 503, "message_html": "Your server appears to be down. Try <a>it</a>"},
            "Nothing answers here now",
        ),
        (
            {"status_code": 403, "message": "You do not have permission to access Server at /user/mia/"},
            "You can't open this page You are logged in as &lt;script&gt;",
        ),
        (
            {"status_code": 403, "message": "Action is not authorized with current scopes; requires any"},
            "You can't open this page",
        ),
    ],
)
def test_errors_that_mislead_have_words_of_our_own(given: dict[str, Any], said: str) -> None:
    assert text(render("error.html", status_message="x", **given)).startswith(said)


@pytest.mark.parametrize(
    "given",
    [
        {"status_code": 400, "status_message": "Bad Request", "message": "No <b>"},
        {"status_code": 503, "status_message": "Service Unavailable", "message_html": "<i>Later</i>"},
        {"status_code": 404, "status_message": "Not Found", "message": "ada is pending spawn"},
        {"status_code": 403, "status_message": "Forbidden", "message": "XSRF cookie does not match"},
        {"status_code": 403, "status_message": "Forbidden", "message": "no permission", "user": None},
    ],
)
def test_other_errors_look_as_the_hub_s_do(given: dict[str, Any]) -> None:
    page = render("error.html", **given)
    assert f"<h1>{given['status_code']} : {given['status_message']}</h1>" in page
    assert "<main" not in page


def test_the_spawn_page_shows_an_error_and_the_form_of_any_spawner() -> None:
    form = '<p id="theirs">form</p>'
    values = {"spawner_options_form": form, "for_user": user(), "url": "/spawn?_xsrf=1"}
    page = render("spawn.html", error_message="Bad <b>", **values)
    assert form in page
    assert "Bad &lt;b&gt;" in text(page)
    assert "<i>Bad</i>" in render(
        "spawn.html", error_message="Bad", html_error_message="<i>Bad</i>", **values
    )
    other = {**values, "for_user": SimpleNamespace(name="ben")}
    assert "For <strong><bdi>ben</bdi></strong>" in render("spawn.html", **other)


@pytest.mark.parametrize("template", OURS)
def test_a_site_s_own_page_html_counts_and_names_are_only_text(template: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '{% extends "templates/page.html" %}{% block announcement %}<p>Closed on Monday</p>{% endblock %}'
    )
    values = {
        "spawner": spawner(start_view=view()), "user": user(train=spawner()), "server_name": "train",
        "for_user": user(), "spawner_options_form": "", "url": "/spawn", "spawn_url": "/spawn",
        "status_code": 404, "status_message": HOSTILE, "message": HOSTILE,
        "default_server": spawner(active=False), "allow_named_servers": False,
    }  # fmt: skip
    page = render(template, str(tmp_path), **values)
    assert page.count("<p>Closed on Monday</p>") == 1
    assert HOSTILE not in page
