"""Facts in, Docker's arguments out, compared whole."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.labels import Owner
from gpuspawner.core.model import ContainerPatch
from gpuspawner.hub.container import (
    ContainerFacts,
    ContainerPlan,
    home_beside,
    own_home,
    plan,
    server_command,
)
from hypothesis import given
from hypothesis import strategies as st

OWNER = Owner("hub", "ada", "", "gpu")
FACTS = ContainerFacts(
    name="gpuspawner-ada",
    image="lab:1",
    command=("start",),
    owner=OWNER,
    env={"JUPYTERHUB_USER": "ada", "NVIDIA_VISIBLE_DEVICES": "all", "cuda_visible_devices": "0"},
    port=8888,
    container_user="1000:100",
    network="gpuspawner",
    binds={"gpuspawner-home-ada": {"bind": "/home/jovyan", "mode": "rw"}},
)
PATCH = ContainerPatch(
    env={"NVIDIA_VISIBLE_DEVICES": "void", "GPUSPAWNER_LEASE": "a1"},
    labels={"gpuspawner.lease": "a1", "gpuspawner.devices": "GPU-1"},
    mounts=({"source": "/state/a1", "target": "/run/gpuspawner", "type": "bind", "read_only": True},),
    device_requests=({"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=GPU-1"]},),
)
CREATE: dict[str, Any] = {
    "image": "lab:1",
    "name": "gpuspawner-ada",
    "command": ["start"],
    "environment": {"JUPYTERHUB_USER": "ada", "NVIDIA_VISIBLE_DEVICES": "void"},
    "user": "1000:100",
    "volumes": ["/home/jovyan"],
    "ports": {"8888/tcp": None},
    "labels": OWNER.labels(),
}
HOST: dict[str, Any] = {
    "auto_remove": False,
    "binds": {"gpuspawner-home-ada": {"bind": "/home/jovyan", "mode": "rw"}},
    "links": {},
    "mounts": [],
    "network_mode": "gpuspawner",
    "privileged": False,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "device_requests": None,
}


def test_without_a_lease_there_is_no_device() -> None:
    assert plan(FACTS, None) == ContainerPlan(CREATE, HOST, ())


def test_a_lease_adds_its_device_its_labels_and_its_mount() -> None:
    assert plan(FACTS, PATCH) == ContainerPlan(
        {
            **CREATE,
            "environment": {
                "JUPYTERHUB_USER": "ada",
                "NVIDIA_VISIBLE_DEVICES": "void",
                "GPUSPAWNER_LEASE": "a1",
            },
            "labels": {**OWNER.labels(), "gpuspawner.lease": "a1", "gpuspawner.devices": "GPU-1"},
        },
        {
            **HOST,
            "device_requests": [{"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=GPU-1"]}],
            "mounts": [
                {"Type": "bind", "Source": "/state/a1", "Target": "/run/gpuspawner", "ReadOnly": True}
            ],
        },
        (),
    )


def test_limits_and_published_ports() -> None:
    facts = replace(FACTS, mem_limit_bytes=1 << 30, cpu_limit=1.5, published_ip="127.0.0.1")
    assert plan(facts, None).host == {
        **HOST,
        "mem_limit": 1 << 30,
        "cpu_period": 100_000,
        "cpu_quota": 150_000,
        "port_bindings": {8888: ("127.0.0.1",)},
    }


@pytest.mark.parametrize("patch", [None, PATCH])
def test_what_a_configuration_says_about_gpus_is_replaced_as_a_whole(patch: ContainerPatch | None) -> None:
    facts = replace(
        FACTS,
        extra_create={
            "environment": {"NVIDIA_DRIVER_CAPABILITIES": "all", "COURSE": "ml"},
            "labels": {"gpuspawner.user": "eve", "course": "ml"},
            "runtime": "nvidia",
        },
        extra_host={
            "device_requests": [{"Count": -1, "Capabilities": [["gpu"]]}],
            "devices": ["/dev/nvidia0:/dev/nvidia0:rwm", {"PathOnHost": "/dev/nvidiactl"}, "/dev/fuse"],
            "runtime": "nvidia",
            "shm_size": "1g",
        },
    )
    plain = plan(FACTS, patch)
    assert plan(facts, patch) == ContainerPlan(
        {
            **plain.create,
            "environment": {**plain.create["environment"], "COURSE": "ml"},
            "labels": {**plain.create["labels"], "course": "ml"},
        },
        {**plain.host, "devices": ["/dev/fuse"], "shm_size": "1g"},
        ("device_requests", "runtime", "runtime", "devices"),
    )


def test_a_lease_may_set_the_runtime() -> None:
    assert plan(FACTS, replace(PATCH, runtime="nvidia")).host["runtime"] == "nvidia"


def test_a_host_config_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="put it into extra_host_config"):
        plan(replace(FACTS, extra_create={"host_config": {"DeviceRequests": [{"Count": -1}]}}), None)


names = st.sampled_from(["NVIDIA_VISIBLE_DEVICES", "nvidia_x", "CUDA_MPS_PIPE_DIRECTORY", "Cuda", "PATH"])


@given(st.dictionaries(names | st.text(max_size=12), st.text(max_size=5), max_size=6))
def test_no_environment_picks_a_gpu(environment: dict[str, str]) -> None:
    made = plan(replace(FACTS, env=environment), None).create["environment"]
    assert {key: value for key, value in made.items() if key.upper().startswith(("NVIDIA_", "CUDA_"))} == {
        "NVIDIA_VISIBLE_DEVICES": "void"
    }


@pytest.mark.parametrize(
    ("labels", "owns"),
    [
        (OWNER.labels(), True),
        ({**OWNER.labels(), "gpuspawner.tier": "cpu", "more": "x"}, True),
        ({**OWNER.labels(), "gpuspawner.user": "eve"}, False),
        ({**OWNER.labels(), "gpuspawner.server": "two"}, False),
        ({**OWNER.labels(), "gpuspawner.hub": "other"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_whose_container_it_is(labels: dict[str, str] | None, owns: bool) -> None:
    assert OWNER.owns(labels) is owns


@pytest.mark.parametrize(
    ("command", "started"),
    [
        (None, ["jupyterhub-singleuser"]),
        ([], ["jupyterhub-singleuser"]),
        (["/bin/bash"], ["jupyterhub-singleuser"]),
        (["python3"], ["jupyterhub-singleuser"]),
        (["start-notebook.py"], ["start-notebook.py"]),
        (["bash", "-c", "serve"], ["bash", "-c", "serve"]),
        (["lab-server"], ["lab-server"]),
    ],
)
def test_what_starts_the_server(command: list[str] | None, started: list[str]) -> None:
    assert server_command(command) == started


@pytest.mark.parametrize(
    ("place", "home"),
    [
        ("/home/jovyan", None),
        ("/home/jovyan/work", None),
        ("/home", None),
        ("/home/jovyanna", "/home/jovyan"),
        ("/workspace", "/home/jovyan"),
        ("/", "/home/jovyan"),
        ("", "/home/jovyan"),
    ],
)
def test_the_home_of_an_image_that_works_elsewhere(place: str, home: str | None) -> None:
    assert home_beside(place, FACTS.binds) == home
    assert home_beside(place, {}) is None


@pytest.mark.parametrize(
    ("source", "owned"), [("gpuspawner-home-ada", "/home/jovyan"), ("/srv/homes/ada", None)]
)
def test_home_and_working_directory_are_put_together(source: str, owned: str | None) -> None:
    binds = {source: {"bind": "/home/jovyan", "mode": "rw"}}
    assert plan(replace(FACTS, binds=binds, home="/home/jovyan"), None) == ContainerPlan(
        {
            **CREATE,
            "working_dir": "/home/jovyan",
            "environment": {
                "HOME": "/home/jovyan",
                "JUPYTERHUB_USER": "ada",
                "NVIDIA_VISIBLE_DEVICES": "void",
            },
        },
        {**HOST, "binds": binds},
        (),
        owned,
    )


def test_the_archive_that_makes_a_home_its_users() -> None:
    parent, data = own_home("/home/jovyan", "1001:100")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (entry,) = archive.getmembers()
    assert (parent, entry.name, entry.isdir(), entry.mode, entry.uid, entry.gid) == (
        "/home", "jovyan", True, 0o755, 1001, 100,
    )  # fmt: skip
