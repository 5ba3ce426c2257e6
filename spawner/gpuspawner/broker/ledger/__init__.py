"""The ledger: every lease that ever was and when it was awake, on disk before anything happens."""

from .clock import Steady, read_steady
from .ledger import Ledger

__all__ = ["Ledger", "Steady", "read_steady"]
