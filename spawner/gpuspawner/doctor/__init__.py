"""`gpuspawner doctor`: facts of this machine are collected, then judged."""

from .checks import examine
from .facts import BrokerFacts, Facts, ImageFacts, LedgerFacts
from .finding import Finding, Level
from .machine import collect

__all__ = ["BrokerFacts", "Facts", "Finding", "ImageFacts", "LedgerFacts", "Level", "collect", "examine"]
