"""The ledger: every lease that ever was and when it was awake, on disk before anything happens."""

from .audited import Result, Search, Write
from .clock import Steady, read_steady
from .ended import EndedProcess, EndedSearch
from .held import Held, Stay, StaySearch
from .ledger import Ledger
from .reach import OfGroups
from .sessions import PastSession

__all__ = [
    "EndedProcess",
    "EndedSearch",
    "Held",
    "Ledger",
    "OfGroups",
    "PastSession",
    "Result",
    "Search",
    "Stay",
    "StaySearch",
    "Steady",
    "Write",
    "read_steady",
]
