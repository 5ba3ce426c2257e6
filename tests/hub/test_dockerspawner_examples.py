"""DockerSpawner's documented settings and hooks with a real hub and real containers.

The examples that need no container are in tests/unit/hub/test_dockerspawner_examples.py.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.hub.hubprocess import HubProcess

pytestmark = pytest.mark.docker

SITE = """
def memory(spawner):
    return {"ada": "96M"}.get(spawner.user.name, "64M")


def greet(spawner):
    spawner.environment["GREETING"] = f"hello {spawner.user.name}"


c.DockerSpawner.mem_limit = memory
c.DockerSpawner.post_start_cmd = "/bin/busybox sh -c '/bin/busybox id -u > /tmp/said; echo oops >&2; exit 3'"
c.DockerSpawner.read_only_volumes = {DATA: "/data"}
c.DockerSpawner.extra_create_kwargs = {"hostname": "lab-{username}"}
c.DockerSpawner.container_name_template = "{prefix}-of-{username}"
c.Spawner.pre_spawn_hook = greet
"""


@pytest.fixture(scope="module", autouse=True)
def site(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with data that everybody may read; the hub of this module has a site's settings."""
    folder = Path(tempfile.mkdtemp(prefix="gh-site-"))
    folder.chmod(0o755)
    (folder / "set.csv").write_text("1,2\n")
    (folder / "site.py").write_text(f"DATA = {str(folder)!r}\n{SITE}")
    request.module.HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(folder / "site.py")}
    yield folder
    shutil.rmtree(folder)


def said(engine: docker.APIClient, container: str, *command: str) -> str:
    """What a command prints in the container."""
    made = engine.exec_create(container, ["/bin/busybox", *command])
    return str(engine.exec_start(made["Id"]).decode())


async def test_settings_and_hooks(hub: HubProcess, site: Path) -> None:
    assert (await hub.spawn("ada", {"profile": "cpu", "image": "other"})).ready  # by its short name
    lab = hub.inspect("ada")
    config, host = lab["Config"], lab["HostConfig"]
    assert lab["Name"].endswith("-of-ada")
    assert (host["Memory"], config["Hostname"]) == (96 << 20, "lab-ada")
    assert config["Image"] == "gpuspawner-hubtest/other"
    assert "GREETING=hello ada" in config["Env"]
    assert f"{site}:/data:ro" in host["Binds"]
    assert said(hub.engine, lab["Id"], "cat", "/data/set.csv") == "1,2\n"
    await hub.stop_server("ada")


async def test_a_command_after_the_start_has_the_users_rights_and_may_fail(hub: HubProcess) -> None:
    assert (await hub.spawn("bob", {"profile": "gpu"})).ready
    assert said(hub.engine, hub.inspect("bob")["Id"], "cat", "/tmp/said") == "1000\n"
    assert "post_start stderr in" in hub.log
    assert "oops" in hub.log
    await hub.stop_server("bob")


async def test_a_deprecated_name_is_warned_of(hub: HubProcess) -> None:
    assert "container_name_template is deprecated in DockerSpawner" in hub.log
    assert "use GpuDockerSpawner.name_template instead" in hub.log
