"""The handlers of a class: its roster with what can be done, and the list of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tornado.web import HTTPError

from ....core.errors import BadOption
from ....protocol.classes import ClassMessage, DoneDocument, ExtendServers, RosterDocument
from ...api.public.base import Route, Site
from ...api.public.rules import MoreRoutes
from ..base import PageSite
from ..events import page_routes
from ..readings import Readings
from ..writing import Question, Said, Writing
from .base import MINUTES, ClassBase, Teaching
from .page import ClassPage, class_page
from .schedule import ScheduleHandler


@dataclass(frozen=True, slots=True)
class ClassList:
    """The classes that the viewer may see."""

    simulated: bool
    classes: tuple[tuple[str, str], ...]


class ListHandler(ClassBase):
    """`GET classes/`: the classes of the viewer; one alone is shown at once."""

    template = "classes.html"
    live_template = "classes_live.html"

    async def content(self, *path: str) -> ClassList:
        groups = self.tools.classes.groups(self.hub_name, self.viewer.read)
        addresses = tuple((group, f"{self.site.prefix}classes/{quote(group, safe='')}/") for group in groups)
        return ClassList(self.tools.simulated, addresses)

    async def get(self, *path: str) -> None:
        page = await self.content() if self.viewer.read else None
        if page is not None and len(page.classes) == 1:
            self.redirect(page.classes[0][1])  # type: ignore[no-untyped-call]
            return
        await super().get(*path)

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        raise HTTPError(400, "this page has no form")


class RosterPage(ClassBase):
    """`GET POST classes/{group}/`: who has what, and what can be done with it."""

    template = "class.html"
    live_template = "class_live.html"

    async def content(self, *path: str) -> ClassPage:
        group = path[0]
        roster = await self._roster(group)
        return class_page(
            roster, self.scene(), may_write=self.may_write(group), simulated=self.tools.simulated
        )

    def reads(self, readings: Readings) -> Mapping[str, str]:
        """Those of the class."""
        group = self.path_args[0]
        return readings.of_group(group)

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        group = path[0]
        match what:
            case "stop":
                return await self._stop(group)
            case "extend":
                return await self._extend(group)
            case "message":
                return await self._tell(group)
            case "message-back":
                return await self._untell(group)
            case _:
                raise HTTPError(400, "no such change: %s", what)

    async def _stop(self, group: str) -> Said | Question:
        chosen = self._chosen()
        if not self.confirmed:
            return await self._ask_back(group, chosen)
        writing = self._writing(group, "stop servers", {"lease_ids": chosen, "everybody": chosen is None})

        async def stop() -> Said:
            return _said(
                await self.tools.classes.stop(self.hub_name, group, chosen, self.viewer.author), "stopped"
            )

        return await self.write_down(writing, stop)

    async def _extend(self, group: str) -> Said:
        chosen, minutes = self._chosen(), self._minutes()
        asked = ExtendServers(
            author=self.viewer.author,
            lease_ids=chosen or (),
            everybody=chosen is None,
            seconds=minutes * 60.0,
        )
        document = {"lease_ids": chosen, "everybody": chosen is None, "seconds": minutes * 60}

        async def extend() -> Said:
            done = await self.tools.classes.extend(self.hub_name, group, chosen, asked)
            return _said(done, "extended")

        return await self.write_down(self._writing(group, "extend servers", document), extend)

    async def _tell(self, group: str) -> Said:
        text, minutes = " ".join(self.get_body_argument("text", "").split()), self._minutes()
        if not 0 < len(text) <= 255 or not text.isprintable():
            raise BadOption("Write a message of up to 255 characters.")
        asked = ClassMessage(author=self.viewer.author, text=text, minutes=minutes)

        async def tell() -> Said:
            await self.tools.classes.tell(group, asked)
            return Said("The class reads your message now: in notebooks with a GPU, and on the GPU page.")

        return await self.write_down(
            self._writing(group, "message", {"text": text, "minutes": minutes}), tell
        )

    async def _untell(self, group: str) -> Said:
        async def untell() -> Said:
            await self.tools.classes.untell(group, self.viewer.author)
            return Said("The message is gone.")

        return await self.write_down(self._writing(group, "take message back", {}), untell)

    async def _ask_back(self, group: str, chosen: Sequence[str] | None) -> Question:
        roster = await self._roster(group)
        rows = [row for row in roster.members if row.lease_id and (chosen is None or row.lease_id in chosen)]
        if not rows:
            raise BadOption("No server was chosen: mark at least one." if chosen == () else _NOTHING)
        names = tuple(f"{row.user}, server “{row.server}”" if row.server else row.user for row in rows)
        servers = "1 server" if len(rows) == 1 else f"{len(rows)} servers"
        values: dict[str, str | list[str]] = {"do": "stop", "lease": list(chosen or ())}
        if chosen is None:
            values = {"do": "stop", "everybody": "yes"}
        text = (
            "What runs there ends, and what is not saved to a file is lost. Files stay, and the GPUs go to "
            "those who wait."
        )
        return Question(f"Stop {servers} of {group}?", text, f"Stop {servers}", values, names)

    def _chosen(self) -> tuple[str, ...] | None:
        """The marked leases; None for all of the class."""
        if self.get_body_argument("everybody", ""):
            return None
        return tuple(dict.fromkeys(self.get_body_arguments("lease")))

    def _minutes(self) -> int:
        sent = self.get_body_argument("minutes", "")
        if sent not in map(str, MINUTES):
            raise BadOption(f"Choose one of {', '.join(map(str, MINUTES))} minutes.")
        return int(sent)

    def _writing(self, group: str, action: str, document: dict[str, Any]) -> Writing:
        return Writing(self.viewer.reserve, action, f"group:{group}", (group,), document)

    async def _roster(self, group: str) -> RosterDocument:
        return await self.tools.classes.roster(self.hub_name, group)


_NOTHING = "Nobody of this class has a server with a GPU."


def _said(done: DoneDocument, verb: str) -> Said:
    """For example "12 servers stopped. ada: …". Raises BadOption if it is none: nothing was done then."""
    if not done.done:
        raise BadOption(" ".join([f"No server was {verb}.", *done.refused]))
    servers = "1 server" if done.done == 1 else f"{done.done} servers"
    return Said(" ".join([f"{servers} {verb}.", *done.refused]), good=not done.refused)


def class_pages(tools: Teaching) -> MoreRoutes:
    """The routes of the classes' pages, for `make_handlers`."""

    def routes(site: Site) -> list[Route]:
        assert isinstance(site, PageSite)
        one = "classes/([^/]+)/"
        return [
            *page_routes(site, ListHandler, tools=tools),
            *page_routes(site, RosterPage, one, tools=tools),
            *page_routes(site, ScheduleHandler, f"{one}sessions/", tools=tools),
        ]

    return routes
