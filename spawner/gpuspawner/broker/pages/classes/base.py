"""What the pages of one class share: who may see it, its name, and the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ....core.units import Clock, utc_now
from ...api.access import Viewer
from ...api.classes import Classes
from ...leases.rule_service import RuleService
from ..base import PageSite
from ..readings import Readings
from ..writing import WritingPage
from .page import Scene

MINUTES = (15, 30, 60, 120)
"""By how much sessions can be extended, and how long a message may stand, on the page."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """What the pages of classes use."""

    classes: Classes
    rules: RuleService
    simulated: bool = False
    clock: Clock = utc_now


class ClassBase(WritingPage):
    """What the pages of one class share: who may see it, its name, and the clock."""

    address = "classes/"
    refresh_seconds = 10.0
    tools: Teaching

    def initialize(self, site: PageSite, tools: Teaching) -> None:  # type: ignore[override]
        super().initialize(site)
        self.tools, self.audit = tools, tools.rules.audit

    def may_see(self, viewer: Viewer) -> bool:
        """The page of a class, with all that belongs to it, is for those whose scope covers the class."""
        return viewer.read.covers(self.path_args[:1]) if self.path_args else bool(viewer.read)

    @property
    def hub_name(self) -> str:
        """The name of this hub in the leases."""
        return self.site.hub or "hub"

    def scene(self) -> Scene:
        """The present time on the site's clock."""
        known = self.tools.rules.rulebook.known
        return Scene(self.tools.clock(), known.timezone, {tier.name: tier.title for tier in known.tiers})

    def reads(self, readings: Readings) -> Mapping[str, str]:
        """No meter moves here by itself."""
        return {}

    def may_write(self, group: str) -> bool:
        """Whether the viewer may change something of the class."""
        return self.viewer.reserve.covers_each((group,))

    def namespace(self) -> dict[str, Any]:
        """With the addresses of the class's pages."""
        group = self.path_args[0] if self.path_args else ""
        return {
            **super().namespace(),
            "class_url": f"{self.site.prefix}classes/{quote(group, safe='')}/",
            "minutes": MINUTES,
        }
