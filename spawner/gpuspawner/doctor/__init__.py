"""`gpuspawner doctor`: facts of this machine are collected, then judged."""

from .checks import Finding, Level, examine
from .collect import collect
from .facts import BrokerFacts, Facts, ImageFacts, LedgerFacts

__all__ = ["BrokerFacts", "Facts", "Finding", "ImageFacts", "LedgerFacts", "Level", "collect", "examine"]
