"""Assigns the devices of a node to pools, at the start and when devices appear later."""

from __future__ import annotations

from collections.abc import Sequence

from ...config.site import GpuSite
from ...core.model import Device, Tier
from ...node.api import NodeFacts
from ..decide.place.host import host_of
from ..decide.place.pooling import Pooling, make_pooling


class Sharing:
    """One a machine. `others`: there are other machines, which may have what this one lacks."""

    def __init__(self, site: GpuSite, tiers: Sequence[Tier], *, others: bool = False) -> None:
        self._site, self._tiers, self._others = site, tiers, others
        self._offered: tuple[Device, ...] = ()
        self.pooling = Pooling((), {})
        """The devices that were added, and how each is shared."""

    def find(self, facts: NodeFacts) -> Pooling:
        """The devices and pools at the start. Raises ConfigError for settings that can't work."""
        self._offered = facts.devices
        self.pooling = self._pool(facts, facts.devices)
        return self.pooling

    def find_late(self, facts: NodeFacts) -> Pooling | None:
        """Also the devices that could not be read before; None if there are none. Raises ConfigError.

        Devices that were added stay in their pools.
        """
        known = {device.uuid for device in self._offered}
        late = tuple(device for device in facts.devices if device.uuid not in known)
        if not late:
            return None
        pooling = self.pooling.with_late(self._pool(facts, (*self._offered, *late)))
        self._offered += tuple(device for device in late if device.uuid not in pooling.terms)  # in no pool
        return pooling if len(pooling.devices) > len(self.pooling.devices) else None

    def took(self, pooling: Pooling) -> None:
        """Called when the devices of `find_late` were added."""
        self.pooling = pooling
        known = {device.uuid for device in self._offered}
        self._offered += tuple(device for device in pooling.devices if device.uuid not in known)

    def _pool(self, facts: NodeFacts, devices: Sequence[Device]) -> Pooling:
        labels = self._site.parsed_node_labels().get(facts.name, frozenset())
        host = host_of(facts, others=self._others, labels=labels)
        return make_pooling(self._site.parsed_pools(), self._tiers, devices, host)
