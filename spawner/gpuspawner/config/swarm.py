"""How labs run on several machines: `c.GpuSwarm`. Only with `c.GpuSite.engine = "swarm"`."""

from __future__ import annotations

from ipaddress import IPv4Network

from traitlets import Bool, Integer, TraitError, Unicode, validate
from traitlets.config import Configurable

LANE_BITS = 28
"""The subnet of one lab's network has 14 addresses: lab, gateway, and Swarm's own one on each machine."""
MOST_LABS = 4096
"""The gateway has a port for each of them."""


class GpuSwarm(Configurable):
    """Settings of a site with several machines: `c.GpuSwarm.<name>`."""

    subnet = Unicode(
        "10.214.0.0/16",
        config=True,
        help="""
        Addresses of the labs' own overlay networks; each lab gets a network of 16.

        Default: 10.214.0.0/16, enough for 4096 labs at once (never more). No other network of these machines
        may overlap with it. Two hubs in one Swarm need two. Example: `c.GpuSwarm.subnet = "10.50.0.0/20"`
        """,
    )
    encrypted = Bool(
        True,
        config=True,
        help="""
        Whether traffic between machines is encrypted (IPsec, by Docker's overlay networks).

        Default: True. Each machine's kernel needs ESP (Linux: CONFIG_INET_ESP) and its firewall must let IP
        protocol 50 and UDP port 4789 through. False only if the network between the machines is your own:
        otherwise everybody in it can read what users type. Example: `c.GpuSwarm.encrypted = False`
        """,
    )
    gateway_image = Unicode(
        "",
        config=True,
        help="""
        Image of the gateway, the container through which hub and labs reach each other. It needs only
        Python 3.8 or newer.

        Default: the image of the labs (`c.GpuDockerSpawner.image`), which has Python.
        Example: `c.GpuSwarm.gateway_image = "python:3.13-slim"`
        """,
    )
    heartbeat = Integer(
        60,
        min=5,
        config=True,
        help="""
        So often, in seconds, each machine tells Swarm that it is there.

        Default: 60. Swarm takes a machine for lost after two or three missing heartbeats, and ends its labs
        when it is back. So labs survive a break of the network of at least this long; with Docker's own
        default of 5 s, one of 10 s ended them. Example: `c.GpuSwarm.heartbeat = 120`
        """,
    )
    shared_homes = Bool(
        False,
        config=True,
        help="""
        Whether the home volumes are the same on every machine, because their driver or its options lead to
        a file server.

        Default: False: a home is a folder of one machine, and its user's servers start only there. True: they
        start anywhere. Wrongly True, a home comes up empty on another machine.
        Example: `c.GpuSwarm.shared_homes = True`
        """,
    )

    @validate("subnet")
    def _check_subnet(self, proposal: dict[str, str]) -> str:
        try:
            network = IPv4Network(proposal["value"])
        except ValueError as error:
            raise TraitError(
                f'c.GpuSwarm.subnet is {proposal["value"]!r} ({error}): write it like "10.214.0.0/16"'
            ) from error
        if network.prefixlen > LANE_BITS:
            raise TraitError(
                f"c.GpuSwarm.subnet {network} is too small: it needs a /{LANE_BITS} for each lab"
            )
        return str(network)
