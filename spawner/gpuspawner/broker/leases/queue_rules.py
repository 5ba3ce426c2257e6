"""The queue's rules from quotas and lab sessions."""

from __future__ import annotations

from datetime import UTC, datetime

from ..decide.book import QueueRules
from ..decide.line.fairshare import FairShare
from .gate import QuotaGate


def queue_rules(gate: QuotaGate, fair: FairShare | None, patience_seconds: float) -> QueueRules:
    """The queue's order by quotas; without `fair`, requests of equal priority are served by arrival."""
    return QueueRules(
        claim=gate.claim_of,
        fair=fair,
        sessions=lambda now_seconds: gate.holds(datetime.fromtimestamp(now_seconds, UTC)),
        coming=lambda now_seconds: gate.coming_holds(datetime.fromtimestamp(now_seconds, UTC)),
        patience_seconds=patience_seconds,
    )
