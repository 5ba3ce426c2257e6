"""Settings that sites bring along, all in one real hub: hooks, a form, environment, limits, images, names."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from tests.hub.hubprocess import NAME, HubProcess
from tests.hub.lecture_page import WaitingPage, xsrf_of

pytestmark = pytest.mark.docker

MIB = 1 << 20
ODD_NAMES = ("ada.l@uni.example", "corp\\grace", "o'brien+ml", "jürgen größe", "علی\u200cرضا", "a%2fb", "-x-")
"""As LDAP, OAuth and LTI give them: an address, a domain, a quote, spaces, a joiner, a percent sign."""


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The file that the site's hooks write; the hub of this module has the settings of `site_config`."""
    with tempfile.TemporaryDirectory(prefix="gh-site-") as folder:
        request.module.HUB_ENVIRONMENT = {
            "GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("site_config.py")),
            "GPUSPAWNER_TEST_TOLD": f"{folder}/told",
        }
        yield Path(folder) / "told"


def environment(lab: dict[str, Any]) -> dict[str, str]:
    """A container's environment."""
    return dict(item.split("=", 1) for item in lab["Config"]["Env"])


async def test_settings_and_hooks_of_a_site(hub: HubProcess, told: Path) -> None:
    assert (await hub.spawn("ada", {"profile": "cpu", "course": "vision"})).ready
    lab = hub.inspect("ada")
    found = environment(lab)
    names = ("WHO", "PLAIN", "COURSE", "GPUSPAWNER_TIER", "JUPYTERHUB_DEFAULT_URL", "JUPYTERHUB_ROOT_DIR")
    assert [found.get(name) for name in names] == [
        "ada", "yes", "vision", "cpu", "/lab/tree/start.ipynb", "/home/jovyan/work",
    ]  # fmt: skip
    assert lab["Config"]["Cmd"] == ["/lab", "--debug"]
    assert (lab["HostConfig"]["Memory"], lab["HostConfig"]["NanoCpus"]) == (128 * MIB, 0)
    assert (lab["HostConfig"]["CpuQuota"], lab["HostConfig"]["CpuPeriod"]) == (50_000, 100_000)
    assert lab["Name"] == f"/{NAME}-ada-of-"
    await hub.stop_server("ada")
    assert told.read_text().splitlines() == ["auth ada", "before ada", "after ada"]


@pytest.mark.parametrize(
    ("user", "tier", "mib"), [("grace", "cpu", 192), ("grace", "small", 192), ("ada", "small", 160)]
)
async def test_a_group_s_override_counts_before_the_tier_and_that_before_the_site_s_limit(
    hub: HubProcess, user: str, tier: str, mib: int
) -> None:
    assert (await hub.spawn(user, {"profile": tier})).ready
    assert hub.inspect(user)["HostConfig"]["Memory"] == mib * MIB
    await hub.stop_server(user)


async def test_the_site_s_own_form_starts_a_server(hub: HubProcess) -> None:
    await hub.add_users("ben")
    page = WaitingPage(hub.url, "ben", hub.password)
    await page.log_in()
    try:
        async with page.session.get("/hub/spawn/ben") as answer:
            text = await answer.text()
        assert "Hello ben" in text
        address = URL(f"/hub/spawn/ben?_xsrf={xsrf_of(text)}", encoded=True)
        form = {"profile": "cpu", "course": "ml"}
        async with page.session.post(address, data=form, allow_redirects=False) as answer:
            assert answer.status == 302
    finally:
        await page.close()
    assert (await hub.progress("ben"))[-1].get("ready")
    assert environment(hub.inspect("ben"))["COURSE"] == "ml"
    assert (await hub.server("ben") or {})["user_options"] == {"profile": "cpu", "course": "ml"}
    await hub.stop_server("ben")


async def test_images_from_a_list_may_be_chosen_and_no_others(hub: HubProcess) -> None:
    chosen = {"profile": "cpu", "image": "gpuspawner-hubtest/other"}
    assert (await hub.spawn("carl", chosen)).ready
    assert hub.inspect("carl")["Config"]["Image"] == "gpuspawner-hubtest/other"
    await hub.stop_server("carl")
    refused = await hub.spawn("carl", {"profile": "cpu", "image": "gpuspawner-hubtest/crash"})
    said = refused.body or refused.messages[-1]
    assert "gpuspawner-hubtest/crash" in said
    assert "gpuspawner-hubtest/other" in said


async def test_people_with_odd_names_have_their_own_labs(hub: HubProcess) -> None:
    labs = {}
    for name in ODD_NAMES:
        assert (await hub.spawn(quote(name, safe=""), {"profile": "cpu"})).ready, name
        (found,) = [lab for lab in hub.containers() if lab["Labels"]["gpuspawner.user"] == name]
        labs[name] = hub.engine.inspect_container(found["Id"])
    assert all(environment(lab)["WHO"] == name for name, lab in labs.items())
    assert len({lab["Name"] for lab in labs.values()}) == len(ODD_NAMES)
    assert len({lab["HostConfig"]["Binds"][0] for lab in labs.values()}) == len(ODD_NAMES)
    for name in ODD_NAMES:
        page = WaitingPage(hub.url, name, hub.password)
        await page.log_in()
        async with page.session.get("/services/gpu/") as answer:
            text = await answer.text()
            assert (answer.status, name in html.unescape(text)) == (200, True), (name, text[-2000:])
        await page.close()
        await hub.stop_server(quote(name, safe=""))
