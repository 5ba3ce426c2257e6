"""GPU-seconds: the use in one run of a period, what is left, and when it is used up.

Pure. An interval's length is measured on a steady clock and counted from `started_at`, even if the wall clock
was set in between. The parts of an interval in windows that follow one another add up to the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ....core.quota import UNLIMITED, Budget, PeriodKind, Subject, Window
from .period import format_local, window_at, words


@dataclass(frozen=True, slots=True)
class Interval:
    """A lease was awake for `seconds` from `started_at` on; `charge` is how many devices it held.

    A whole device or MIG instance that was charged as a whole is 1, a slice is its part of the device.
    """

    started_at: datetime
    seconds: float
    charge: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A grant or a refund: `gpu_seconds` more (or, if negative, fewer) in the run of the period of `at`."""

    subject: Subject
    gpu_seconds: float
    at: datetime
    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What a user used of one budget, and what was granted in addition, in the current run of its period.

    `window` is None outside of a term: then nothing may be used.
    """

    budget: Budget
    window: Window | None
    used_gpu_seconds: float = 0.0
    granted_gpu_seconds: float = 0.0

    @property
    def limit_gpu_seconds(self) -> float:
        """The budget with what was granted, never below zero."""
        return max(0.0, self.budget.gpu_seconds + self.granted_gpu_seconds)

    @property
    def left_gpu_seconds(self) -> float:
        """What may still be used; never below zero."""
        return max(0.0, self.limit_gpu_seconds - self.used_gpu_seconds) if self.window is not None else 0.0


def gpu_seconds_in(interval: Interval, window: Window) -> float:
    """The part of the interval in the window, times what was held."""
    from_start = (window.start - interval.started_at).total_seconds()
    to_end = (window.end - interval.started_at).total_seconds()
    return max(0.0, min(interval.seconds, to_end) - max(0.0, from_start)) * interval.charge


def spend(budget: Budget, intervals: Iterable[Interval], entries: Iterable[Entry], at: datetime) -> Spent:
    """What these intervals, all of one user, used of the budget in its run at `at`.

    `entries` are those of the user and of the groups that the budget may come from.
    """
    window = window_at(budget.period, at)
    if window is None:
        return Spent(budget, None)
    used = sum(gpu_seconds_in(each, window) for each in intervals)
    granted = sum(each.gpu_seconds for each in entries if window.start <= each.at < window.end)
    return Spent(budget, window, used, granted)


def applying(entries: Iterable[Entry], user: str, groups: Iterable[str]) -> list[Entry]:
    """The entries that are for this user, for one of their groups, or for everybody."""
    members = frozenset(groups)
    return [each for each in entries if each.subject.covers(user, members)]


def best(spent: Sequence[Spent]) -> Spent | None:
    """The budget with the most left, which applies. None if there is no budget, or one without a limit."""
    if any(each.budget.gpu_seconds == UNLIMITED for each in spent):
        return None
    return max(spent, key=lambda each: (each.left_gpu_seconds, each.limit_gpu_seconds), default=None)


def runs_out_at(spent: Sequence[Spent], charge: float, now: datetime) -> datetime | None:
    """When a user who holds `charge` devices from now on has nothing left; None if never.

    A period that ends before then brings new GPU-hours, so its budget doesn't run out.
    """
    chosen = best(spent)
    if chosen is None or charge <= 0:
        return None
    seconds = chosen.left_gpu_seconds / charge
    if chosen.window is None:
        return now
    left_of_window = (chosen.window.end - now).total_seconds()
    if seconds >= left_of_window:
        term = chosen.budget.period.kind is PeriodKind.TERM
        return chosen.window.end if term else None
    return now + timedelta(seconds=seconds)


def renewed_at(spent: Spent) -> datetime | None:
    """When the next run of the budget's period begins; None if none follows, as after a term."""
    if spent.window is None:
        return None
    return None if window_at(spent.budget.period, spent.window.end) is None else spent.window.end


def describe_spent(spent: Spent, now: datetime) -> str:
    """Why nothing is left and when there is more.

    "You have used 10.0 of 10 GPU-hours this week; new ones from Monday 00:00 (Europe/Berlin)."
    """
    period = spent.budget.period
    if spent.window is None:
        return (
            f"Your GPU-hours are {words(period)} ({period.timezone}), and today is not in it: choose CPU, or "
            "ask for a quota."
        )
    if spent.limit_gpu_seconds == 0:
        return "Your quota has no GPU-hours: choose CPU, or ask for a quota."
    used = f"{spent.used_gpu_seconds / 3600:.1f} of {spent.limit_gpu_seconds / 3600:g} GPU-hours"
    if period.kind is PeriodKind.TERM:
        return f"You have used {used} {words(period)}: choose CPU, or ask for more."
    renewed = format_local(spent.window.end, period.timezone, now)
    return f"You have used {used} {words(period)}; new ones from {renewed}."
