"""`gpuspawner doctor`: collects facts about this machine, then evaluates them."""

from .brief import brief
from .checks import examine
from .facts import BrokerFacts, Facts, ImageFacts, LedgerFacts
from .finding import Finding, Level
from .machine import collect
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
    "examine",
    "state_beside",
    "unreachable",
]
