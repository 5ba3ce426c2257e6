"""Homes on one machine each, in a replay: who comes again gets a GPU there, or waits for one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ....core.model import Lease
from ....core.want import Want
from ..book import Book
from .simulate import SimulatedSite


class ReplayHomes:
    """The homes of one replay. A user's first session decides where the home is.

    `known` are the machines of which that is believed: a recorded home on another machine counts as new.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._known = frozenset(known)
        self._machine_of: dict[tuple[str, str], str] = {}

    def over(self, site: SimulatedSite) -> SimulatedSite:
        """The site with these homes, beside what it has already."""

        def want(lease: Lease) -> Want:
            return self._want(lease, site.want(lease))

        def look(book: Book, lease: Lease, now_seconds: float) -> None:
            site.look(book, lease, now_seconds)
            if lease.state.holds_devices:
                self._machine_of.setdefault((lease.hub, lease.user), lease.node)

        return replace(site, want=want, look=look)

    def _want(self, lease: Lease, want: Want) -> Want:
        recorded = want.node if want.node in self._known else None
        return replace(want, node=self._machine_of.get((lease.hub, lease.user), recorded))


class SharedHomes:
    """Homes that are on every machine: nobody waits for one, also those for whom that was recorded."""

    def over(self, site: SimulatedSite) -> SimulatedSite:
        """The site with these homes, beside what it has already."""
        return replace(site, want=lambda lease: replace(site.want(lease), node=None))
