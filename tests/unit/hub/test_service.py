"""A container's settings in, a Swarm service out, compared whole; what a service can't have is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.labels import Owner
from gpuspawner.core.limits import Limits, Machine
from gpuspawner.core.model import ContainerPatch
from gpuspawner.hub.container import ContainerFacts, plan
from gpuspawner.hub.swarm.service import Berth, literal, pinned, service_of
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
OWNER = Owner("hub", "ada", "", "gpu")
BERTH = Berth("node-b", "net-7", "lab-7")
FACTS = ContainerFacts(
    name="gpuspawner-ada",
    image="lab:1",
    command=("start", "--debug"),
    owner=OWNER,
    env={"JUPYTERHUB_USER": "ada"},
    port=8888,
    container_user="1000:100",
    network="gpuspawner",
    binds={
        "gpuspawner-home-ada": {"bind": "/home/jovyan", "mode": "rw"},
        "/data": {"bind": "/data", "mode": "ro"},
    },
    limits=Limits(8 * GIB, 1.5, 4 * GIB, 4096, 256),
    machine=Machine(log_driver="json-file"),
)
PATCH = ContainerPatch(
    env={"NVIDIA_VISIBLE_DEVICES": "GPU-1", "GPUSPAWNER_LEASE": "a1"},
    labels={"gpuspawner.lease": "a1"},
    mounts=({"source": "/state/a1", "target": "/run/gpuspawner", "type": "bind", "read_only": True},),
)
LABELS = {**OWNER.labels(), "gpuspawner.lease": "a1", "gpuspawner.mem-limit-bytes": str(8 * GIB)}
SERVICE: dict[str, Any] = {
    "name": "gpuspawner-ada",
    "labels": {**LABELS, "gpuspawner.lane": "7"},
    "task_template": {
        "ContainerSpec": {
            "Image": "sha256:12",
            "Labels": LABELS,
            "Args": ["start", "--debug"],
            "Env": [
                "OMP_NUM_THREADS=1",
                "JUPYTERHUB_USER=ada",
                "NVIDIA_VISIBLE_DEVICES=GPU-1",
                "GPUSPAWNER_LEASE=a1",
            ],
            "User": "1000:100",
            "Init": True,
            "CapabilityDrop": ["ALL"],
            "OomScoreAdj": 500,
            "Ulimits": [
                {"Name": "memlock", "Soft": -1, "Hard": -1},
                {"Name": "stack", "Soft": 64 << 20, "Hard": 64 << 20},
                {"Name": "nofile", "Soft": 65_536, "Hard": 65_536},
            ],
            "Privileges": {"NoNewPrivileges": True},
            "Healthcheck": {"Test": ["NONE"]},
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "gpuspawner-home-ada",
                    "Target": "/home/jovyan",
                    "ReadOnly": False,
                },
                {"Type": "bind", "Source": "/data", "Target": "/data", "ReadOnly": True},
                {"Type": "bind", "Source": "/state/a1", "Target": "/run/gpuspawner", "ReadOnly": True},
                {
                    "Type": "tmpfs",
                    "Target": "/dev/shm",
                    "TmpfsOptions": {"SizeBytes": 4 * GIB, "Mode": 0o1777},
                },
            ],
        },
        "Resources": {"Limits": {"MemoryBytes": 8 * GIB, "NanoCPUs": 1_500_000_000, "Pids": 4096}},
        "RestartPolicy": {"Condition": "none"},
        "Placement": {"Constraints": ["node.id==node-b"]},
        "Networks": [{"Target": "net-7", "Aliases": ["lab-7"]}],
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "10485760", "max-file": "3"}},
    },
    "mode": {"Replicated": {"Replicas": 0}},
    "endpoint_spec": {"Mode": "dnsrr"},
}


def service(facts: ContainerFacts = FACTS, patch: ContainerPatch | None = PATCH) -> dict[str, Any]:
    return service_of(plan(facts, patch), BERTH, "sha256:12", {"gpuspawner.lane": "7"})


def test_the_whole_service() -> None:
    assert service() == SERVICE


def test_settings_of_the_site_that_a_service_has() -> None:
    facts = replace(
        FACTS,
        extra_create={
            "hostname": "lab",
            "healthcheck": {"Test": ["CMD", "true"]},
            "entrypoint": "tini -g --",
            "stop_timeout": 30,
        },
        extra_host={
            "cap_add": ["NET_BIND_SERVICE"],
            "dns": ["10.0.0.53"],
            "extra_hosts": {"files": "10.0.0.9"},
            "group_add": ["44"],
            "mem_limit": "2g",
            "security_opt": ["seccomp=unconfined"],
            "tmpfs": {"/scratch": ""},
            "volume_driver": "nfs",
        },
    )
    container = service(facts)["task_template"]["ContainerSpec"]
    known = SERVICE["task_template"]["ContainerSpec"]
    assert {key: value for key, value in container.items() if value != known.get(key)} == {
        "CapabilityAdd": ["NET_BIND_SERVICE"],
        "Command": ["tini", "-g", "--"],
        "DNSConfig": {"Nameservers": ["10.0.0.53"]},
        "Groups": ["44"],
        "Healthcheck": {"Test": ["CMD", "true"]},
        "Hostname": "lab",
        "Hosts": ["10.0.0.9 files"],
        "Mounts": [
            {**known["Mounts"][0], "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}},
            *known["Mounts"][1:3],
            {"Type": "tmpfs", "Target": "/scratch"},
            known["Mounts"][3],
        ],
        "Privileges": {"NoNewPrivileges": True, "Seccomp": {"Mode": "unconfined"}},
        "StopGracePeriod": 30_000_000_000,
    }
    assert service(facts)["task_template"]["Resources"]["Limits"]["MemoryBytes"] == 2 * GIB


@pytest.mark.parametrize(
    ("extra_host", "named"),
    [
        ({"cpuset_cpus": "0-3"}, "'cpuset_cpus', which a service of a Swarm can't have"),
        ({"blkio_weight": 10}, "'blkio_weight'"),
        ({"devices": ["/dev/fuse"]}, "'devices'"),
        ({"userns_mode": "host"}, "'userns_mode'"),
        ({"security_opt": ["seccomp=/etc/lab.json"]}, "security_opt 'seccomp=/etc/lab.json'"),
        ({"binds": {"/data": {"bind": "/data", "mode": "z"}}}, "mode 'z'"),
    ],
)
def test_what_a_service_cant_have_is_refused_by_name(extra_host: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        service(replace(FACTS, extra_host=extra_host))


def test_a_lease_that_comes_by_request_or_a_port_of_the_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="default runtime must be NVIDIA's"):
        service(patch=replace(PATCH, device_requests=({"Driver": "cdi", "DeviceIDs": ["x"]},)))
    with pytest.raises(ConfigError, match=r"use_internal_ip = True"):
        service(replace(FACTS, published_ip="127.0.0.1"))


ID = "sha256:" + "1" * 64
DIGEST = "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("digests", "reference", "name"),
    [
        ([], "gpuspawner/lab:1", ID),
        ([f"gpuspawner/lab@{DIGEST}"], "gpuspawner/lab:1", f"gpuspawner/lab@{DIGEST}"),
        ([f"gpuspawner/lab@{DIGEST}"], "docker.io/gpuspawner/lab", f"gpuspawner/lab@{DIGEST}"),
        ([f"reg:5000/lab@{DIGEST}"], "reg:5000/lab", f"reg:5000/lab@{DIGEST}"),
        ([f"other/lab@{DIGEST}"], "gpuspawner/lab:1", ID),
    ],
)
def test_an_image_is_named_so_that_no_registry_is_asked_at_a_start(
    digests: list[str], reference: str, name: str
) -> None:
    assert pinned({"Id": ID, "RepoDigests": digests}, reference) == name
    assert pinned({}, reference) == reference


_texts = st.text(st.sampled_from('{}.Node ID"x'), max_size=16)


@given(st.dictionaries(st.sampled_from(["A", "B", "{{C}}"]), _texts, max_size=3))
def test_nothing_that_a_user_brings_is_a_template(environment: dict[str, str]) -> None:
    """Swarm would put the node's id in, or refuse the task."""
    env = service(replace(FACTS, env=environment))["task_template"]["ContainerSpec"]["Env"]
    quoted = '{{"{{"}}'
    assert [line for line in env if "{{" in line.replace(quoted, "")] == []
    assert {line.replace(quoted, "{{") for line in env} >= {
        f"{key}={environment[key]}" for key in environment
    }


@given(
    st.dictionaries(
        st.sampled_from(["NVIDIA_VISIBLE_DEVICES", "DOCKER_RESOURCE_GPU", "cuda_visible_devices", "NODE_ID"]),
        st.sampled_from(["all", "GPU-9", "0", "{{.Node.ID}}"]),
    )
)
def test_nothing_that_a_user_brings_picks_a_gpu_or_a_machine(environment: dict[str, str]) -> None:
    task = service(replace(FACTS, env=environment))["task_template"]
    chosen = ("NVIDIA_", "CUDA_", "DOCKER_RESOURCE_")
    gpu = [line for line in task["ContainerSpec"]["Env"] if line.upper().startswith(chosen)]
    assert gpu == ["NVIDIA_VISIBLE_DEVICES=GPU-1"]
    assert task["Placement"] == {"Constraints": ["node.id==node-b"]}
    assert "Reservations" not in task["Resources"]


def test_a_template_is_written_literally() -> None:
    assert literal("{{.Node.ID}} {x} {{{") == '{{"{{"}}.Node.ID}} {x} {{"{{"}}{'
