"""What the admin's pages share: their tools, who may see them, and the links between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from tornado.web import HTTPError

from ....core.disk import Disk
from ....core.machine import MachineView
from ....core.units import Clock, utc_now
from ....protocol.pulls import ImageDocument
from ...api.access import Viewer
from ...decide.snapshot import Snapshot
from ...leases.allocator import Allocator
from ...leases.endings import Ender
from ...leases.rule_service import RuleService
from ...ledger import EndedProcess, Ledger
from ...observe.checkup import Checkup
from ..base import PageSite
from ..readings import Readings as LeaseReadings
from ..table import Wish, wish_of
from ..writing import Question, Said, Writing, WritingPage
from .map import Readings

PAGES = (
    ("", "Devices"),
    ("servers/", "Servers"),
    ("timeline/", "Timeline"),
    ("rules/", "Quotas and sessions"),
    ("log/", "Audit log"),
    ("guard/", "Guard"),
    ("machine/", "Machine"),
)
"""Each page's address below `admin/`, and what its link says."""


@dataclass(frozen=True, slots=True)
class AdminTools:
    """What the admin's pages use.

    `fault` says why the GPUs can't be listed now ("" if they can), `unknown` which leases the hub doesn't
    know.
    """

    allocator: Allocator
    service: Ender
    rules: RuleService
    ledger: Ledger
    readings: Callable[[], Readings]
    fault: Callable[[], str]
    ended: Callable[[int], Awaitable[tuple[EndedProcess, ...]]]
    disks: Callable[[], Sequence[Disk]]
    unknown: Callable[[], Collection[str]]
    checkup: Checkup
    images: Callable[[], Sequence[ImageDocument]] = tuple
    machines: Callable[[Snapshot], Sequence[MachineView]] = lambda snapshot: ()
    simulated: bool = False
    clock: Clock = utc_now


class AdminPage(WritingPage):
    """One of the admin's pages. `page` is its address below `admin/`."""

    address = "admin/"
    page: ClassVar[str]
    tools: AdminTools

    def initialize(self, site: PageSite, tools: AdminTools) -> None:  # type: ignore[override]
        super().initialize(site)
        self.tools, self.audit = tools, tools.rules.audit

    def may_see(self, viewer: Viewer) -> bool:
        return viewer.sees_all

    def reads(self, readings: LeaseReadings) -> Mapping[str, str]:
        """No meter moves here by itself: nobody needs the readings of thousands of leases."""
        return {}

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        raise HTTPError(400, "no such change: %s", what)

    @property
    def zone(self) -> ZoneInfo:
        """The site's time zone."""
        return ZoneInfo(self.tools.rules.rulebook.known.timezone)

    def title_of(self, tier: str) -> str:
        """What the spawn page calls the tier."""
        known = self.tools.rules.rulebook.known.tiers
        return next((each.title for each in known if each.name == tier), tier)

    @property
    def may_write(self) -> bool:
        """Whether the viewer may change everything."""
        return self.viewer.admin.everybody

    def wish(self) -> Wish:
        """What the address asks of the page's table."""
        return wish_of({name: self.get_query_argument(name) for name in self.request.query_arguments})

    def writing(self, action: str, subject: str, document: Mapping[str, Any]) -> Writing:
        """A change that concerns no single group."""
        return Writing(self.viewer.admin, action, subject, (), document)

    def namespace(self) -> dict[str, Any]:
        """With the links between the pages."""
        links = [
            {"title": title, "href": f"{self.site.prefix}admin/{page}", "here": page == self.page}
            for page, title in PAGES
        ]
        return {**super().namespace(), "links": links, "may_write": self.may_write}
