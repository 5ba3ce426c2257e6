"""Prometheus reads hub and broker with one token that may do nothing else."""

from __future__ import annotations

import secrets
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.hub.hubprocess import HubProcess
from tests.recipes import adapted, blocks

pytestmark = pytest.mark.docker

TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module", autouse=True)
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Prometheus's jobs by their name; the hub of this module is set up with the recipe."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus-token").write_text(f"{TOKEN}\n")
    (settings,), (jobs,) = blocks("Prometheus", "python"), blocks("Prometheus", "yaml")
    (folder / "site.py").write_text(adapted(settings, {"/srv/": f"{folder}/"}))
    request.module.HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(folder / "site.py")}
    return {job["job_name"]: job for job in yaml.safe_load(jobs)["scrape_configs"]}


async def scrape(hub: HubProcess, job: dict[str, Any], token: str = TOKEN) -> tuple[int, str]:
    """What Prometheus does with the job: status and text."""
    assert job["authorization"]["type"] == "token"
    headers = {"Authorization": f"token {token}"}
    path = job["metrics_path"]
    async with aiohttp.ClientSession(hub.url, headers=headers) as session, session.get(path) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize(
    ("name", "metric"), [("hub", "jupyterhub_running_servers"), ("gpus", "gpuspawner_devices")]
)
async def test_both_are_read(hub: HubProcess, jobs: dict[str, Any], name: str, metric: str) -> None:
    status, text = await scrape(hub, jobs[name])
    assert status == 200
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    assert metric in found, sorted(found)


@pytest.mark.parametrize("name", ["hub", "gpus"])
async def test_nobody_else_reads_them(hub: HubProcess, jobs: dict[str, Any], name: str) -> None:
    assert (await scrape(hub, jobs[name], "0" * 64))[0] in (401, 403)


async def test_the_token_does_nothing_else(hub: HubProcess, jobs: dict[str, Any]) -> None:
    headers = {"Authorization": f"token {TOKEN}"}
    async with aiohttp.ClientSession(hub.url, headers=headers) as session:
        for method, path in (("GET", "/hub/api/users"), ("POST", "/hub/api/users/ada/server")):
            async with session.request(method, path) as answer:
                assert answer.status in (403, 404), path
        async with session.post("/services/gpu/api/quotas", json={}) as answer:
            assert answer.status == 403
