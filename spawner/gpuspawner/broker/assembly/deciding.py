"""Makes what decides who gets which devices: rules, quotas, the queue, and the leases in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...config.site import GpuSite
from ..decide.book import QueueRules
from ..decide.line.fairshare import FairShare
from ..decide.place.pooling import Pooling
from ..leases.allocator import NOBODY, Allocator
from ..leases.announcements import Announcements
from ..leases.gate import QuotaGate
from ..leases.queue_rules import queue_rules
from ..leases.rule_service import RuleService
from ..leases.rulebook import Rulebook
from .ground import Ground


@dataclass(frozen=True, slots=True)
class Deciding:
    """One a broker, with the leases of the ledger."""

    rulebook: Rulebook
    announcements: Announcements
    gate: QuotaGate
    allocator: Allocator
    rules: RuleService


async def open_deciding(
    ground: Ground, poolings: Sequence[Pooling], awaited: Mapping[str, str] = NOBODY
) -> Deciding:
    """Reads rules and leases from the ledger; nothing is placed yet. `awaited`: why machines can't be reached
    whose devices aren't known therefore. Raises ConfigError, LedgerFault."""
    site, ledger, log = ground.settings.site, ground.ledger, ground.log
    rulebook = Rulebook(ledger, site.quotas, site.known(), log=log)
    await rulebook.load()
    gate = QuotaGate(rulebook, ledger)
    allocator = Allocator(ledger, gate=gate, log=log, rules=_queue_rules(site, gate))
    gate.floor = allocator
    rules = RuleService(rulebook, gate, allocator, ledger)
    rules.audit.on_end = ground.metrics.audited
    devices = [device for pooling in poolings for device in pooling.devices]
    terms = {uuid: each for pooling in poolings for uuid, each in pooling.terms.items()}
    await allocator.load(devices, terms, place=False, awaited=awaited)
    await allocator.set_drained(rulebook.rules.drained)
    ground.metrics.lease_times.adopt(allocator.leases())
    return Deciding(rulebook, Announcements(rulebook, log), gate, allocator, rules)


def _queue_rules(site: GpuSite, gate: QuotaGate) -> QueueRules:
    """Who is next, as the settings and quotas say."""
    half_life_seconds = site.fair_share_half_life_days * 86400
    fair = FairShare(half_life_seconds) if site.fair_share else None
    return queue_rules(gate, fair, site.queue_patience)
