"""What somebody may do with a running server: stop it, extend it, go on with CPU, take or end a turn.

Pages and API call the same methods. Each goes through the audit log. A user may do it with their own servers,
and a holder of `custom:gpu:reserve` with those of the members; whether the hub stops a server is decided by
the hub, by the sender's own token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ....core.errors import LeaseConflict, NotAllowed
from ....core.model import Lease, Tier
from ...leases.audit import Answer, Asked, Audit
from ...leases.rule_service import RuleService
from ..access import Viewer

STOP, EXTEND, USE_CPU, TURN = "stop", "extend", "go on with CPU", "turn: {}"
"""What the audit log calls the actions."""
NOT_THERE = "This server has ended, or it isn't yours."
NOT_YOURS = "You may see this server, but not change it: that needs custom:gpu:reserve."


class Servers(Protocol):
    """Stops and starts servers through the hub; see `HubServers`."""

    async def stop(self, token: str, user: str, server: str) -> bool:
        """True if it has stopped, False if it is stopping."""

    async def start(self, token: str, user: str, server: str, options: dict[str, Any]) -> None:
        """Begins to start it."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who asks: by which way, with which token of the hub, and with which id of the request."""

    viewer: Viewer
    token: str
    via: str
    request_id: str | None = None
    reason: str = ""


class Actions:
    """One a service, on its event loop.

    `find` returns a living lease by its id. `turn` does "wake" or "yield" for a lease, returns where it is
    then, and raises a refusal if it has no turns; None if no pool is used in turns.
    """

    def __init__(
        self,
        rules: RuleService,
        servers: Servers,
        find: Callable[[str], Lease | None],
        tiers: tuple[Tier, ...],
        turn: Callable[[str, str], dict[str, Any]] | None = None,
    ) -> None:
        self._rules, self._servers, self._find, self._turn = rules, servers, find, turn
        self.cpu_tier = next((tier.name for tier in tiers if not tier.needs_gpu), None)

    @property
    def audit(self) -> Audit:
        """Where each action is recorded."""
        return self._rules.audit

    async def stop(self, lease_id: str, sender: Sender) -> Answer:
        """Stops the server, or takes it out of the queue. Idempotent: one that is stopping stays so."""
        lease = await self._allowed(STOP, lease_id, sender)

        async def stop() -> Answer:
            if await self._servers.stop(sender.token, lease.user, lease.server):
                return _said("Stopped. Your GPU was given back." if lease.device_uuids else "Left the queue.")
            return _said("Stopping. Your GPU is given back in a moment.", 202)

        return await self._do(STOP, lease, sender, {}, stop)

    async def stop_server(self, user: str, server: str, sender: Sender) -> bool:
        """Stops a server by its name, also one without a lease. False if it is still stopping.

        Whether the sender may is decided by the hub. Raises NotAllowed, LeaseConflict or HubFault.
        """
        stopped: list[bool] = []

        async def stop() -> Answer:
            stopped.append(await self._servers.stop(sender.token, user, server))
            return _said("Stopped." if stopped[0] else "Stopping.")

        asked = Asked(
            author=sender.viewer.author,
            via=sender.via,
            action=STOP,
            subject=f"user:{user}",
            groups=(),
            document={"server": server},
            reason=sender.reason,
        )
        await self.audit.write(asked, stop)
        return stopped[0]

    async def extend(self, lease_id: str, seconds: float, sender: Sender) -> Answer:
        """Makes the session longer, as far as the quota allows and if nobody waits."""
        lease = await self._allowed(EXTEND, lease_id, sender)

        async def extend() -> Answer:
            more = await self._rules.extend(lease_id, seconds, sender.viewer.author)
            return _said(f"Extended by {more / 60:.0f} minutes.", 200, seconds=more)

        return await self._do(EXTEND, lease, sender, {"seconds": seconds}, extend)

    async def go_on_with_cpu(self, lease_id: str, sender: Sender) -> Answer:
        """Stops the server and starts it again without a GPU: its programs end, its files stay."""
        lease, tier = await self._allowed(USE_CPU, lease_id, sender), self.cpu_tier
        if tier is None:
            raise LeaseConflict("This hub has no tier without a GPU: stop the server instead.")

        async def restart() -> Answer:
            if not await self._servers.stop(sender.token, lease.user, lease.server):
                return _said("Stopping. When it has stopped, start it again with CPU.", 202)
            await self._servers.start(sender.token, lease.user, lease.server, {"profile": tier})
            return _said("Your GPU was given back. Your server starts with CPU.", 202)

        return await self._do(USE_CPU, lease, sender, {}, restart)

    async def take_turn(self, lease_id: str, action: str, sender: Sender) -> Answer:
        """`action` "wake": the server wants the GPU now; "yield": its turn ends."""
        lease, turn = await self._allowed(TURN.format(action), lease_id, sender), self._turn
        if turn is None:
            raise LeaseConflict("This server's GPU isn't shared in turns: it has its GPU all the time.")

        async def act() -> Answer:
            woken, now = action == "wake", turn(lease_id, action)
            sentence = "Your server gets a GPU when it is its turn." if woken else "Your turn ends."
            return _said(sentence, turn=now)

        return await self._do(TURN.format(action), lease, sender, {}, act)

    async def _allowed(self, action: str, lease_id: str, sender: Sender) -> Lease:
        """Raises LeaseConflict for a lease that isn't there, or that the sender may not even see.

        Raises NotAllowed for one that they may only see. Both are recorded.
        """
        lease, viewer = self._find(lease_id), sender.viewer
        if lease is None:
            raise LeaseConflict(NOT_THERE)
        entry = {"user": lease.user, "hub": lease.hub, "groups": lease.groups}
        if viewer.changes(entry):
            return lease
        refused = NotAllowed(NOT_YOURS) if viewer.sees(entry) else LeaseConflict(NOT_THERE)
        await self.audit.refuse(_asked(action, lease, sender, {}), refused.message)
        raise refused

    async def _do(
        self, action: str, lease: Lease, sender: Sender, document: dict[str, Any], do: Callable[[], Any]
    ) -> Answer:
        return await self.audit.write(_asked(action, lease, sender, document), do)


def _asked(action: str, lease: Lease, sender: Sender, document: dict[str, Any]) -> Asked:
    return Asked(
        author=sender.viewer.author,
        via=sender.via,
        action=action,
        subject=f"user:{lease.user}",
        groups=lease.groups,
        document={"lease": lease.id, "server": lease.server, **document},
        reason=sender.reason,
        request_id=sender.request_id,
    )


def _said(sentence: str, status: int = 200, **more: Any) -> Answer:
    return Answer(status, json.dumps({"message": sentence, **more}), sentence)
