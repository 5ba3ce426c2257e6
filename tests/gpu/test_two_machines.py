"""Two machines of a Swarm with a real GPU each, whose labs get it by NVIDIA's own runtime.

The machines are network namespaces of this one (`tests/swarm/cluster.py`) with a Docker Engine each; each
sees one of the GPUs. It needs root, two GPUs, and `nvidia-container-runtime` on the PATH, whose settings here
are a file of the test's own. No setting of a GPU is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network
from machine import uuids

from tests.docker.engine import missing
from tests.gpu.test_whole import LOOK, PRODUCT
from tests.swarm.cluster import Cluster, Machine, cluster
from tests.swarm.swarm_hub import NAME, SUBNET, Agent, SwarmHub, as_host

pytestmark = pytest.mark.gpu

HERE = Path(__file__).resolve().parent
RUNTIME = "nvidia-container-runtime"
IMAGE = "gpuspawner-gputest/all-devices"
"""The lab's image, which itself asks for all GPUs."""
HIDE = 'mount --bind "$1" /dev/nvidiactl; mount --bind /dev/null "/dev/nvidia$2"; shift 2; exec "$@"'
"""The machine's own file of the driver, which its broker or agent locks; and no node for the other GPU."""
MODES = ("auto", "cdi")
"""Of the runtime: what it does by itself, and with the CDI spec that is on the machine."""
ASKS_FOR_ALL = """
import os
os.environ.update(NVIDIA_VISIBLE_DEVICES="all", CUDA_VISIBLE_DEVICES="0,1")
"""
"""What users may set in their kernels, before CUDA is loaded; it must change nothing."""
SETTINGS = "uuid,compute_mode,persistence_mode,mig.mode.current"
"""Of a GPU, as `nvidia-smi --query-gpu` names them. They stay as they were."""


class Pair(SwarmHub):
    """Hub and broker on machine a, which has the first GPU."""

    config = HERE / "two_config.py"

    def on(self, machine: Machine, *command: str) -> list[str]:
        """There only its own GPU can be seen."""
        driver_file = machine.folder / "nvidiactl"
        if not driver_file.exists():
            os.mknod(driver_file, 0o20666, os.makedev(195, 255))
        other = "1" if machine.name == "a" else "0"
        return as_host(
            machine, "unshare", "--mount", "sh", "-c", HIDE, "sh", str(driver_file), other, *command
        )

    def driver_of(self, machine: Machine) -> dict[str, str]:
        return dict(os.environ)

    def look(self, user: str) -> dict[str, Any]:
        """What the user's kernel sees of GPUs, although it asks for all."""
        found: dict[str, Any] = json.loads(self.printed(user, ASKS_FOR_ALL + LOOK))
        return found

    def lease_of(self, user: str) -> dict[str, Any]:
        """The user's lease, as the broker tells it."""
        return next(each for each in self.status()["leases"] if each["user"] == user)


def runtime_mode(machine: Machine, settings: Path) -> str:
    """The first mode in which the runtime gives a container one GPU and no more; its settings are left so."""
    said = {}
    for mode in MODES:
        settings.write_text(f'[nvidia-container-runtime]\nmode = "{mode}"\nruntimes = ["runc"]\n')
        for wanted, count in ((uuids()[1], 1), ("void", 0)):
            command = ["docker", "-H", machine.docker_host, "run", "--rm", "--network", "none"]
            for setting in (f"VISIBLE_DEVICES={wanted}", "DRIVER_CAPABILITIES=compute,utility"):
                command += ["-e", f"NVIDIA_{setting}"]
            command += [IMAGE, "nvidia-smi", "-L"]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            said[mode, wanted] = (run.stdout + run.stderr)[-600:]
            if run.stdout.count("UUID: GPU-") != count or (count and wanted not in run.stdout):
                break
        else:
            print(f"{RUNTIME} in mode {mode}: {said}", flush=True)
            return mode
        print(f"{RUNTIME} in mode {mode} doesn't serve here: {said}", flush=True)
    pytest.fail(f"{RUNTIME} gives containers no GPU here: {said}")


def no_encryption() -> str:
    """Why the kernel can't encrypt a network as Docker does (moby, `buildAeadAlgo`): "" if it can."""
    space = f"gsx-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", space], check=True)
    state = (
        f"ip -n {space} xfrm state add src 10.9.9.1 dst 10.9.9.2 proto esp spi 0x100 mode transport".split()
    )
    state += ["aead", "rfc4106(gcm(aes))", f"0x{'1' * 40}", "64"]
    try:
        done = subprocess.run(state, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    finally:
        subprocess.run(["ip", "netns", "del", space], check=False)


def settings_of_gpus() -> str:
    """Those of all GPUs of this machine that a broker or an MPS daemon might change."""
    command = ["nvidia-smi", f"--query-gpu={SETTINGS}", "--format=csv,noheader"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def prepared(machines: Cluster) -> Iterator[Pair]:
    """The hub, and no agent yet."""
    folder = Path(tempfile.mkdtemp(prefix="gh-"))  # a short name: the broker's socket is in it
    hub = Pair(machines, folder, IMAGE)
    hub.environment |= {
        "GPUSPAWNER_IMAGE": IMAGE,
        "GPUSPAWNER_TEST_ENCRYPTED": str(int(not no_encryption())),
    }
    client = machines.manager.client
    ensure_network(calls_of(client), NAME, SUBNET)
    try:
        yield hub
    finally:
        hub.close()
        print(hub.log_path.read_text()[-6000:])
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runtime_settings(tmp_path: Path) -> Path:
    """The file with the runtime's settings: this machine's own one in /etc is neither read nor written."""
    return tmp_path / "nvidia-container-runtime.toml"


@pytest.fixture
def machines(runtime_settings: Path) -> Iterator[Cluster]:
    """Two, with the runtime as their engines' default and the lab's image."""
    why = missing() or next(
        (f"no {each}" for each in (RUNTIME, "ip", "curl") if shutil.which(each) is None), ""
    )
    if why or len(uuids()) < 2:
        pytest.skip(why or "two GPUs are needed")
    engine: Any = docker.APIClient(version="auto", timeout=300)
    base = os.environ["GPUSPAWNER_IMAGE"]
    build = f"FROM {base}\nENV NVIDIA_VISIBLE_DEVICES=all\n"
    subprocess.run(["docker", "build", "-q", "-t", IMAGE, "-"], input=build, text=True, check=True,
                   env={**os.environ, "DOCKER_BUILDKIT": "0"})  # fmt: skip
    runtime = {"path": str(shutil.which(RUNTIME))}
    runtime_settings.touch()
    before = settings_of_gpus()
    try:
        with cluster(
            names=("a", "b"),
            settings={"runtimes": {"nvidia": runtime}},
            environment={"NVIDIA_CTK_CONFIG_FILE_PATH": str(runtime_settings)},
        ) as found:
            found.load(engine, IMAGE)
            yield found
        assert settings_of_gpus() == before
    finally:
        engine.remove_image(IMAGE)
        engine.close()


def test_each_lab_has_the_gpu_of_its_machine_whatever_ends_beside_it(
    machines: Cluster, runtime_settings: Path, record: Callable[[str, Any], None]
) -> None:
    gpus = dict(zip("ab", uuids(), strict=False))
    began = last = time.monotonic()

    def step(name: str, value: Any = True) -> None:
        nonlocal last
        took, last = time.monotonic() - last, time.monotonic()
        record(name, value)
        print(f"{last - began:6.1f} s (+{took:4.1f})  {name}: {value}", flush=True)

    with prepared(machines) as hub:
        step("runtime's mode", runtime_mode(machines.manager, runtime_settings))
        why_not = no_encryption()
        step("labs' networks are encrypted", f"no: {why_not}" if why_not else True)
        hub.start()
        agent = Agent(machines["b"], hub)
        try:
            agent.enter()
            hub.until(lambda: hub.serving() == sorted(gpus.values()))
            step("both machines serve", [each["node"] for each in hub.status()["devices"]])

            for user, tier in (("ada", "on-a"), ("ben", "on-b")):
                asked = time.monotonic()
                hub.spawn(user, tier)
                step(f"{user}: click to ready (s)", round(time.monotonic() - asked, 2))
                uuid = gpus[tier[-1]]
                assert hub.lease_of(user)["device_uuids"] == [uuid]
                seen = hub.look(user)
                assert (seen["cuda"], seen["uuids"], len(seen["nodes"])) == (True, [uuid], 1), seen
                assert seen["smi"].count("UUID: GPU-") == 1
                product = json.loads(hub.printed(user, PRODUCT))
                assert product["error"] < 1e-2
                step(f"{user}: one GPU, the machine's own; product", product)

            hub.spawn("cpu", "cpu")
            seen = hub.look("cpu")
            assert (seen["cuda"], seen["uuids"], seen["nodes"]) == (False, [], []), seen
            step("a CPU server of an image that asks for all GPUs sees none")

            hub.ask("cem", "any")
            hub.until(lambda: dict(hub.leases()).get("cem") == "waiting")
            assert "1st in line" in hub.news("cem")
            hub.stop("ada")
            stopped = time.monotonic()
            hub.until(lambda: hub.server("cem").get("ready"))
            step("cem waited and has a lab (s) after ada's stop", round(time.monotonic() - stopped, 2))
            assert hub.look("cem")["uuids"] == [gpus["a"]]

            lease = hub.lease_of("ben")["id"]
            agent.kill()
            hub.until(lambda: hub.serving() == [gpus["a"]])
            assert json.loads(hub.printed("ben", PRODUCT))["error"] < 1e-2
            hub.ask("eve", "on-b")
            time.sleep(5)
            assert dict(hub.leases())["eve"] == "waiting"
            agent.start()
            hub.until(lambda: hub.serving() == sorted(gpus.values()))
            assert (hub.lease_of("ben")["id"], hub.lease_of("ben")["state"]) == (lease, "running")
            step("b's agent killed: ben computes on, eve gets nothing; it came back with the same lease")

            machines["b"].cut()
            hub.until(lambda: hub.serving() == [gpus["a"]])
            assert dict(hub.leases()) == {"ben": "running", "cem": "running", "eve": "waiting"}
            machines["b"].mend()
            hub.until(lambda: hub.serving() == sorted(gpus.values()))
            assert hub.lease_of("ben")["id"] == lease
            assert hub.look("ben")["uuids"] == [gpus["b"]]
            step("b's cable was out: the same leases afterwards, and ben's kernels answer")

            hub.stop("ben")
            hub.until(lambda: hub.server("eve").get("ready"))
            assert hub.look("eve")["uuids"] == [gpus["b"]]
            for user in ("cem", "eve"):
                hub.stop(user)
            assert not [each for each in hub.status()["leases"] if each["device_uuids"]]
            step("all GPUs given back")
        finally:
            agent.kill()
            print(agent.log[-4000:])
