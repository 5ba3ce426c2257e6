"""Both ways of injection on a real, newer Docker Engine, with harmless stand-ins for the GPUs.

CDI: a spec whose devices are /dev/zero under other names. Classic: an executable with the name of
NVIDIA's hook, which writes down what the engine told it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.node.injection import (
    Access,
    EngineFacts,
    Injection,
    LocalFacts,
    choose,
    engine_facts,
    find_access,
    make_patch,
    read_local,
)
from gpuspawner.node.lease_folder import LeaseFolders, files_of

from tests.docker.engine import SecondEngine, missing, second_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

UUIDS = tuple(f"GPU-{digit * 8}-0000-0000-0000-00000000000{digit}" for digit in "123")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cdi_device(name: str, node: str) -> dict[str, Any]:
    """A CDI device whose node in the container is a /dev/zero under another name."""
    return {"name": name, "containerEdits": {"deviceNodes": [{"path": node, "hostPath": "/dev/zero"}]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cdi/` with a spec that names two of three GPUs by UUID; `programs/` with the stand-in hook."""
    folder = tmp_path_factory.mktemp("injection")
    (folder / "cdi").mkdir()
    (folder / "programs").mkdir()
    devices = [cdi_device(uuid, f"/dev/fake-gpu{index}") for index, uuid in enumerate(UUIDS[:2])]
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "nvidia.com/gpu",
        "devices": [*devices, cdi_device("0", "/dev/fake-gpu0")],
    }
    (folder / "cdi" / "nvidia.yaml").write_text(json.dumps(spec))
    hook = folder / "programs" / "nvidia-container-runtime-hook"
    # An OCI hook gets the container's state on stdin; the bundle's config.json has its environment.
    hook.write_text(
        "#!/bin/sh\n"
        'bundle=$(sed -n \'s/.*"bundle":"\\([^"]*\\)".*/\\1/p\')\n'
        f'cp "$bundle/config.json" {folder}/seen.json\n'
        f'echo "$@" > {folder}/arguments\n'
    )
    hook.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def newer(folder: Path, tiny_image: str) -> Iterator[SecondEngine]:
    """The newer engine with that spec and that hook."""
    with second_engine(cdi_spec_dirs=[folder / "cdi"], programs=folder / "programs") as engine:
        source = docker.from_env()
        engine.copy_image(source, tiny_image)
        source.close()
        yield engine


@pytest.fixture(scope="module")
def facts(newer: SecondEngine, folder: Path) -> EngineFacts:
    """What the broker would know of this engine: `info`, `version`, and the hook on the engine's PATH."""
    local = LocalFacts(
        read_local([str(folder / "cdi")]).cdi, str(folder / "programs" / "nvidia-container-runtime-hook")
    )
    return engine_facts(newer.client.info(), newer.client.version(), local)


def lease_of(*uuids: str) -> Lease:
    return Lease(
        id="0123456789abcdef" * 2,
        hub="hub",
        user="ada",
        server="",
        tier="gpu",
        state=LeaseState.RESERVED,
        want=Want(len(uuids)),
        created_at=NOW,
        since=NOW,
        device_uuids=uuids,
        memory_bytes=80 << 30,
    )


SHOW = (
    "for node in /dev/*; do test -c $node && echo $node; done; env; "
    "cat /run/gpuspawner/lease.json; touch /run/gpuspawner/mine 2>&1; true"
)
ORDINARY = {"console", "core", "fd", "full", "null", "ptmx", "random", "stderr", "stdin", "stdout", "tty",
            "urandom", "zero"}  # fmt: skip


def run_with(engine: SecondEngine, image: str, lease: Lease, way: Injection, state_dir: Path) -> list[str]:
    """Runs a container with the lease's patch, as the spawner would; the lines of what it shows."""
    folders = LeaseFolders(state_dir)
    folders.put(lease.id, files_of(lease, simulated=False), make=True)
    patch = make_patch(lease, way, False, folders.path(lease.id))
    api = engine.client.api
    container = api.create_container(
        image,
        ["/bin/busybox", "sh", "-c", SHOW],
        environment=patch.env,
        labels=patch.labels,
        user="1000:100",
        host_config=api.create_host_config(
            device_requests=list(patch.device_requests),
            mounts=[docker.types.Mount(**mount) for mount in patch.mounts],
            network_mode="none",
            security_opt=["no-new-privileges"],
        ),
    )
    assert api.inspect_container(container["Id"])["Config"]["Labels"] == patch.labels
    api.start(container["Id"])
    assert api.wait(container["Id"])["StatusCode"] == 0
    shown = api.logs(container["Id"]).decode()
    api.remove_container(container["Id"])
    return str(shown).splitlines()


def nodes(lines: list[str]) -> set[str]:
    """The device nodes of the container that every container doesn't have."""
    return {line.removeprefix("/dev/") for line in lines if line.startswith("/dev/")} - ORDINARY


def test_the_probe_of_the_engine_whole(facts: EngineFacts, newer: SecondEngine, folder: Path) -> None:
    assert facts == EngineFacts(
        version=newer.client.version()["Version"],
        api_version=newer.client.version()["ApiVersion"],
        cdi_enabled=True,
        cdi_spec_dirs=(str(folder / "cdi"),),
        cdi_devices=("0", *UUIDS[:2]),
        runtimes=("io.containerd.runc.v2", "runc"),
        default_runtime="runc",
        hook_path=str(folder / "programs" / "nvidia-container-runtime-hook"),
        cgroup_version=str(newer.client.info()["CgroupVersion"]),
        cgroup_driver=str(newer.client.info()["CgroupDriver"]),
    )
    assert int(facts.version.split(".")[0]) >= 25
    assert choose("auto", facts, False, UUIDS[:2]) is Injection.CDI
    assert choose("auto", facts, False, UUIDS) is Injection.NVIDIA
    with pytest.raises(ConfigError, match=f"don't name {UUIDS[2]} by its UUID: run `nvidia-ctk cdi generate"):
        choose("cdi", facts, False, UUIDS)


def test_the_engine_itself_names_the_devices(newer: SecondEngine, folder: Path) -> None:
    """From API 1.50 the specs need not be read from disk, so the engine may run elsewhere."""
    facts = engine_facts(newer.client.info(), newer.client.version())
    assert facts.cdi_devices == ("0", *UUIDS[:2])


@pytest.mark.parametrize(
    ("leased", "expected"),
    [((0,), {"fake-gpu0"}), ((1,), {"fake-gpu1"}), ((0, 1), {"fake-gpu0", "fake-gpu1"})],
)
def test_cdi_gives_exactly_the_leased_devices(
    newer: SecondEngine, tiny_image: str, tmp_path: Path, leased: tuple[int, ...], expected: set[str]
) -> None:
    lease = lease_of(*(UUIDS[index] for index in leased))
    lines = run_with(newer, tiny_image, lease, Injection.CDI, tmp_path)
    assert nodes(lines) == expected
    assert "NVIDIA_VISIBLE_DEVICES=void" in lines
    assert f"GPUSPAWNER_LEASE={lease.id}" in lines
    assert f' "id": "{lease.id}",' in lines  # lease.json, readable as uid 1000
    assert lines[-1] == "touch: /run/gpuspawner/mine: Read-only file system"


def test_cdi_with_a_device_that_no_spec_names_does_not_start(
    newer: SecondEngine, tiny_image: str, tmp_path: Path
) -> None:
    with pytest.raises(APIError, match=r"unresolvable CDI devices nvidia\.com/gpu=GPU-3"):
        run_with(newer, tiny_image, lease_of(UUIDS[2]), Injection.CDI, tmp_path)


def test_the_classic_request_tells_the_hook_exactly_the_leased_devices(
    newer: SecondEngine, tiny_image: str, tmp_path: Path, folder: Path
) -> None:
    lines = run_with(newer, tiny_image, lease_of(UUIDS[0], UUIDS[2]), Injection.NVIDIA, tmp_path)
    assert nodes(lines) == set()  # the stand-in hook injects nothing
    assert (folder / "arguments").read_text() == "prestart\n"
    seen = json.loads((folder / "seen.json").read_text())["process"]["env"]
    wanted = f"NVIDIA_VISIBLE_DEVICES={UUIDS[0]},{UUIDS[2]}"
    assert [value for value in seen if value.startswith("NVIDIA_VISIBLE_DEVICES=")] in (
        [wanted],
        [wanted] * 2,
    )
    assert [value for value in seen if value.startswith("NVIDIA_DRIVER_CAPABILITIES=")] == [
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    ]


def test_without_a_lease_the_hook_is_not_called(newer: SecondEngine, tiny_image: str, folder: Path) -> None:
    for name in ("arguments", "seen.json"):
        (folder / name).unlink(missing_ok=True)
    newer.client.containers.run(tiny_image, ["/bin/busybox", "true"], network_mode="none", remove=True)
    assert sorted(path.name for path in folder.iterdir()) == ["cdi", "programs"]


def access_now(engine: SecondEngine, folder: Path) -> Access:
    """What the broker's next look finds: the engine is asked again, and the specs are read again."""
    facts = engine_facts(
        engine.client.info(), engine.client.version(), LocalFacts(read_local([str(folder / "cdi")]).cdi)
    )
    return find_access("cdi", facts, False, UUIDS[:2])


def test_a_spec_that_changes_is_seen_and_leaves_running_labs_alone(
    newer: SecondEngine, tiny_image: str, tmp_path: Path, folder: Path
) -> None:
    """As after a GPU was exchanged, a reboot or an upgrade. Nothing is restarted."""
    path = folder / "cdi" / "nvidia.yaml"
    before = path.read_text()
    patch = make_patch(lease_of(UUIDS[0]), Injection.CDI, False, tmp_path)
    api = newer.client.api
    host = api.create_host_config(device_requests=list(patch.device_requests), network_mode="none")
    running = api.create_container(tiny_image, ["/bin/busybox", "sleep", "600"], host_config=host)["Id"]

    def still_has_its_device() -> bool:
        command = ["/bin/busybox", "dd", "if=/dev/fake-gpu0", "of=/dev/null", "bs=1", "count=1"]
        made = api.exec_create(running, command)["Id"]
        api.exec_start(made)
        return bool(api.exec_inspect(made)["ExitCode"] == 0)

    try:
        api.start(running)
        assert access_now(newer, folder) == Access(Injection.CDI)
        other = cdi_device(UUIDS[1], "/dev/fake-gpu1")
        for devices, why in [
            ([other], f"don't name {UUIDS[0]} by its UUID: run `nvidia-ctk cdi generate"),
            ([broken_device(UUIDS[0]), other], "needs /dev/not-there, which this machine doesn't have"),
        ]:
            path.write_text(json.dumps({**json.loads(before), "devices": devices}))
            access = access_now(newer, folder)
            assert list(access.obstacles) == [UUIDS[0]]
            assert why in access.obstacles[UUIDS[0]]
            with pytest.raises(APIError):
                run_with(newer, tiny_image, lease_of(UUIDS[0]), Injection.CDI, tmp_path)
            assert nodes(run_with(newer, tiny_image, lease_of(UUIDS[1]), Injection.CDI, tmp_path)) == {
                "fake-gpu1"
            }
            assert still_has_its_device()
    finally:
        path.write_text(before)
        api.remove_container(running, force=True)
    assert access_now(newer, folder) == Access(Injection.CDI)
    assert nodes(run_with(newer, tiny_image, lease_of(UUIDS[0]), Injection.CDI, tmp_path)) == {"fake-gpu0"}


def broken_device(name: str) -> dict[str, Any]:
    """A CDI device whose node is gone from the machine."""
    nodes = [{"path": "/dev/fake-gpu0", "hostPath": "/dev/not-there"}]
    return {"name": name, "containerEdits": {"deviceNodes": nodes}}
