"""The settings that hub and broker share; both read them from the same `jupyterhub_config.py`."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from traitlets import Bool, Dict, Enum, Float, Integer, List, Unicode, default
from traitlets.config import Configurable

from ..core.errors import ConfigError
from ..core.model import Pool, Tier
from ..core.quota import Quota
from .idle import IdleRules, parse_idle
from .lines import line_of
from .nodes import check_labels, parse_node_labels
from .pools import check_tiers, parse_pools
from .quotas import Known, check_timezone, parse_quotas
from .tiers import DEFAULT_TIERS, parse_tiers


class GpuSite(Configurable):
    """Settings of the whole installation: `c.GpuSite.<name>` in `jupyterhub_config.py`."""

    tiers = List(
        Dict(),
        help="""
        What users can pick on the spawn page, in this order. The one with `"default": True` is preselected
        and used if nothing is chosen; without it, the first one. With one tier and no image to choose,
        servers start without the spawn page's form.

        Each is a dict: `name` (lower case; also what the admin page shows), `title`, and
        optionally `description`, `devices` (how many GPUs; 0, the default, is a CPU server), `model`
        (part of the GPU's name, "H100"), `image`, `mem_limit` ("16G", main memory), `cpu_limit` (cores),
        `queue_timeout` (seconds that its servers wait for a device; default: `c.GpuSite.queue_timeout`),
        `shm` ("8G", size of /dev/shm, part of `mem_limit`), `pids` (maximum number of processes),
        `cpu_shares` (weight when the CPU is busy). `c.GpuLab` sets the defaults for the last three. Memory
        and CPU limits of `group_overrides` or of a hook override the tier's; the tier's override those of
        `c.Spawner`.

        Of several machines, `node_label` ("fast-disk") lets only those serve the tier that have this label in
        `c.GpuSite.node_labels`.

        `mode` says how its devices are shared: "whole" (the default), "slice", "mig" or "turns"; pools of
        that mode serve it, or only the pool named in `pool`. A slice has `memory` ("8G" of GPU memory;
        default: the pool's slice) and, with MPS, `compute_percent` (default: the pool's). A MIG tier may set
        `mig_profile` ("1g.10gb"). In turns, `memory` is promised to who is awake (default: the whole GPU less
        a reserve of 3 GiB). For these three modes, the default of `devices` is 1.

        Default: `cpu` and `gpu` (one whole device). Other names are refused. If no pool can serve a tier
        of slices or MIG instances, the broker doesn't start and says why. A tier of whole GPUs that this
        machine doesn't have is shown, but can't be picked.

        Example::

            c.GpuSite.tiers = [
                {"name": "cpu", "title": "CPU"},
                {"name": "slice", "title": "A slice of a GPU", "mode": "slice", "memory": "8G"},
                {"name": "gpu", "title": "One GPU", "devices": 1},
                {"name": "pair", "title": "Two H100", "devices": 2, "model": "H100"},
            ]
        """,
    ).tag(config=True)

    @default("tiers")
    def _tiers_default(self) -> list[dict[str, Any]]:
        return [dict(tier) for tier in DEFAULT_TIERS]

    pools = List(
        Dict(),
        help="""
        Which devices are shared in which mode. A device can be in one pool only.

        Each is a dict: `name`; `mode` ("whole", the default, "slice", "mig" or "turns"); `devices`: "all"
        (the default: all whole GPUs or MIG instances, as the mode needs, that no other pool names), a list
        of UUIDs, or {"model": "H100", "count": 2}. A slice pool also has `slices` (the number of equal slices
        of each device) or `sizes` (a list; leases of these sizes in any mix that fits), and may have
        `compute_percent` (the most compute of the device that one slice may use; default:
        min(100, 200/n)), `mps` (default: used if it is installed; True: the broker refuses to start
        without it; False: plain time-slicing) and `manage_compute_mode` (False: the GPU's compute mode
        is not changed; True: EXCLUSIVE_PROCESS while the pool is in use, so that only MPS reaches it).
        New slices go to the device with the fewest slices. Of several machines, a pool has its devices on
        each, or only on those that `nodes` (["gpu-b"]) names: `count` counts on each by itself.
        docs/admins.md says what each mode limits, and what enforces the limit.

        A pool of turns may have `seats` (how many leases it admits; default: as many as main memory holds
        asleep beside their labs), `sleep_memory` ("24G", main memory kept for each of them; default: the
        largest `memory` of its tiers), and in seconds `pause_after` (default 10: a turn of a
        running program that doesn't use the GPU ends when somebody waits; at a notebook's prompt it ends at
        once), `min_turn` (1), `max_turn` (60: while others wait) and `sleep_after` (900: idle memory moves
        to main memory). `unsleepable` says what becomes of a program whose memory can't leave
        the GPU: "pause" (the default: it stays there) or "end" (after a warning). docs/turns.md says more.

        Default: one pool of all whole GPUs and one of all MIG instances. If MIG splits all GPUs, tiers
        in mode "whole" get an instance. The broker doesn't start with pools that can't work.

        Example::

            c.GpuSite.pools = [
                {"name": "class", "mode": "slice", "devices": {"count": 1}, "slices": 8},
                {"name": "whole"},
            ]
        """,
    ).tag(config=True)

    quotas = List(
        Dict(),
        help="""
        What users and groups may have. What nobody limits is not limited.

        Each is a dict for one `group` of the hub (for each of its members), for one `user`, or, with neither,
        for everybody. The keys, all of them optional: `tiers` (a list: these may be used), `leases` (servers
        with a GPU at once), `devices` (whole GPUs and MIG instances at once), `slices` (at once);
        `gpu_hours` in a `period`: "day", "week" (from Monday; the default), "week from sunday" or
        "2026-10-12 to 2027-02-12", in a `timezone` ("Europe/Berlin"; left out, `c.GpuSite.timezone`);
        `session_hours` (a server with a GPU ends after so long), `extend_hours` (by how much in all its user
        may make that longer), `minimum_hours` (for so long nobody's GPU is asked back for others: neither
        because it is idle nor for a lab session); `weight` (the share in the queue; 2 is twice that of 1),
        `priority` (higher is served first), and for a group `guaranteed_devices` (what all its members
        together are entitled to).
        "unlimited" lifts a limit.

        A user's own value counts, else the most generous of their groups', else everybody's. The
        `properties` of a hub group may have the same keys; where both say something, this setting counts.
        `gpuspawner quota` changes all of them at run time, and a restart keeps that.

        Default: none, so nothing is limited. Who asks for more reads what they have, what their limit is,
        and what to do. A quota that can't work keeps hub and broker from starting, with the line to change.

        Example::

            c.GpuSite.quotas = [
                {"devices": 1, "tiers": ["cpu", "gpu"]},
                {"group": "students", "devices": 1, "gpu_hours": 10, "session_hours": 4},
                {"group": "phd", "devices": 2, "priority": 10},
            ]
        """,
    ).tag(config=True)

    node_labels = Dict(
        help="""
        Labels of machines, for sites with several of them: tiers ask for one with `node_label`.

        A dict with the names of machines, as `gpuspawner node list` shows them; each has a list of labels
        (lower case). A tier whose label no machine has keeps hub and broker from starting.

        Default: none. Example: `c.GpuSite.node_labels = {"gpu-b": ["fast-disk", "infiniband"]}`
        """,
    ).tag(config=True)

    engine = Enum(
        ("docker", "swarm"),
        default_value="docker",
        help="""
        What runs the labs: "docker", as containers of this machine, or "swarm", as services of the Docker
        Swarm whose manager this machine's engine is, on the machine that their lease is on
        (docs/several-machines.md).

        Default: "docker": one machine needs nothing else. Change it while no lab runs: the hub doesn't
        find labs of the other kind. Example: `c.GpuSite.engine = "swarm"`
        """,
    ).tag(config=True)

    timezone = Unicode(
        "UTC",
        help="""
        The time zone of quotas and lab sessions that name none, by its IANA name.

        Default: UTC, because a hub's users may be anywhere; every sentence with a time says its zone.
        Example: `c.GpuSite.timezone = "Europe/Berlin"`
        """,
    ).tag(config=True)

    idle = Dict(
        help="""
        When a server whose GPU nobody uses is warned, and what becomes of it.

        Idle is a server of which no process uses the GPU while no kernel computes. Keys: `first_warning` and
        `second_warning` (seconds of idleness), `after` (seconds of idleness until the action, at least five
        minutes after the second warning), `action` and `only_when_waiting` (True: only while somebody waits
        for such a GPU). `action` is "stop", "sleep" (in turns, what the server has on a GPU moves to main
        memory, and it keeps its seat; servers in other modes are stopped), or "nothing": warnings only.
        Whether the GPU of a MIG instance or a simulated one is used can't be measured: there the kernels
        alone count, and the warning says so. A shared GPU counts as used by everybody on it while it is busy.

        Default: warned after 15 and 55 minutes, stopped after 60, only when somebody waits.
        Example: `c.GpuSite.idle = {"after": 7200, "second_warning": 6900, "only_when_waiting": False}`
        """,
    ).tag(config=True)

    state_dir = Unicode(
        help="""
        Folder of the ledger, the socket and the files that the broker writes for each lease.

        Default: `$GPUSPAWNER_STATE_DIR`, else `/var/lib/gpuspawner`. It must survive restarts: the
        broker rebuilds a lost ledger from the running containers, but the history is lost.
        Example: `c.GpuSite.state_dir = "/srv/gpuspawner"`
        """,
    ).tag(config=True)

    @default("state_dir")
    def _state_dir_default(self) -> str:
        return os.environ.get("GPUSPAWNER_STATE_DIR", "/var/lib/gpuspawner")

    socket_path = Unicode(
        help="""
        Unix socket on which the broker answers the spawner. Its mode is 0600: only the hub's own user can
        open it.

        Default: `broker.sock` in `state_dir`.
        Example: `c.GpuSite.socket_path = "/run/gpuspawner/broker.sock"`
        """,
    ).tag(config=True)

    @default("socket_path")
    def _socket_path_default(self) -> str:
        return str(Path(self.state_dir) / "broker.sock")

    inventory = Enum(
        ("auto", "nvml", "simulated"),
        default_value="auto",
        help="""
        Where the list of devices comes from: `nvml` (real GPUs), `simulated` (none; containers run on the
        CPU), `auto`.

        Default `auto`: real ones if NVML finds any, else simulated ones. Pages, status
        and notebooks say "simulated" wherever a simulated GPU is shown.
        Example: `c.GpuSite.inventory = "nvml"` refuses to start on a machine without GPUs.
        """,
    ).tag(config=True)

    simulated_devices = Unicode(
        "2 x H100 80GB",
        help="""
        The simulated GPUs: "count x model memory", several kinds separated by commas. With "MIG" and a
        profile after it, that many MIG instances ("7 x H100 80GB MIG 1g.10gb"). Several machines, each with
        its name, are separated by semicolons, with `inventory = "simulated"`: the first one is this machine,
        and the containers of all of them run here. A line "b network cut" in the file `simulated_faults` of
        the state folder makes machine b unreachable.

        Default: two, enough to see the queue with three users.
        Example: `c.GpuSite.simulated_devices = "4 x H100 80GB, 2 x A100 40GB"`, or
        `"a: 2 x H100 80GB; b: 4 x A100 40GB"`
        """,
    ).tag(config=True)

    injection = Enum(
        ("auto", "cdi", "nvidia", "none"),
        default_value="auto",
        help="""
        How a container gets its leased devices: `cdi` (Docker Engine 25 or newer with a CDI
        spec), `nvidia` (nvidia-container-toolkit's hook), `none` (simulated devices only).

        Default `auto`: what a test of the Docker Engine finds, CDI first; `gpuspawner doctor` shows it.
        Example: `c.GpuSite.injection = "cdi"`
        """,
    ).tag(config=True)

    fair_share = Bool(
        True,
        help="""
        Whether those who have had less of the GPUs are served before those who have had more.

        Default: on. Groups come first by their weight and use, then users by theirs; use of a week ago counts
        half. Off: first come, first served, among requests of the same priority.
        Example: `c.GpuSite.fair_share = False`
        """,
    ).tag(config=True)

    fair_share_half_life_days = Float(
        7.0,
        min=0.01,
        help="""
        Days after which use of the GPUs counts half in the fair share.

        Default: 7, so that a busy week is forgotten within a month. Longer is fairer over a term, shorter
        forgives sooner.
        Example: `c.GpuSite.fair_share_half_life_days = 30`
        """,
    ).tag(config=True)

    queue_patience = Float(
        86400.0,
        min=1.0,
        help="""
        Seconds after which a waiting request is passed by nobody any more: it is served by arrival.

        Default: 86400, a day. It bounds the wait of people who had much, or whose priority is low: so long,
        and then one longest session for each request that came before. Users see their place move up.
        Example: `c.GpuSite.queue_patience = 4 * 3600`
        """,
    ).tag(config=True)

    queue_timeout = Float(
        900.0,
        min=1.0,
        help="""
        Seconds that a spawn waits for a device. After that it ends with a message that offers a CPU server.

        Default: 15 minutes, longer than most people wait in front of a page. The spawner's
        `start_timeout` is raised to cover it.
        Example: `c.GpuSite.queue_timeout = 300`
        """,
    ).tag(config=True)

    prestart_at_once = Integer(
        4,
        min=1,
        help="""
        How many servers of a lab session's members start at a time before it begins (a session's `prestart`).

        Default: 4. The next one starts as soon as one of them runs, or after two minutes. More at a time are
        ready sooner and load the disk and Docker more; too few for the time, and the last ones start late.
        Example: `c.GpuSite.prestart_at_once = 8`
        """,
    ).tag(config=True)

    def longest_queue_timeout(self) -> float:
        """The longest that a spawn of any tier waits for a device, in seconds. Broken tiers are left out."""
        try:
            tiers = self.parsed_tiers()
        except ConfigError:
            return self.queue_timeout
        return max(self.queue_timeout, *(tier.queue_timeout_seconds or 0.0 for tier in tiers))

    def parsed_tiers(self) -> tuple[Tier, ...]:
        """The tiers as values. Raises ConfigError, with the remedy, for an invalid setting."""
        self._check_names()
        tiers = parse_tiers(self.tiers)
        check_tiers(tiers, self.parsed_pools())
        check_labels(tiers, self.parsed_node_labels())
        return tiers

    def parsed_node_labels(self) -> dict[str, frozenset[str]]:
        """The labels of machines, by name. Raises ConfigError."""
        self._check_names()
        return parse_node_labels(self.node_labels)

    def parsed_pools(self) -> tuple[Pool, ...]:
        """The pools as values; empty if the setting is empty. Raises ConfigError with the remedy."""
        self._check_names()
        return parse_pools(self.pools)

    def known(self) -> Known:
        """What quotas may name. Raises ConfigError for tiers or a time zone that can't be used."""
        check_timezone(self.timezone, "c.GpuSite.timezone", 'c.GpuSite.timezone = "{}"')
        return Known(self.parsed_tiers(), self._groups(), self.timezone)

    def parsed_quotas(self) -> tuple[Quota, ...]:
        """The quotas as values. Raises ConfigError with the line to change for what can't work."""
        return parse_quotas(self.quotas, self.known(), self._place_of)

    def parsed_idle(self) -> IdleRules:
        """What becomes of idle servers. Raises ConfigError."""
        self._check_names()
        return parse_idle(self.idle)

    def _groups(self) -> frozenset[str] | None:
        """The hub's groups, as far as this file can know them: None if a login service manages them."""
        groups = self.config.get("JupyterHub", {}).get("load_groups", {})
        sections = [values for name, values in self.config.items() if name.endswith("Authenticator")]
        if not groups or any(section.get("manage_groups") for section in sections):
            return None
        return frozenset(groups)

    def _place_of(self, number: int) -> str:
        """File and line of an entry of `quotas`, "jupyterhub_config.py:12: "; "" if that can't be told."""
        parent = self.parent
        for path in (getattr(parent, "config_file", ""), *getattr(parent, "loaded_config_files", ())[::-1]):
            try:
                line = line_of(Path(path).read_text(encoding="utf-8"), "GpuSite", "quotas", number)
            except (OSError, UnicodeDecodeError):
                continue
            if line is not None:
                return f"{path}:{line}: "
        return ""

    def _check_names(self) -> None:
        """Raises ConfigError for an unknown setting, which traitlets ignores with a warning."""
        known = self.trait_names(config=True)
        for name in self.config.get("GpuSite", {}):
            if name not in known:
                close = get_close_matches(name, known, 1) or [", ".join(sorted(known))]
                raise ConfigError(f"There is no setting c.GpuSite.{name}: use {close[0]}")
