"""Settings that Docker or we refuse, another one for each user: functions that are asked at each start."""

import os

c = get_config()  # noqa: F821
homes = os.environ["GPUSPAWNER_TEST_HOMES"]

HOST = {
    "mount": {"mounts": [{"Type": "bind", "Source": "/no/such/folder", "Target": "/x"}]},
    "device": {"devices": ["/dev/no-such-device"]},
    "runtime": {"runtime": "no-such-runtime"},
    "key": {"shared_memory": "1g"},
    "long": {"binds": {"a" * 300: {"bind": "/x", "mode": "rw"}}},
    "privileged": {"privileged": True},
    "dev": {"binds": ["/dev:/dev"]},
    "nvidia": {"binds": ["/dev/nvidia0:/dev/nvidia0"]},
    "rules": {"device_cgroup_rules": ["c 195:* rwm"]},
    "caps": {"cap_add": ["SYS_ADMIN"]},
}


def host(spawner):
    """What this user's container has besides ours."""
    return HOST.get(spawner.user.name, {})


def create(spawner):
    """The same for the other dictionary."""
    return {"user": "0:0"} if spawner.user.name == "root" else {}


c.GpuDockerSpawner.extra_host_config = host
c.GpuDockerSpawner.extra_create_kwargs = create
c.GpuDockerSpawner.volumes = {f"{homes}/{{username}}": "/home/jovyan"}  # Docker makes it, as root
c.GpuDockerSpawner.environment = {
    "CUDA_VISIBLE_DEVICES": "0",
    "CUDA_LAUNCH_BLOCKING": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
}
