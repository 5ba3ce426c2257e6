"""`gpuspawner doctor`: facts of this machine are collected, then judged."""

from .checks import Finding, Level, examine
from .facts import BrokerFacts, Facts, ImageFacts, LedgerFacts
from .machine import collect

__all__ = ["BrokerFacts", "Facts", "Finding", "ImageFacts", "LedgerFacts", "Level", "collect", "examine"]
