"""Changes of one server by its user or by those who are responsible for them, as JSON.

DELETE api/leases/{id}          stop it, or leave the queue   {"reason"}
POST   api/leases/{id}/extend   {"seconds", "reason"}
POST   api/leases/{id}/cpu      go on without a GPU           {"reason"}
POST   api/leases/{id}/wake     in turns: want a GPU now      {"reason"}
POST   api/leases/{id}/yield    in turns: give up the turn    {"reason"}
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ValidationError

from ....core.errors import BadOption, Fault, Refusal
from ....protocol.messages import Message, sentence_of
from ....protocol.public import ExtendLease, LeaseReason
from ...leases.audit import Answer, Asked
from ..rules import read_request_id
from .actions import EXTEND, STOP, TURN, USE_CPU, Actions, Sender
from .base import ApiUser, Route, Site, refusal_of

_ID = "([0-9a-f]{32})"


def lease_routes(site: Site, actions: Actions) -> list[Route]:
    """The routes below the service's prefix."""
    wanted = {"site": site, "actions": actions}
    return [
        (f"{site.prefix}api/leases/{_ID}", LeaseStop, wanted),
        (f"{site.prefix}api/leases/{_ID}/extend", LeaseExtend, wanted),
        (f"{site.prefix}api/leases/{_ID}/cpu", LeaseCpu, wanted),
        (f"{site.prefix}api/leases/{_ID}/wake", LeaseWake, wanted),
        (f"{site.prefix}api/leases/{_ID}/yield", LeaseYield, wanted),
    ]


class LeaseWrite(ApiUser):
    """One change of one lease."""

    site: Site
    actions: Actions
    action: ClassVar[str]
    """What the audit log calls it."""

    def initialize(self, site: Site, actions: Actions) -> None:
        self.site, self.actions = site, actions
        self.know(site)

    async def carry_out(self, lease_id: str, sender: Sender, body: Message) -> Answer:
        """Does it. Raises Refusal or Fault."""
        raise NotImplementedError

    async def run(self, lease_id: str, kind: type[LeaseReason]) -> None:
        """Reads the body, does it, and answers."""
        try:
            answer = await self._answer(lease_id, kind)
        except (Refusal, Fault) as error:
            self.show_refusal(refusal_of(error))
        else:
            self.set_status(answer.status)
            self.finish(answer.body)

    async def _answer(self, lease_id: str, kind: type[LeaseReason]) -> Answer:
        """Does it, or gives the answer of the same request before. Raises Refusal or Fault."""
        try:
            body = kind.model_validate_json(self.request.body or b"{}")
        except ValidationError as error:
            raise BadOption(sentence_of(error, kind)) from None
        request_id, viewer = read_request_id(self), self.viewer
        about = {"lease": lease_id}
        asked = Asked(viewer.author, viewer.via, self.action, "", (), about, request_id=request_id)
        again = await self.actions.audit.repeated(asked)
        if again is not None:
            return again
        sender = Sender(viewer, self.token(), viewer.via, request_id, body.reason)
        return await self.carry_out(lease_id, sender, body)


class LeaseStop(LeaseWrite):
    """DELETE api/leases/{id}"""

    action = STOP

    async def carry_out(self, lease_id: str, sender: Sender, body: Message) -> Answer:
        return await self.actions.stop(lease_id, sender)

    async def delete(self, lease_id: str) -> None:
        """200 when it has stopped, 202 while it stops."""
        await self.run(lease_id, LeaseReason)


class LeaseExtend(LeaseWrite):
    """POST api/leases/{id}/extend"""

    action = EXTEND

    async def carry_out(self, lease_id: str, sender: Sender, body: Message) -> Answer:
        assert isinstance(body, ExtendLease)
        return await self.actions.extend(lease_id, body.seconds, sender)

    async def post(self, lease_id: str) -> None:
        """200 with the seconds by which it was extended."""
        await self.run(lease_id, ExtendLease)


class LeaseCpu(LeaseWrite):
    """POST api/leases/{id}/cpu"""

    action = USE_CPU

    async def carry_out(self, lease_id: str, sender: Sender, body: Message) -> Answer:
        return await self.actions.go_on_with_cpu(lease_id, sender)

    async def post(self, lease_id: str) -> None:
        """202: it stops, or starts with CPU."""
        await self.run(lease_id, LeaseReason)


class LeaseWake(LeaseWrite):
    """POST api/leases/{id}/wake"""

    turn: ClassVar[str] = "wake"
    action = TURN.format("wake")

    async def carry_out(self, lease_id: str, sender: Sender, body: Message) -> Answer:
        return await self.actions.take_turn(lease_id, self.turn, sender)

    async def post(self, lease_id: str) -> None:
        """200 with where its turn is; 409 if it has none."""
        await self.run(lease_id, LeaseReason)


class LeaseYield(LeaseWake):
    """POST api/leases/{id}/yield"""

    turn = "yield"
    action = TURN.format("yield")
