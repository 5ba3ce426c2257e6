"""What every lab gets, whatever its tier: `c.GpuLab` to the values of core.limits."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Integer, List, TraitError, Unicode, validate
from traitlets.config import Configurable

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
"""What an admin may allow although a lab reaches past its lease with it."""


class GpuLab(Configurable):
    """Settings of every lab's container: `c.GpuLab.<name>`. A tier's own keys go before them."""

    limit_memory = Bool(
        True,
        config=True,
        help="""
        Whether a lab for which no `mem_limit` is set gets one all the same.

        Default: True: the machine's memory, less `host_reserve`, shared among the `seats`. A lab that needs
        more is ended, not the hub. `gpuspawner doctor` says the number. False: it may
        take all memory.
        Example: `c.GpuLab.limit_memory = False`
        """,
    )
    host_reserve = Unicode(
        "",
        config=True,
        help="""
        Memory that labs leave to the host: hub, broker, Docker, the system ("4G").

        Default: a tenth of the machine's memory, at least 2 GiB; never more than half of it.
        Example: `c.GpuLab.host_reserve = "8G"`
        """,
    )
    seats = Integer(
        0,
        min=0,
        config=True,
        help="""
        How many labs share the memory of the machine. Used for labs without a `mem_limit` of their own.

        Default: 0: `c.JupyterHub.active_server_limit` where that is set, else one for each two cores. More
        labs than seats may run; if memory runs out then, the kernel ends a process of a lab, not the hub.
        Example: `c.GpuLab.seats = 30`
        """,
    )
    shm = Unicode(
        "",
        config=True,
        help="""
        Size of a lab's /dev/shm, where PyTorch's data loaders pass their batches ("8G"). A tier may have its
        own, `shm`.

        Default: half of the lab's memory limit; without a limit, half of the machine's memory shared among
        the `seats`. It is not extra memory: what lies in /dev/shm counts in the lab's memory limit.
        Example: `c.GpuLab.shm = "8G"`
        """,
    )
    pids = Integer(
        4096,
        min=64,
        max=4_194_304,
        config=True,
        help="""
        How many processes and threads a lab may have at a time. A tier may have its own, `pids`.

        Default: 4096. At the limit a program can't start another one ("Resource temporarily unavailable");
        the notebook says why. The other labs go on.
        Example: `c.GpuLab.pids = 8192`
        """,
    )
    cpu_shares = Integer(
        256,
        min=2,
        max=262_144,
        config=True,
        help="""
        Weight of a lab where the CPU is short, relative to 1024 of the system's services. A tier may have
        its own, `cpu_shares`.

        Default: 256, a quarter of a service such as the hub. A lab that is alone still gets the whole CPU.
        Example: `c.GpuLab.cpu_shares = 512`
        """,
    )
    log_size = Unicode(
        "10M",
        config=True,
        help="""
        Size at which Docker begins a new file for the log of a lab's server; three files are kept.

        Default: 10 MiB, so 30 MiB for a lab at most. Used where Docker's logging driver is json-file, which
        keeps everything otherwise; other drivers are left as they are.
        Example: `c.GpuLab.log_size = "50M"`
        """,
    )
    home = Unicode(
        "",
        config=True,
        help="""
        Folder in the container that is the user's home, one of those at which volumes are mounted.

        Default: the volume whose name has the user's name in it (`{username}`) and that can be written to.
        An image that works in another folder gets HOME and its working directory there. Shared folders and
        read-only data are left as they are.
        Example: `c.GpuLab.home = "/home/jovyan"`
        """,
    )
    past_lease = List(
        Unicode(),
        config=True,
        help="""
        Settings of `extra_host_config`, `extra_create_kwargs` and `volumes` that are allowed although a lab
        can reach GPUs with them that aren't leased to it.

        Default: none. A start with one of these is refused, and the sentence names it: "user" (root),
        "privileged", "cap_add", "cap_drop", "security_opt" (without no-new-privileges),
        "device_cgroup_rules", "devices" (of GPUs; left out with a warning), "binds" and "mounts" (of /dev,
        Docker's socket, the broker's state), "volumes_from", "pid_mode", "ipc_mode", "restart_policy". Name
        here what you mean; `gpuspawner doctor` goes on naming it.
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
            raise TraitError(f'c.GpuLab.home is {proposal.value!r}: give a whole path, as in "/home/jovyan"')
        return str(proposal.value).rstrip("/")

    @validate("host_reserve", "shm", "log_size")
    def _validate_size(self, proposal: Any) -> str:
        try:
            if proposal.value:
                parse_bytes(proposal.value, f"c.GpuLab.{proposal.trait.name}")
        except ConfigError as error:
            raise TraitError(str(error)) from None
        return str(proposal.value)

    def rules(self, state_dir: str = "") -> LabRules:
        """The settings as values. `state_dir` is the broker's folder, which no lab may see."""
        return LabRules(
            limit_memory=self.limit_memory,
            reserve_bytes=parse_bytes(self.host_reserve) if self.host_reserve else None,
            seats=self.seats or self._active_servers(),
            shm_bytes=parse_bytes(self.shm) if self.shm else None,
            pids=self.pids,
            cpu_shares=self.cpu_shares,
            log_size_bytes=parse_bytes(self.log_size) if self.log_size else 10 << 20,
            past_lease=frozenset(self.past_lease),
            home=self.home,
            private=(state_dir,) if state_dir else (),
        )

    def _active_servers(self) -> int:
        limit = self.config.JupyterHub.get("active_server_limit", 0) if "JupyterHub" in self.config else 0
        return limit if isinstance(limit, int) and limit > 0 else 0
