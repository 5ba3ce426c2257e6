"""What every lab gets in every tier: `c.GpuLab`, converted to the types of core.limits."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Dict, Integer, List, TraitError, Unicode, validate
from traitlets.config import Config, Configurable

from ..core.errors import ConfigError
from ..core.limits import LabRules
from ..core.units import parse_bytes

PAST_LEASE = (
    "user",
    "privileged",
    "cap_add",
    "cap_drop",
    "security_opt",
    "device_cgroup_rules",
    "devices",
    "binds",
    "mounts",
    "volumes_from",
    "pid_mode",
    "ipc_mode",
    "restart_policy",
)
"""Settings that let a lab bypass its lease; an admin may allow them."""


class GpuLab(Configurable):
    """Settings of every lab's container: `c.GpuLab.<name>`. A tier's own keys take precedence."""

    limit_memory = Bool(
        True,
        config=True,
        help="""
        Whether a lab without a configured `mem_limit` gets a default one.

        Default: True: the machine's memory, less `host_reserve`, shared among the `seats`. If a lab
        needs more, the kernel ends one of its processes, not the hub. `gpuspawner doctor` shows the number.
        False: a lab may use all memory.
        Example: `c.GpuLab.limit_memory = False`
        """,
    )
    host_reserve = Unicode(
        "",
        config=True,
        help="""
        Memory reserved for the host: hub, broker, Docker, the system ("4G").

        Default: a tenth of the machine's memory, at least 2 GiB; never more than half of it.
        Example: `c.GpuLab.host_reserve = "8G"`
        """,
    )
    seats = Integer(
        0,
        min=0,
        config=True,
        help="""
        How many labs share the memory of the machine. Used for labs without their own `mem_limit`.

        Default: 0: `c.JupyterHub.active_server_limit` if it is set (who waits for a GPU doesn't count), else
        one for each two cores. More labs than seats may run; if they use up the memory, the kernel ends a
        process of a lab, not the hub.
        Example: `c.GpuLab.seats = 30`
        """,
    )
    shm = Unicode(
        "",
        config=True,
        help="""
        Size of a lab's /dev/shm, where PyTorch's data loaders pass their batches ("8G"). A tier may set
        its own `shm`.

        Default: half of the lab's memory limit; without a limit, half of the machine's memory shared among
        the `seats`. It is not extra memory: files in /dev/shm count towards the lab's memory limit.
        Example: `c.GpuLab.shm = "8G"`
        """,
    )
    pids = Integer(
        4096,
        min=64,
        max=4_194_304,
        config=True,
        help="""
        How many processes and threads a lab may have at a time. A tier may set its own `pids`.

        Default: 4096. At the limit a program can't start another one ("Resource temporarily unavailable");
        the notebook says why. The other labs are not affected.
        Example: `c.GpuLab.pids = 8192`
        """,
    )
    cpu_shares = Integer(
        256,
        min=2,
        max=262_144,
        config=True,
        help="""
        CPU weight of a lab when the CPU is busy, relative to 1024 for the system's services. A tier may set
        its own `cpu_shares`.

        Default: 256, a quarter of a service such as the hub. A lab that runs alone still gets the whole CPU.
        Example: `c.GpuLab.cpu_shares = 512`
        """,
    )
    log_size = Unicode(
        "10M",
        config=True,
        help="""
        Size at which Docker starts a new log file for a lab's server; it keeps three files.

        Default: 10 MiB, so at most 30 MiB per lab. Used if Docker's logging driver is json-file, which would
        otherwise keep everything; other drivers are not changed.
        Example: `c.GpuLab.log_size = "50M"`
        """,
    )
    home = Unicode(
        "",
        config=True,
        help="""
        The folder in the container that is the user's home; a volume must be mounted there.

        Default: the writable volume whose name contains the user's name (`{username}`).
        If an image works in another folder, its HOME and working directory are set to this one. Shared
        folders and read-only data are not changed.
        Example: `c.GpuLab.home = "/home/jovyan"`
        """,
    )
    home_size = Unicode(
        "",
        config=True,
        help="""
        How large a user's home may become ("20G"), where Docker's volume driver can limit it.

        Default: none, so a home is as large as the disk. Counts for homes that are created from now on, and
        is given to the volume driver with `home_options`. Docker's own driver needs XFS with project quotas
        (mount option `pquota`) in its folder; where it can't, the home is created without a limit and the
        hub's log says so. A program that writes more reads "No space left on device" or "Disk quota
        exceeded".
        Example: `c.GpuLab.home_size = "20G"`
        """,
    )
    home_options = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        default_value={"size": "{size}"},
        config=True,
        help="""
        The options with which Docker's volume driver creates a home of `home_size`. `{size}` is the size in
        bytes, `{home}` the name of the volume.

        Default: `{"size": "{size}"}`, as Docker's own driver and most others call it. Without `home_size`
        this has no effect. If the driver refuses the options, the home is created without them, and the
        hub's log says so.
        Example: `c.GpuLab.home_options = {"type": "ext4", "device": "/srv/homes/{home}.img", "o": "loop"}`
        """,
    )
    past_lease = List(
        Unicode(),
        config=True,
        help="""
        Settings of `extra_host_config`, `extra_create_kwargs` and `volumes` that are allowed although they
        let a lab reach GPUs that aren't leased to it.

        Default: none. A start with one of these is refused with a message that names it: "user" (root),
        "privileged", "cap_add", "cap_drop", "security_opt" (without no-new-privileges),
        "device_cgroup_rules", "devices" (of GPUs; left out with a warning), "binds" and "mounts" (of /dev,
        Docker's socket, the broker's state), "volumes_from", "pid_mode", "ipc_mode", "restart_policy". List
        here the ones that you want to allow; `gpuspawner doctor` still reports them.
        Example: `c.GpuLab.past_lease = ["cap_add"]`
        """,
    )

    @validate("past_lease")
    def _validate_past_lease(self, proposal: Any) -> list[str]:
        unknown = sorted(set(proposal.value) - set(PAST_LEASE))
        if unknown:
            raise TraitError(f"c.GpuLab.past_lease has {unknown[0]!r}: use {', '.join(PAST_LEASE)}")
        return list(proposal.value)

    @validate("home")
    def _validate_home(self, proposal: Any) -> str:
        if proposal.value and not proposal.value.startswith("/"):
            raise TraitError(
                f'c.GpuLab.home is {proposal.value!r}: give an absolute path, like "/home/jovyan"'
            )
        return str(proposal.value).rstrip("/")

    @validate("host_reserve", "shm", "log_size", "home_size")
    def _validate_size(self, proposal: Any) -> str:
        try:
            if proposal.value:
                parse_bytes(proposal.value, f"c.GpuLab.{proposal.trait.name}")
        except ConfigError as error:
            raise TraitError(str(error)) from None
        return str(proposal.value)

    def rules(self, state_dir: str = "") -> LabRules:
        """The settings as values. `state_dir` is the broker's folder, which no lab may mount."""
        return LabRules(
            limit_memory=self.limit_memory,
            reserve_bytes=parse_bytes(self.host_reserve) if self.host_reserve else None,
            seats=self.seats or active_servers(self.config),
            shm_bytes=parse_bytes(self.shm) if self.shm else None,
            pids=self.pids,
            cpu_shares=self.cpu_shares,
            log_size_bytes=parse_bytes(self.log_size) if self.log_size else 10 << 20,
            past_lease=frozenset(self.past_lease),
            home=self.home,
            home_size_bytes=parse_bytes(self.home_size) if self.home_size else None,
            home_options=tuple(self.home_options.items()),
            private=(state_dir,) if state_dir else (),
        )


def active_servers(config: Config) -> int:
    """How many servers the hub may run at a time, `c.JupyterHub.active_server_limit`; 0 without a limit."""
    limit = config.JupyterHub.get("active_server_limit", 0) if "JupyterHub" in config else 0
    return limit if isinstance(limit, int) and limit > 0 else 0
