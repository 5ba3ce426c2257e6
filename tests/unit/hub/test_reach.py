"""Every way past a lease, in every form in which Docker takes it; and what isn't one."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.hub.reach import Way, check, drop_devices, ways

CREATE = {"user": "1000:100"}
HOST = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
ALL = "every GPU of this machine"


def found(host: dict[str, Any]) -> list[tuple[str, str]]:
    return [(way.name, way.reaches) for way in ways(CREATE, {**HOST, **host}, ("/srv/state",))]


def bind(source: str, target: str = "/x") -> dict[str, Any]:
    return {"binds": {source: {"bind": target, "mode": "ro"}}}


@pytest.mark.parametrize("user", ["", "0", "00", "0:0", "root", "root:root", "jovyan"])
def test_root_can_stop_mps_and_a_name_may_be_root(user: str) -> None:
    reaches = "the MPS daemon of its GPU (root in a container can stop it)"
    assert ways({"user": user}, HOST) == [Way("user", repr(user), reaches)]


@pytest.mark.parametrize("user", ["1000", "1000:100", "65534:0"])
def test_other_users_reach_nothing(user: str) -> None:
    assert ways({"user": user}, HOST) == []


@pytest.mark.parametrize(
    ("host", "way"),
    [
        ({"privileged": True}, ("privileged", ALL)),
        ({"cap_add": ["SYS_ADMIN"]}, ("cap_add", "what only the machine's root should access")),
        ({"cap_add": ["cap_mknod", "SYS_NICE"]}, ("cap_add", "what only the machine's root should access")),
        ({"cap_add": ["ALL"]}, ("cap_add", "what only the machine's root should access")),
        ({"cap_drop": []}, ("cap_drop", "what only root should access: labs need no capability")),
        ({"cap_drop": ["NET_RAW"]}, ("cap_drop", "what only root should access: labs need no capability")),
        (
            {"security_opt": ["no-new-privileges:false"]},
            ("security_opt", "root by a setuid program, and with it the MPS daemon of its GPU"),
        ),
        (
            {"security_opt": ["no-new-privileges=false"]},
            ("security_opt", "root by a setuid program, and with it the MPS daemon of its GPU"),
        ),
        (
            {"device_cgroup_rules": ["c 195:* rwm"]},
            ("device_cgroup_rules", "devices that aren't leased to it"),
        ),
        ({"devices": ["/dev/nvidia0"]}, ("devices", "GPUs that aren't leased to it")),
        ({"devices": ["/dev:/dev:rwm"]}, ("devices", "GPUs that aren't leased to it")),
        ({"devices": ["/dev/./nvidia-uvm:/dev/x"]}, ("devices", "GPUs that aren't leased to it")),
        ({"devices": [{"PathOnHost": "//dev/nvidiactl"}]}, ("devices", "GPUs that aren't leased to it")),
        ({"devices": ["/dev/char/195:0"]}, ("devices", "GPUs that aren't leased to it")),
        ({"devices": ["nvidia.com/gpu=all"]}, ("devices", "GPUs that aren't leased to it")),
        (bind("/dev"), ("binds", ALL)),
        (bind("/dev/"), ("binds", ALL)),
        ({"binds": ["/srv/data:/data:ro", "/dev:/dev"]}, ("binds", ALL)),
        (bind("/tmp/../dev"), ("binds", ALL)),
        (bind("/"), ("binds", ALL)),
        (bind("/dev/nvidia0", "/dev/nvidia0"), ("binds", ALL)),
        (bind("/dev/dri"), ("binds", ALL)),
        (bind("/dev/null", "/var/run/nvidia-container-devices/all"), ("binds", ALL)),
        (bind("/var/run/docker.sock"), ("binds", "Docker, and with it " + ALL)),
        (bind("/run"), ("binds", "Docker, and with it " + ALL)),
        (bind("/var"), ("binds", "Docker, and with it " + ALL)),
        (bind("/proc"), ("binds", "the processes of other labs")),
        (bind("/srv"), ("binds", "the broker's state")),
        (bind("/srv/state/leases"), ("binds", "the broker's state")),
        ({"mounts": [{"Source": "/dev", "Target": "/d", "Type": "bind"}]}, ("mounts", ALL)),
        (
            {
                "mounts": [
                    {
                        "Source": "innocent",
                        "Target": "/d",
                        "Type": "volume",
                        "VolumeOptions": {"DriverConfig": {"Options": {"device": "/dev", "o": "bind"}}},
                    }
                ]
            },
            ("mounts", ALL),
        ),
        ({"volumes_from": ["other"]}, ("volumes_from", "what other containers mount")),
        ({"pid_mode": "host"}, ("pid_mode", "the processes of other labs")),
        ({"pid_mode": "container:a"}, ("pid_mode", "the processes of other labs")),
        ({"ipc_mode": "host"}, ("ipc_mode", "the processes of other labs")),
        (
            {"restart_policy": {"Name": "always"}},
            ("restart_policy", "devices that another user may hold when it restarts"),
        ),
    ],
)
def test_a_way_past_the_lease(host: dict[str, Any], way: tuple[str, str]) -> None:
    assert found(host) == [way]


@pytest.mark.parametrize(
    "host",
    [
        {},
        {
            "privileged": False,
            "cap_add": None,
            "devices": None,
            "binds": {},
            "restart_policy": {"Name": "no"},
        },
        {"cap_add": ["SYS_PTRACE", "CAP_IPC_LOCK"]},
        {"devices": ["/dev/fuse", "/dev/infiniband/uverbs0"]},
        {"ipc_mode": "private", "pid_mode": ""},
        {"security_opt": ["no-new-privileges:true", "seccomp=unconfined"]},
        bind("gpuspawner-home-ada"),
        bind("/srv/homes/ada"),
        {"binds": ["/srv/data:/data:ro", "home:/home/jovyan"]},
        bind("/srv/state-of-the-art"),
        bind("/devel"),
        bind("/dev/shm"),
        bind("/var/lib/course"),
        {"mounts": [{"Source": "data", "Target": "/d", "Type": "volume", "VolumeOptions": None}]},
    ],
)
def test_what_reaches_nothing(host: dict[str, Any]) -> None:
    assert found(host) == []


def test_the_sentence_names_the_setting_and_what_allows_it() -> None:
    way = Way("pid_mode", "host", "the processes of other labs")
    with pytest.raises(ConfigError) as refused:
        check([way], frozenset({"privileged"}))
    assert str(refused.value) == (
        "extra_host_config or extra_create_kwargs: pid_mode is host: this gives a lab access to the "
        "processes of other labs, regardless of its lease. Remove it, or, to allow it, set "
        'c.GpuLab.past_lease = ["pid_mode"]'
    )
    check([way], frozenset({"pid_mode"}))


def test_what_only_a_lease_may_give_is_left_out() -> None:
    create = {"runtime": "nvidia-cdi"}
    host = {
        "device_requests": [{"Count": -1}],
        "runtime": "nvidia",
        "devices": ["/dev/nvidia0", "/dev", "/dev/fuse"],
    }
    dropped = drop_devices(create, host, frozenset())
    assert (create, host, dropped) == (
        {},
        {"devices": ["/dev/fuse"]},
        ("device_requests", "runtime", "runtime", "devices"),
    )


def test_another_runtime_stays() -> None:
    create, host = {"runtime": "runsc"}, {"runtime": "runsc"}
    assert drop_devices(create, host, frozenset()) == ()
    assert (create, host) == ({"runtime": "runsc"}, {"runtime": "runsc"})
