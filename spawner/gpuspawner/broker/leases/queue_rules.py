"""The queue's rules from quotas and lab sessions: converts the gate's answers for the queue."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from ..decide.book import QueueRules
from ..decide.line.backfill import SessionHold
from ..decide.line.fairshare import FairShare
from ..decide.line.queue import Claim
from .gate import QuotaGate


def queue_rules(gate: QuotaGate, fair: FairShare | None, patience_seconds: float) -> QueueRules:
    """The queue's order by quotas; without `fair`, requests of equal priority are served by arrival."""

    def sessions(now_seconds: float) -> list[SessionHold]:
        now = datetime.fromtimestamp(now_seconds, UTC)
        return [
            SessionHold(
                group=hold.group,
                want=hold.want,
                count=hold.count,
                from_seconds=hold.from_seconds,
                begins_seconds=hold.begins_seconds,
                ends_seconds=hold.ends_seconds,
            )
            for hold in gate.holds(now)
        ]

    return QueueRules(
        claim=lambda lease: Claim(**asdict(gate.terms_of(lease))),
        fair=fair,
        sessions=sessions,
        patience_seconds=patience_seconds,
    )
