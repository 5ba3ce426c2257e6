"""The ledger: every lease that ever was and when it was awake, on disk before anything happens."""

from .audited import Result, Search, Write
from .clock import Steady, read_steady
from .ended import EndedProcess
from .held import Held
from .ledger import Ledger
from .sessions import PastSession

__all__ = [
    "EndedProcess",
    "Held",
    "Ledger",
    "PastSession",
    "Result",
    "Search",
    "Steady",
    "Write",
    "read_steady",
]
