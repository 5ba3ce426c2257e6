"""What a lab's container really has, seen from inside, and what Docker says to settings that can't work."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import docker
import docker.errors
import pytest
from gpuspawner.config.lab import GpuLab
from gpuspawner.core.errors import EngineFault
from gpuspawner.core.labels import Owner
from gpuspawner.core.limits import LabRules, Limits, Machine
from gpuspawner.hub.container import ContainerFacts, plan
from gpuspawner.hub.containers import limit_home
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.engine_rights import may_raise_limits
from gpuspawner.hub.engine_words import explain
from gpuspawner.hub.home import Home, Volume, belongs_to_root, own_home
from traitlets.config import Config

pytestmark = pytest.mark.docker
MIB = 1 << 20
LIMITS = Limits(512 * MIB, 1.5, 256 * MIB, 100, 256)

Run = Callable[..., str]


def facts_of(image: str, *command: str) -> ContainerFacts:
    return ContainerFacts(
        name=f"gpuspawner-test-{uuid.uuid4().hex[:8]}",
        image=image,
        command=command,
        owner=Owner("test", "ada", "", "cpu"),
        env={},
        port=8888,
        container_user="1000:100",
        network="none",
        limits=LIMITS,
        rules=LabRules(log_size_bytes=64 << 10),
        machine=Machine(log_driver="json-file", raises_limits=may_raise_limits({})),
    )


@pytest.fixture
def make(engine: docker.APIClient) -> Iterator[Callable[[ContainerFacts], str]]:
    """Creates a container from facts as the spawner does; removed after the test."""
    made: list[str] = []

    def create(facts: ContainerFacts) -> str:
        planned = plan(facts, None)
        host = engine.create_host_config(**planned.host)
        made.append(str(engine.create_container(**planned.create, host_config=host)["Id"]))
        return made[-1]

    yield create
    for container in made:
        engine.remove_container(container, v=True, force=True)


def output(engine: docker.APIClient, container: str) -> str:
    engine.start(container)
    engine.wait(container)
    return str(engine.logs(container).decode())


INSIDE = """
df -k /dev/shm | awk 'NR==2 {print "shm", $2}'
awk '/Max (locked memory|stack size|open files)/ {print $2, $(NF-2), $(NF-1)}' /proc/self/limits
cat /proc/1/comm
cat /proc/self/oom_score_adj
grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t' ' '
echo "threads $OMP_NUM_THREADS"
"""


def test_what_a_lab_has_seen_from_inside(
    engine: docker.APIClient, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    container = make(facts_of(tiny_image, "/bin/busybox", "sh", "-c", _with_busybox(INSIDE)))
    shm, *said = output(engine, container).splitlines()
    assert shm == f"shm {256 * 1024}"
    assert said[3:] == [
        "docker-init",
        "500",
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",  # a filter: Docker's default profile, as no other is set
        "threads 1",
    ]
    host = engine.inspect_container(container)["HostConfig"]
    kept = {
        key: host[key]
        for key in ("Memory", "MemorySwap", "CpuQuota", "CpuShares", "PidsLimit", "LogConfig", "Init")
    }
    assert kept == {
        "Memory": 512 * MIB,
        "MemorySwap": 512 * MIB,
        "CpuQuota": 150_000,
        "CpuShares": 256,
        "PidsLimit": 100,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "65536", "max-file": "3"}},
        "Init": True,
    }


def test_limits_of_processes_seen_from_inside(
    engine: docker.APIClient, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    """As NVIDIA's containers ask."""
    if not may_raise_limits({}):
        pytest.skip("the Docker Engine here has no CAP_SYS_RESOURCE: it can't raise the limits of a lab")
    container = make(facts_of(tiny_image, "/bin/busybox", "sh", "-c", _with_busybox(INSIDE)))
    _, *said = output(engine, container).splitlines()
    assert sorted(said[:3]) == [
        "locked unlimited unlimited",
        "open 65536 65536",
        "stack 67108864 67108864",
    ]


def test_a_home_has_its_size_or_the_reason_is_said(
    engine: docker.APIClient, new_home: str, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    """Most machines have no XFS with project quotas: there Docker refuses, and the lab starts anyway."""
    home = Home(Volume("{username}", new_home, "/home/jovyan"), unknown=False)
    facts = facts_of(tiny_image, "/bin/busybox", "sh", "-c", _with_busybox(FILL))
    binds = {new_home: {"bind": "/home/jovyan", "mode": "rw"}}
    facts = replace(facts, home=home, binds=binds, rules=LabRules(home_size_bytes=10 * MIB))
    why = limit_home(calls_of(engine), plan(facts, None))
    made = [each["Name"] for each in engine.volumes()["Volumes"] or ()]
    if why:
        assert why.startswith(f"The home {new_home} has no limit of its size: ")
        assert "quota size requested but no quota support" in why
        assert new_home not in made
        return
    assert engine.inspect_volume(new_home)["Options"] == {"size": str(10 * MIB)}
    assert limit_home(calls_of(engine), plan(facts, None)) == ""  # it exists
    container = make(facts)
    engine.put_archive(container, *own_home("/home/jovyan", "1000:100"))
    size, *rest = output(engine, container).splitlines()
    assert size == "home 10240"  # KiB
    assert any("No space left on device" in line or "quota exceeded" in line for line in rest), rest
    assert 9 * MIB < int(rest[-1].split()[1]) <= 10 * MIB


@pytest.fixture
def new_home(engine: docker.APIClient) -> Iterator[str]:
    """The name of a home that doesn't exist yet."""
    name = f"gpuspawner-test-{uuid.uuid4().hex[:8]}"
    yield name
    with suppress(docker.errors.NotFound):
        engine.remove_volume(name)


def test_a_full_home_is_said_to_its_program_and_leaves_the_machine_alone(
    engine: docker.APIClient, new_home: str, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    """By the settings that an admin writes. Docker's own driver limits a file system in memory anywhere."""
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size={size},uid=1000,gid=100"}
    lab = GpuLab(config=Config({"GpuLab": {"home_size": "10M", "home_options": options}}))
    home = Home(Volume("{username}", new_home, "/home/jovyan"), unknown=False)
    facts = facts_of(tiny_image, "/bin/busybox", "sh", "-c", _with_busybox(FILL))
    binds = {new_home: {"bind": "/home/jovyan", "mode": "rw"}}
    facts = replace(facts, home=home, rules=lab.rules(), binds=binds)
    assert limit_home(calls_of(engine), plan(facts, None)) == ""
    size, *rest = output(engine, make(facts)).splitlines()
    assert size == "home 10240"  # KiB
    assert any("No space left on device" in line for line in rest), rest
    assert rest[-1] == "full 10485760"


FILL = """
df -k /home/jovyan | awk 'NR==2 {print "home", $2}'
/bin/busybox dd if=/dev/zero of=/home/jovyan/big bs=64k count=1000 2>&1
/bin/busybox stat -c "full %s" /home/jovyan/big
"""


def _with_busybox(script: str) -> str:
    """The script for an image in which every program is busybox's."""
    for program in ("df", "awk", "tr", "cut", "cat", "grep"):
        script = script.replace(f"| {program} ", f"| /bin/busybox {program} ")
        script = script.replace(f"\n{program} ", f"\n/bin/busybox {program} ")
    return script


def test_a_fork_bomb_ends_at_the_limit(
    engine: docker.APIClient, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    script = "i=0; while [ $i -lt 300 ]; do /bin/busybox sleep 5 & i=$((i+1)); done; echo all of them"
    said = output(engine, make(facts_of(tiny_image, "/bin/busybox", "sh", "-c", script)))
    assert "fork" in said.lower()
    assert "all of them" not in said


def test_a_loop_of_prints_fills_no_disk(
    engine: docker.APIClient, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line number $i of very many; i=$((i+1)); done"
    said = output(engine, make(facts_of(tiny_image, "/bin/busybox", "sh", "-c", script)))
    assert said.endswith("line number 19999 of very many\n")
    assert len(said) < 3 * (64 << 10)  # three files of 64 KiB, each line with Docker's own words around it


@pytest.fixture
def volume(engine: docker.APIClient) -> Iterator[str]:
    name = f"gpuspawner-test-{uuid.uuid4().hex[:8]}"
    engine.create_volume(name)
    yield name
    engine.remove_volume(name, force=True)


def test_a_home_that_docker_made_is_roots_until_it_is_given_to_its_user(
    engine: docker.APIClient, volume: str, tiny_image: str, make: Callable[[ContainerFacts], str]
) -> None:
    facts = facts_of(tiny_image, "/bin/busybox", "stat", "-c", "%u:%g %a", "/home/jovyan")
    container = make(replace(facts, binds={volume: {"bind": "/home/jovyan", "mode": "rw"}}))

    def is_roots() -> bool:
        stream, _ = engine.get_archive(container, "/home/jovyan")
        with closing(stream):
            return belongs_to_root(next(iter(stream), b""))

    assert is_roots()
    parent, archive = own_home("/home/jovyan", "1000:100")
    engine.put_archive(container, parent, archive)
    assert not is_roots()
    assert output(engine, container) == "1000:100 755\n"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"mounts": [{"Type": "bind", "Source": "/no/such/folder", "Target": "/x"}]}, "mount"),
        ({"binds": {"/proc/none/x": {"bind": "/x", "mode": "rw"}}}, "mount"),
        ({"binds": {"a" * 300: {"bind": "/x", "mode": "rw"}}}, "name_too_long"),
        ({"runtime": "no-such-runtime"}, "runtime"),
        ({"device_requests": [{"Driver": "no-such", "Count": -1, "Capabilities": [["gpu"]]}]}, "device"),
        ({"devices": ["/dev/no-such-device"]}, "device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_docker_says_to_settings_that_cant_work(
    engine: docker.APIClient, tiny_image: str, extra: dict[str, Any], reason: str
) -> None:
    facts = facts_of(tiny_image, "/bin/busybox", "true")
    planned = plan(facts, None)
    host = engine.create_host_config(**{**planned.host, **extra})
    try:
        with pytest.raises(docker.errors.APIError) as refused:
            engine.start(engine.create_container(**planned.create, host_config=host)["Id"])
    finally:
        with suppress(docker.errors.NotFound):
            engine.remove_container(facts.name, v=True, force=True)
    fault = EngineFault(str(refused.value.explanation), refused.value.status_code)
    assert explain(fault).reason == reason, str(fault)
