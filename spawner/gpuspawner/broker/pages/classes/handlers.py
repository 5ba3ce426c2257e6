"""The handlers of a class: its roster with what can be done, and the list of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, unquote

from tornado.web import HTTPError

from ....core.errors import BadOption
from ....core.text import isolated, printable
from ....protocol.classes import ClassMessage, DoneDocument, MemberDocument, RosterDocument
from ...api.classes import Picked
from ...api.public.base import Route, Site
from ...api.public.rules import MoreRoutes
from ..base import PageSite
from ..events import page_routes
from ..readings import Readings
from ..writing import Question, Said, Writing
from .base import MINUTES, ClassBase, Teaching
from .page import ClassPage, class_page, has_server, mark_of
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
        picked = self._picked()
        if not self.confirmed:
            return await self._ask_back(group, picked)
        author, token = self.viewer.author, self.hub_auth.get_token(self)

        async def stop() -> Said:
            done = await self.tools.classes.stop(self.hub_name, group, picked, author, token)
            return _said(done, "stopped")

        writing = self._writing(group, "stop servers", asdict(picked))

        return await self.write_down(writing, stop)

    async def _extend(self, group: str) -> Said:
        picked, minutes = self._picked(), self._minutes()
        author, seconds = self.viewer.author, minutes * 60.0

        async def extend() -> Said:
            done = await self.tools.classes.extend(self.hub_name, group, picked, seconds, author)
            return _said(done, "extended")

        document = {**asdict(picked), "seconds": seconds}

        return await self.write_down(self._writing(group, "extend servers", document), extend)

    async def _tell(self, group: str) -> Said:
        text, minutes = " ".join(self.get_body_argument("text", "").split()), self._minutes()
        if not 0 < len(text) <= 255 or not printable(text):
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

    async def _ask_back(self, group: str, picked: Picked) -> Question:
        roster = await self._roster(group)
        rows = [row for row in roster.members if _is_picked(row, picked)]
        if not rows:
            marked = picked.everybody or picked.lease_ids or picked.servers
            raise BadOption(_NOTHING if marked else "No server was chosen: mark at least one.")
        servers = "1 server" if len(rows) == 1 else f"{len(rows)} servers"
        values: dict[str, str | list[str]] = {"do": "stop", "everybody": "yes"}
        if not picked.everybody:
            marks = [mark_of(*each) for each in picked.servers]
            values = {"do": "stop", "lease": list(picked.lease_ids), "server": marks}
        text = (
            "What runs there ends, and what is not saved to a file is lost. Files stay, and the GPUs go to "
            "those who wait."
        )
        return Question(
            f"Stop {servers} of {isolated(group)}?", text, f"Stop {servers}", values, tuple(map(_name, rows))
        )

    def _picked(self) -> Picked:
        """The marked servers, or all of the class. Raises BadOption for a mark that no page has made."""
        if self.get_body_argument("everybody", ""):
            return Picked(everybody=True)
        leases, marks = self.get_body_arguments("lease"), self.get_body_arguments("server")
        return Picked(tuple(dict.fromkeys(leases)), tuple(dict.fromkeys(map(_marked, marks))))

    def _minutes(self) -> int:
        sent = self.get_body_argument("minutes", "")
        if sent not in map(str, MINUTES):
            raise BadOption(f"Choose one of {', '.join(map(str, MINUTES))} minutes.")
        return int(sent)

    def _writing(self, group: str, action: str, document: dict[str, Any]) -> Writing:
        return Writing(self.viewer.reserve, action, f"group:{group}", (group,), document)

    async def _roster(self, group: str) -> RosterDocument:
        return await self.tools.classes.roster(self.hub_name, group)


_NOTHING = "What you marked has ended meanwhile, or nobody of this class has a server."


def _marked(mark: str) -> tuple[str, str]:
    """User and server of `mark_of`. Raises BadOption."""
    user, slash, server = mark.partition("/")
    if not user or not slash:
        raise BadOption("A mark is USER/SERVER, as on the page: reload it.")
    return unquote(user), unquote(server)


def _is_picked(row: MemberDocument, picked: Picked) -> bool:
    if not has_server(row):
        return False
    if picked.everybody:
        return True
    if row.lease_id is not None:
        return row.lease_id in picked.lease_ids
    return (row.user, row.server) in picked.servers


def _name(row: MemberDocument) -> str:
    """For example "ada, server “train”"; with "on CPU" if it has no GPU."""
    user = isolated(row.user)
    name = f"{user}, server “{isolated(row.server)}”" if row.server else user
    return name if row.lease_id else f"{name}, on CPU"


def _said(done: DoneDocument, verb: str) -> Said:
    """For example "12 servers stopped. ada: …"."""
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
