"""The settings of GpuDockerSpawner: those that DockerSpawner lacks, and defaults that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dockerspawner import DockerSpawner
from traitlets import Any as AnyTrait
from traitlets import Bool, Float, Integer, TraitError, Unicode, default, validate

from ..core.errors import ConfigError
from ..core.image_reference import allow_images, parse_pinned
from ..core.text import escape_name
from .network import gateway_of


class SpawnerSettings(DockerSpawner):
    """Settings, defaults and their checks; `GpuDockerSpawner` is what uses them."""

    hub_id = Unicode(
        "hub",
        config=True,
        help="""
        Name of this hub, for the broker and in the labels of its containers.

        Default: "hub". Two hubs that share a broker or a Docker Engine need two names (and two
        `prefix`): a hub doesn't touch containers with another name. Don't change it: this hub no longer
        finds containers that run under an old name. Example: `c.GpuDockerSpawner.hub_id = "course-a"`
        """,
    )

    container_user = Unicode(
        "1000:100",
        config=True,
        help="""
        User and group id of the processes in the container, "uid:gid".

        Default: 1000:100, as in the lab images. Never 0: root in a container can stop a GPU's
        MPS daemon, even without capabilities. Example: `c.GpuDockerSpawner.container_user = "1001:100"`
        """,
    )
    remove = Bool(
        True,
        config=True,
        help="""
        Whether a stopped server's container is removed.

        Default: True, and no other value is valid: a container that is kept would start again with
        devices that another user may hold by then. Files that must last belong in the home, a volume.

        Example: none; don't change it.
        """,
    )
    starts_at_once = Integer(
        0,
        min=0,
        config=True,
        help="""
        How many servers may start at the same time; the others wait in a queue.

        Default: 0, one more than this machine has cores. A starting server uses a whole core for
        seconds: if thirty start at once, everybody waits for the last one; with a limit, most are ready much
        sooner. A slow server frees its slot after 10 s. Example, for Docker on another machine with
        32 cores: `c.GpuDockerSpawner.starts_at_once = 33`
        """,
    )

    subnet = Unicode(
        "10.213.0.0/20",
        config=True,
        help="""
        Addresses of the labs' own network (`network_name`), in CIDR notation; the host has the first one.

        Default: 10.213.0.0/20, 4,092 servers. Used when the network is created; Docker refuses
        a subnet that overlaps another network. Example: `c.GpuDockerSpawner.subnet = "172.30.0.0/16"`
        """,
    )

    block_metadata = Bool(
        True,
        config=True,
        help="""
        Whether labs are kept from a cloud's metadata service (169.254.169.254), which gives the machine's own
        keys to any program that asks.

        Default: True. The hub's service `network` adds rules to the machine's firewall (iptables) if it is
        root; else `gpuspawner doctor` names the command that does. A program in a lab then reads "Connection
        refused". False: nothing is added, and rules that are there stay.
        Example: `c.GpuDockerSpawner.block_metadata = False`
        """,
    )

    allowed_images = AnyTrait(
        {},
        config=True,
        help="""
        Images that users may choose besides the tier's own: a list, a dict of shown names to images, or "*".

        An entry with `*` is a pattern, and users may then type a name. A pattern needs the full registry and
        a tag (`:*` for any) or a digest (`@sha256:*`); each `*` stands for characters within one part. An
        image without tag and digest matches no pattern. "*" alone allows every image. A callable gets the
        spawner and returns one of these. An image needs `jupyterhub-singleuser`; the lease adds NVIDIA's
        driver libraries.

        Default: none; each tier has one image. Other images are refused with a message that lists the allowed
        ones.
        Example::

            c.GpuDockerSpawner.allowed_images = [
                "gpuspawner/lab-torch:0.1.0",
                "quay.io/jupyter/*:2026-*",
                "nvcr.io/nvidia/pytorch@sha256:*",
            ]
        """,
    )
    pull_silence = Float(
        300.0,
        min=1.0,
        config=True,
        help="""
        Seconds without data after which the pull of an image is cancelled.

        Default: 5 minutes, longer than Docker needs to verify a big layer. The start ends with a message; the
        layers that have arrived are kept. Example: `c.GpuDockerSpawner.pull_silence = 60`
        """,
    )
    pulls_at_once = Integer(
        6,
        min=1,
        config=True,
        help="""
        How many images are pulled at the same time; further pulls wait, and their users read why.

        Default: 6; the Docker Engine downloads three layers at a time in any case. If nobody waits
        for a pull, it is cancelled as soon as another one needs its slot.
        Example: `c.GpuDockerSpawner.pulls_at_once = 2`
        """,
    )
    pulls_by_user = Integer(
        2,
        min=1,
        config=True,
        help="""
        How many of these pulls one user may have; a further one waits until one of the user's pulls has
        ended.

        Default: 2, so that one user can't keep the others from pulling. A pull counts for the first user who
        waits for it, or, if nobody waits, for the last user who left. Example:
        `c.GpuDockerSpawner.pulls_by_user = 1`
        """,
    )
    pull_unattended = Float(
        300.0,
        min=0.0,
        config=True,
        help="""
        Seconds after which a pull is cancelled if nobody waits for it any more, because its users stopped or
        cancelled their start.

        Default: 5 minutes: a user who comes back in time joins the pull. Layers that have arrived are kept.
        Example: `c.GpuDockerSpawner.pull_unattended = 60`
        """,
    )
    pull_at_start = Bool(
        True,
        config=True,
        help="""
        Whether the images of `image`, of the tiers and of the list `allowed_images` (not what matches its
        patterns) are pulled when the hub starts, as `pull_policy` says: those that are missing
        ("ifnotpresent"), all ("always"), none.

        Default: True, so that the first user of a day doesn't wait for gigabytes. A service of
        the hub, `python -m gpuspawner.tools.prepull`, pulls in the background: the hub doesn't wait for it,
        and a start that needs an image joins its pull. A pull that fails is a warning in the log.
        Example: `c.GpuDockerSpawner.pull_at_start = False`
        """,
    )

    @default("escape")
    def _escape_default(self) -> Callable[[str], str]:
        return escape_name

    @default("prefix")
    def _prefix_default(self) -> str:
        return "gpuspawner"

    @default("network_name")
    def _network_name_default(self) -> str:
        return "gpuspawner"

    @default("use_internal_ip")
    def _use_internal_ip_default(self) -> bool:
        return True

    @default("volumes")
    def _volumes_default(self) -> dict[str, str]:
        return {"{prefix}-home-{username}": "/home/jovyan"}

    @default("http_timeout")
    def _http_timeout_default(self) -> int:
        # Thirty servers that start at once on two cores take more than the hub's 30 s.
        return 120

    @default("poll_interval")
    def _poll_interval_default(self) -> int:
        # The proxy keeps the route of an ended server until the hub polls; a poll is one call to Docker.
        return 10

    @validate("remove")
    def _validate_remove(self, proposal: Any) -> bool:
        if not proposal.value:
            raise TraitError(
                "c.GpuDockerSpawner.remove must stay True: a stopped container that is kept would start "
                "again with devices that another user may hold by then"
            )
        return True

    @validate("subnet")
    def _validate_subnet(self, proposal: Any) -> str:
        try:
            gateway_of(proposal.value)
        except ConfigError as error:
            raise TraitError(f"c.GpuDockerSpawner.subnet: {error}") from error
        return str(proposal.value)

    @validate("image")
    def _validate_image(self, proposal: Any) -> str:
        try:
            parse_pinned(proposal.value)
        except ValueError as problem:
            raise TraitError(f"c.GpuDockerSpawner.image is {proposal.value!r}: {problem}") from None
        return str(proposal.value)

    @validate("allowed_images")
    def _validate_allowed_images(self, proposal: Any) -> Any:
        """DockerSpawner's check, which also checks patterns. Raises TraitError with the remedy."""
        if not callable(proposal["value"]):
            try:
                allow_images(proposal["value"])
            except ConfigError as error:
                raise TraitError(str(error)) from error
        return proposal["value"]

    @validate("container_user")
    def _validate_container_user(self, proposal: Any) -> str:
        uid, _, gid = proposal.value.partition(":")
        if not (uid.isdigit() and int(uid) > 0 and gid.isdigit()):
            raise TraitError(
                f"c.GpuDockerSpawner.container_user is {proposal.value!r}: give numbers, "
                'as in "1000:100", and never 0 as the user'
            )
        return str(proposal.value)
