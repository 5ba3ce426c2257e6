"""A start that Docker or we refuse, in a real hub: users read the reason, the log says what helps."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuspawner.hub.problem import CONFIG_SENTENCE

from tests.hub.hubprocess import HubProcess

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", autouse=True)
def homes(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the host with the homes; the hub of this module has the settings of `faults_config`."""
    folder = Path(tempfile.mkdtemp(prefix="gh-homes-"))
    request.module.HUB_ENVIRONMENT = {
        "GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("faults_config.py")),
        "GPUSPAWNER_TEST_HOMES": str(folder),
        "GPUSPAWNER_TEST_ALLOWED": json.dumps(
            {"usual": "gpuspawner-hubtest/lab", "homely": "gpuspawner-hubtest/homely"}
        ),
    }
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def refused(hub: HubProcess, user: str, image: str = "usual") -> str:
    """What the user reads."""
    spawned = await hub.spawn(user, {"profile": "cpu", "image": image})
    assert not spawned.ready
    return (spawned.body or spawned.messages[-1]).removeprefix("Spawn failed: ")


@pytest.mark.parametrize(
    ("user", "sentence", "logged"),
    [
        (
            "mount",
            "A folder that all servers here mount can't be mounted, so your server can't be started.",
            r"Docker says: .*/no/such/folder.* Create the folder on the host, or remove it",
        ),
        (
            "device",
            "Docker can't give your server its GPU. Choose a server without a GPU, or tell an admin.",
            r"Docker says: .*/dev/no-such-device.* Run `gpuspawner doctor`",
        ),
        (
            "runtime",
            "Docker lacks the runtime that your server needs.",
            r"Docker says: .*no-such-runtime.* Install it, or remove `runtime`",
        ),
        (
            "long",
            "A name in the settings of this hub is too long for Docker: tell your admin.",
            r"Docker says: .*file name too long.* A shorter c\.GpuDockerSpawner\.prefix",
        ),
        ("key", CONFIG_SENTENCE, r"'shared_memory', which docker-py doesn't know: remove it"),
        ("privileged", CONFIG_SENTENCE, r'privileged is True: .*past_lease = \["privileged"\]'),
        ("dev", CONFIG_SENTENCE, r'binds is /dev: .*past_lease = \["binds"\]'),
        ("nvidia", CONFIG_SENTENCE, r'binds is /dev/nvidia0: .*past_lease = \["binds"\]'),
        ("rules", CONFIG_SENTENCE, r'device_cgroup_rules is .*past_lease = \["device_cgroup_rules"\]'),
        ("caps", CONFIG_SENTENCE, r'cap_add is SYS_ADMIN: .*past_lease = \["cap_add"\]'),
        ("root", CONFIG_SENTENCE, r"user is '0:0': .*past_lease = \[\"user\"\]"),
    ],
)
async def test_the_reason_is_read_and_logged(hub: HubProcess, user: str, sentence: str, logged: str) -> None:
    assert await refused(hub, user) == sentence
    (line,) = [each for each in hub.log.splitlines() if f"user={user} " in each and "Not started" in each]
    assert re.search(logged, line), line
    assert hub.containers(user) == []
    assert "Traceback" not in hub.log


async def test_a_home_that_root_owns_names_the_command_that_helps(hub: HubProcess, homes: Path) -> None:
    said = await refused(hub, "ada", "homely")
    home = homes / "ada"
    assert said.startswith(
        "Your server can't write to your home /home/jovyan: it belongs to another user, probably root. "
        f"Admin: run `chown -R 1000:100 {home}`."
    )
    command = said.partition("`")[2].partition("`")[0]
    subprocess.run(shlex.split(command), check=True)
    assert (await hub.spawn("ada", {"profile": "cpu", "image": "homely"})).ready
    assert (home / ".local").stat().st_uid == 1000
    await hub.stop_server("ada")


async def test_harmless_variables_reach_the_lab_and_the_others_are_named(hub: HubProcess) -> None:
    assert (await hub.spawn("ben", {"profile": "gpu"})).ready
    environment = dict(item.split("=", 1) for item in hub.inspect("ben")["Config"]["Env"])
    gpu = {name: value for name, value in environment.items() if name.startswith(("CUDA_", "NVIDIA_"))}
    assert gpu == {
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
    assert "Ignored settings that only a lease may give: CUDA_VISIBLE_DEVICES. Remove" in hub.log
    await hub.stop_server("ben")
