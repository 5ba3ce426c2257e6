"""Facts in, Docker's arguments out, compared whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.labels import Owner
from gpuspawner.core.limits import LabRules, Limits, Machine
from gpuspawner.core.model import ContainerPatch
from gpuspawner.hub.container import (
    HARMLESS_ENV,
    ContainerFacts,
    ContainerPlan,
    has_init,
    plan,
    server_command,
)
from gpuspawner.hub.home import Home, Volume
from hypothesis import given
from hypothesis import strategies as st

OWNER = Owner("hub", "ada", "", "gpu")
FACTS = ContainerFacts(
    name="gpuspawner-ada",
    image="lab:1",
    command=("start",),
    owner=OWNER,
    env={"JUPYTERHUB_USER": "ada"},
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
    "ulimits": [
        {"Name": "memlock", "Soft": -1, "Hard": -1},
        {"Name": "stack", "Soft": 64 << 20, "Hard": 64 << 20},
        {"Name": "nofile", "Soft": 65_536, "Hard": 65_536},
    ],
    "oom_score_adj": 500,
    "init": True,
    "device_requests": None,
}
GIB = 1 << 30


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
    limits = Limits(8 * GIB, 1.5, 4 * GIB, 4096, 256)
    facts = replace(FACTS, limits=limits, published_ip="127.0.0.1")
    assert plan(facts, None) == ContainerPlan(
        {
            **CREATE,
            "environment": {**CREATE["environment"], "OMP_NUM_THREADS": "1"},
            "labels": {**CREATE["labels"], "gpuspawner.mem-limit-bytes": str(8 * GIB)},
        },
        {
            **HOST,
            "mem_limit": 8 * GIB,
            "memswap_limit": 8 * GIB,
            "shm_size": 4 * GIB,
            "cpu_period": 100_000,
            "cpu_quota": 150_000,
            "pids_limit": 4096,
            "cpu_shares": 256,
            "port_bindings": {8888: ("127.0.0.1",)},
        },
        (),
        None,
        limits,
    )


def test_threads_that_somebody_asked_for_stay() -> None:
    facts = replace(FACTS, limits=Limits(cpu_cores=4), env={"OMP_NUM_THREADS": "2"})
    assert plan(facts, None).create["environment"]["OMP_NUM_THREADS"] == "2"


def test_a_log_that_docker_would_keep_for_ever_is_rotated() -> None:
    facts = replace(FACTS, machine=Machine(log_driver="json-file"))
    rotated = {"Type": "json-file", "Config": {"max-size": str(10 << 20), "max-file": "3"}}
    assert plan(facts, None).host == {**HOST, "log_config": rotated}
    for driver in ("local", "journald", ""):
        assert plan(replace(FACTS, machine=Machine(log_driver=driver)), None).host == HOST
    own = {"log_config": {"Type": "syslog", "Config": {"tag": "lab"}}}
    assert plan(replace(facts, extra_host=own), None).host == {**HOST, **own}


def test_an_engine_that_may_not_raise_limits_isnt_asked_to() -> None:
    facts = replace(FACTS, machine=Machine(raises_limits=False))
    assert plan(facts, None).host == {key: value for key, value in HOST.items() if key != "ulimits"}
    own = [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert plan(replace(facts, extra_host={"ulimits": own}), None).host == {**HOST, "ulimits": own}


@pytest.mark.parametrize(
    ("entrypoint", "has"),
    [
        (("tini", "-g", "--", "start-lab"), True),
        (("/usr/bin/dumb-init", "--"), True),
        (("/sbin/init",), True),
        (("/opt/nvidia/nvidia_entrypoint.sh",), False),
        ((), False),
    ],
)
def test_an_init_where_the_image_has_none(entrypoint: tuple[str, ...], has: bool) -> None:
    assert has_init(entrypoint) is has
    host = plan(replace(FACTS, entrypoint=entrypoint), None).host
    assert host == ({key: value for key, value in HOST.items() if key != "init"} if has else HOST)


def test_an_entrypoint_of_the_settings_decides_about_the_init() -> None:
    facts = replace(FACTS, entrypoint=("tini",), extra_create={"entrypoint": "/start.sh --now"})
    assert plan(facts, None).host["init"] is True
    facts = replace(FACTS, extra_create={"entrypoint": ["tini", "--", "start"]})
    assert "init" not in plan(facts, None).host


def test_lists_of_a_configuration_add_to_ours() -> None:
    extra = {
        "binds": ["/srv/data:/data:ro", "/srv/more:/more"],
        "security_opt": ["seccomp=/etc/lab.json"],
        "ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}, {"name": "core", "soft": 0, "hard": 0}],
    }
    assert plan(replace(FACTS, extra_host=extra), None).host == {
        **HOST,
        "binds": {
            "gpuspawner-home-ada": {"bind": "/home/jovyan", "mode": "rw"},
            "/srv/data": {"bind": "/data", "mode": "ro"},
            "/srv/more": {"bind": "/more", "mode": "rw"},
        },
        "security_opt": ["no-new-privileges", "seccomp=/etc/lab.json"],
        "ulimits": [*HOST["ulimits"][:2], *extra["ulimits"]],
    }


@pytest.mark.parametrize("patch", [None, PATCH])
def test_what_a_configuration_says_about_gpus_is_replaced_as_a_whole(patch: ContainerPatch | None) -> None:
    facts = replace(
        FACTS,
        extra_create={
            "environment": {
                "NVIDIA_VISIBLE_DEVICES": "all",
                "cuda_visible_devices": "0",
                "CUDA_LAUNCH_BLOCKING": "1",
                "COURSE": "ml",
            },
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
            "environment": {**plain.create["environment"], "CUDA_LAUNCH_BLOCKING": "1", "COURSE": "ml"},
            "labels": {**plain.create["labels"], "course": "ml"},
        },
        {**plain.host, "devices": ["/dev/fuse"], "shm_size": "1g"},
        (
            "device_requests",
            "runtime",
            "runtime",
            "devices",
            "NVIDIA_VISIBLE_DEVICES",
            "cuda_visible_devices",
        ),
    )


def test_a_lease_may_set_the_runtime() -> None:
    assert plan(FACTS, replace(PATCH, runtime="nvidia")).host["runtime"] == "nvidia"


def test_a_host_config_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="move it to extra_host_config"):
        plan(replace(FACTS, extra_create={"host_config": {"DeviceRequests": [{"Count": -1}]}}), None)


names = st.sampled_from(
    [
        "NVIDIA_VISIBLE_DEVICES",
        "nvidia_x",
        "CUDA_MPS_PIPE_DIRECTORY",
        "Cuda",
        "cuda_launch_blocking",
        "DOCKER_RESOURCE_NVIDIA-GPU",
        "PATH",
    ]
)


@given(
    st.dictionaries(
        names | st.sampled_from(sorted(HARMLESS_ENV)) | st.text(max_size=12), st.text(max_size=5), max_size=6
    )
)
def test_no_environment_picks_a_gpu(environment: dict[str, str]) -> None:
    planned = plan(replace(FACTS, env=environment), None)
    made = planned.create["environment"]
    chosen = ("NVIDIA_", "CUDA_", "DOCKER_RESOURCE_")
    gpu = {key: value for key, value in made.items() if key.upper().startswith(chosen)}
    harmless = {key: value for key, value in environment.items() if key in HARMLESS_ENV}
    assert gpu == {"NVIDIA_VISIBLE_DEVICES": "void", **harmless}
    assert {*environment} == {*planned.dropped} | ({*made} & {*environment}) | (
        {"NVIDIA_VISIBLE_DEVICES"} & {*environment}
    )


def test_what_is_let_through_picks_no_device() -> None:
    assert [name for name in HARMLESS_ENV if "VISIBLE" in name or "MPS" in name or "MIG" in name] == []
    assert all(name.startswith(("NVIDIA_", "CUDA_")) for name in HARMLESS_ENV)


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


HOME = Volume("{prefix}-home-{username}", "gpuspawner-home-ada", "/home/jovyan")


@pytest.mark.parametrize("source", ["gpuspawner-home-ada", "/srv/homes/ada"])
def test_home_and_working_directory_are_put_together(source: str) -> None:
    binds = {source: {"bind": "/home/jovyan", "mode": "rw"}}
    home = Home(replace(HOME, source=source), unknown=True)
    planned = plan(replace(FACTS, binds=binds, home=home), None)
    assert planned == ContainerPlan(
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
        home,
    )
    assert planned.new_home == (None if source.startswith("/") else "/home/jovyan")


def test_a_home_that_the_image_knows_is_left_to_it() -> None:
    home = Home(HOME, unknown=False)
    planned = plan(replace(FACTS, home=home), None)
    assert planned == ContainerPlan(CREATE, HOST, (), home)
    assert planned.new_home is None


def test_a_way_past_the_lease_is_refused_and_allowed_by_name() -> None:
    facts = replace(FACTS, extra_host={"privileged": True})
    with pytest.raises(ConfigError, match=r'set c\.GpuLab\.past_lease = \["privileged"\]'):
        plan(facts, None)
    allowed = replace(facts, rules=LabRules(past_lease=frozenset({"privileged"})))
    assert plan(allowed, None).host == {**HOST, "privileged": True}


def test_gpus_that_are_meant_stay() -> None:
    facts = replace(FACTS, extra_host={"devices": ["/dev/dri/renderD128"]})
    assert plan(facts, None).host == {**HOST, "devices": []}
    allowed = replace(facts, rules=LabRules(past_lease=frozenset({"devices"})))
    assert plan(allowed, None) == ContainerPlan(CREATE, {**HOST, "devices": ["/dev/dri/renderD128"]}, ())


def test_the_brokers_state_is_for_no_lab_but_the_folder_of_its_lease_is() -> None:
    facts = replace(FACTS, rules=LabRules(private=("/state",)))
    assert plan(facts, PATCH).host["mounts"][0]["Source"] == "/state/a1"
    with pytest.raises(ConfigError, match="the broker's state"):
        plan(replace(facts, binds={"/state/leases": {"bind": "/x", "mode": "ro"}}), None)
