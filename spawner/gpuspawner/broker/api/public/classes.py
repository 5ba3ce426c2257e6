"""A class behind the hub's login: `custom:gpu:read` of the group to read, `custom:gpu:reserve` to write.

GET         api/classes                   the groups that the sender may see, as far as they are known here
GET         api/classes/{group}           the roster
POST        api/classes/{group}/stop      ends servers of its members
POST        api/classes/{group}/extend    makes their sessions longer
POST DELETE api/classes/{group}/message   a notice to all of them
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ....protocol.classes import (
    ClassesDocument,
    ClassMessage,
    DoneDocument,
    ExtendServers,
    MemberDocument,
    MessageRemoval,
    StopServers,
)
from ....protocol.messages import Message
from ....protocol.rules import Authored
from ...leases.endings import Endings
from ...leases.rule_service import RuleService
from ..access import READ_SCOPE, RESERVE_SCOPE
from ..classes import Classes, picked_by
from ..paging import Part, cut
from ..query import read_page
from ..rules import Change, answering
from ..socket import Site as Socket
from .base import Route, Site
from .rules import MoreRoutes, PublicRule, lacks

C = TypeVar("C", bound=Authored)


@dataclass(frozen=True, slots=True)
class ClassTools:
    """What the handlers of classes use."""

    socket: Socket
    rules: RuleService
    endings: Endings
    classes: Classes


class ClassHandler(PublicRule):
    """One about a class. The author of a change is the user that the hub names."""

    needs = RESERVE_SCOPE
    classes: Classes

    def initialize(self, pages: Site, tools: ClassTools) -> None:  # type: ignore[override]
        super().initialize(pages, site=tools.socket, rules=tools.rules, endings=tools.endings)
        self.classes = tools.classes
        self.hub_name = pages.hub or "hub"

    async def change(
        self, group: str, kind: type[C], action: str, do: Callable[[C], Awaitable[Message | None]]
    ) -> None:
        """Reads the body and makes the change, through the audit log."""
        asked = self.read(kind)
        change = Change(action, f"group:{group}", (group,), asked)
        await self.make(change, lambda: do(asked))


class ClassesHandler(ClassHandler):
    """`GET api/classes`"""

    @answering
    async def get(self) -> None:
        """Their names."""
        groups = self.classes.groups(self.hub_name, self.viewer.read)
        found = cut([Part("groups", groups, str)], read_page(self))
        self.send(ClassesDocument(groups=found.lists["groups"], next=found.next))


class RosterHandler(ClassHandler):
    """`GET api/classes/{group}`"""

    @answering
    async def get(self, group: str) -> None:
        """The roster."""
        if not self.viewer.read.covers((group,)):
            raise lacks(READ_SCOPE, group)
        page, roster = read_page(self), await self.classes.roster(self.hub_name, group)
        found = cut([Part("members", roster.members, _member_key)], page)
        self.send(roster.model_copy(update={"members": found.lists["members"], "next": found.next}))


def _member_key(member: MemberDocument) -> str:
    return json.dumps([member.user, member.server])


class StopHandler(ClassHandler):
    """`POST api/classes/{group}/stop`"""

    @answering
    async def post(self, group: str) -> None:
        """How many ended."""

        async def stop(asked: StopServers) -> DoneDocument:
            picked, token = picked_by(asked), self.token()
            return await self.classes.stop(self.hub_name, group, picked, asked.author, token)

        await self.change(group, StopServers, "stop servers", stop)


class ExtendHandler(ClassHandler):
    """`POST api/classes/{group}/extend`"""

    @answering
    async def post(self, group: str) -> None:
        """How many became longer."""

        async def extend(asked: ExtendServers) -> DoneDocument:
            picked = picked_by(asked)
            return await self.classes.extend(self.hub_name, group, picked, asked.seconds, asked.author)

        await self.change(group, ExtendServers, "extend servers", extend)


class MessageHandler(ClassHandler):
    """`POST DELETE api/classes/{group}/message`"""

    @answering
    async def post(self, group: str) -> None:
        """204 once it is shown."""
        await self.change(group, ClassMessage, "message", lambda asked: self.classes.tell(group, asked))

    @answering
    async def delete(self, group: str) -> None:
        """204 once it is gone."""
        await self.change(
            group, MessageRemoval, "take message back", lambda asked: self.classes.untell(group, asked.author)
        )


def class_routes(tools: ClassTools) -> MoreRoutes:
    """The routes of classes, for `make_handlers`."""

    def routes(pages: Site) -> list[Route]:
        wanted: dict[str, Any] = {"pages": pages, "tools": tools}
        one = f"{pages.prefix}api/classes/([^/]+)"
        return [
            (f"{pages.prefix}api/classes", ClassesHandler, wanted),
            (one, RosterHandler, wanted),
            (f"{one}/stop", StopHandler, wanted),
            (f"{one}/extend", ExtendHandler, wanted),
            (f"{one}/message", MessageHandler, wanted),
        ]

    return routes
