"""`gpuspawner doctor`: collects facts about this machine, then evaluates them."""

from ...core.finding import Finding, Level
from .brief import brief
from .checks import examine, examine_machine
from .facts import BrokerFacts, Facts, ImageFacts, LedgerFacts
from .machine import collect, collect_machine
from .reach import ELSEWHERE, state_beside, unreachable

__all__ = [
    "ELSEWHERE",
    "BrokerFacts",
    "Facts",
    "Finding",
    "ImageFacts",
    "LedgerFacts",
    "Level",
    "brief",
    "collect",
    "collect_machine",
    "examine",
    "examine_machine",
    "state_beside",
    "unreachable",
]
