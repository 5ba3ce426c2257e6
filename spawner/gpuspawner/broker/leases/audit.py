"""The audit log: `Audit.write` makes every change that somebody asks for, and records it before and after.

What somebody has no right to is recorded, too: `Audit.refuse`.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ...core.errors import Fault, LedgerFault, Refusal, RequestConflict
from ...core.units import Clock, utc_now
from ..ledger import Ledger, Result, Write


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asks to change; see `ledger.Write` for the fields."""

    author: str
    via: str
    action: str
    subject: str
    groups: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sender of a write gets: HTTP's status and a JSON text; None without a body.

    `sentence` says in words what was done, for the page and the audit log. `write_id` is the write in the
    audit log.
    """

    status: int = 204
    body: str | None = None
    sentence: str = ""
    write_id: str = ""


class Audit:
    """One a broker, on its event loop."""

    def __init__(self, ledger: Ledger, log: logging.Logger | None = None, clock: Clock = utc_now) -> None:
        self._ledger = ledger
        self._log = log or logging.getLogger(__name__)
        self._clock = clock
        self._running: set[tuple[str, str]] = set()
        self.on_end: Callable[[Result], None] = lambda result: None
        """Called with the result of each change; must not fail."""

    async def write(self, asked: Asked, do: Callable[[], Awaitable[Answer]]) -> Answer:
        """Calls `do` and records who asked for it, and the result.

        A request with the id of one that was done before changes nothing and gets the same answer.
        Raises what `do` raises, RequestConflict if the result of that earlier request is not known or it
        asked for something else, LedgerFault if the request can't be recorded: then nothing was done.
        """
        key = (asked.author, asked.request_id or "")
        if asked.request_id is None:
            return await self._carry_out(asked, do)
        if key in self._running:
            raise RequestConflict("The same request is being carried out: wait for its answer.")
        self._running.add(key)
        try:
            earlier = await self._ledger.audited_request(asked.author, asked.request_id)
            if earlier is None:
                return await self._carry_out(asked, do)
            _check_same(earlier, asked)
            return _again(earlier)
        finally:
            self._running.discard(key)

    async def repeated(self, asked: Asked) -> Answer | None:
        """The answer to the same request, if it was done before; None if it wasn't, or has no id.

        For what can't be judged a second time because the first one ended it: `asked` may know less than
        then (no subject, a part of the document). Raises LedgerFault.
        """
        if asked.request_id is None:
            return None
        earlier = await self._ledger.audited_request(asked.author, asked.request_id)
        if earlier is None or earlier.result is not Result.DONE or earlier.action != asked.action:
            return None
        known = json.loads(json.dumps(asked.document))
        same = all(earlier.document.get(key) == value for key, value in known.items())
        return _again(earlier) if same and asked.subject in ("", earlier.subject) else None

    async def refuse(self, asked: Asked, message: str) -> None:
        """Records a change that its sender has no right to. `message` is what the sender reads."""
        at = self._clock()
        await self._end(replace(_write(asked, at), result=Result.REFUSED, message=message, request_id=None))

    async def _carry_out(self, asked: Asked, do: Callable[[], Awaitable[Answer]]) -> Answer:
        begun = _write(asked, self._clock())
        await self._ledger.audit(begun)
        try:
            answer = await do()
        except Refusal as refusal:  # without its request id: what is refused now may be allowed later
            await self._end(replace(begun, result=Result.REFUSED, message=refusal.message, request_id=None))
            raise
        except Fault as fault:
            await self._end(replace(begun, result=Result.FAILED, message=str(fault)))
            raise
        ended = replace(
            begun, result=Result.DONE, message=answer.sentence, status=answer.status, answer=answer.body
        )
        await self._end(ended)
        return replace(answer, write_id=begun.id)

    async def _end(self, write: Write) -> None:
        """Records the result. If that fails, the change stands all the same: it is only logged."""
        ended = replace(write, ended_at=self._clock())
        self.on_end(ended.result)
        self._log.info(
            "%s by %s (%s): %s %s%s", ended.result.value.capitalize(), ended.author, ended.via, ended.action,
            ended.subject, f": {ended.message}" if ended.message else "",
        )  # fmt: skip
        try:
            await self._ledger.audit(ended)
        except LedgerFault as fault:
            self._log.error("The result of write %s could not be recorded: %s", ended.id, fault)


def _write(asked: Asked, at: datetime) -> Write:
    """What is asked, as the ledger has it before there is a result."""
    return Write(
        id=uuid.uuid4().hex,
        at=at,
        author=asked.author,
        via=asked.via,
        action=asked.action,
        subject=asked.subject,
        groups=asked.groups,
        document=asked.document,
        reason=asked.reason,
        request_id=asked.request_id,
    )


def _check_same(earlier: Write, asked: Asked) -> None:
    """Raises RequestConflict for an id that belongs to another request."""
    same = json.loads(json.dumps(asked.document)) == earlier.document
    if not same or (earlier.action, earlier.subject) != (asked.action, asked.subject):
        raise RequestConflict("This request id belongs to another request: take a new one for each request.")


def _again(earlier: Write) -> Answer:
    """The answer to a repeated request. Raises RequestConflict if it isn't known."""
    if earlier.result is not Result.DONE or earlier.status is None:
        raise RequestConflict(
            "It isn't known whether this request was carried out, because the broker ended or failed "
            "meanwhile. Look at the present state, and send it with a new request id if needed."
        )
    return Answer(earlier.status, earlier.answer, earlier.message, earlier.id)
