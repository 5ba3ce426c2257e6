"""When a GPU counts as idle, and what then happens: a warning, a second one, the action. Pure.

Idle is about the GPU and the kernels together: a server is idle from the moment on at which no process of it
used the GPU and no kernel was busy. What can't be known is not taken for idle: without word of the kernels it
never is. Where the GPU can't be measured and there never was a kernel, it counts from when it was first seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ....config.idle import IdleRules
from ....core.session import EndAction
from ..allow.period import format_local

NOTICE_SECONDS = 300.0
"""Between the second warning and the action at least so much time passes."""
_KEEP = "run a cell to keep it, or save your work and stop it."
_ONLY_SAID = "Others may need it: stop the server if you are done."


@dataclass(frozen=True, slots=True)
class Activity:
    """What is known of one server.

    `gpu_used_at` is when a process last used the GPU (or when the lease got it), None where that can't be
    measured: on MIG instances and simulated devices. `kernel_busy` is None while the hub says nothing of the
    kernels; `kernel_active_at` is when one was last busy, None if none ever was. `seen_from` is when this
    broker first saw it run. Until `kept_until` its quota lets it keep the GPU, used or not: only warnings are
    given.
    """

    gpu_used_at: datetime | None
    kernel_busy: bool | None
    kernel_active_at: datetime | None = None
    kept_until: datetime | None = None
    seen_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """When the server is looked at, and whether somebody waits for its GPU. Sentences use `timezone`."""

    now: datetime
    somebody_waits: bool
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Warned:
    """When the warnings were given, in this stretch of idleness; None: not yet."""

    first_at: datetime | None = None
    second_at: datetime | None = None


class Step(StrEnum):
    """What is to be done now. BACK: it is used again, and earlier warnings are void."""

    NONE = "none"
    BACK = "back"
    FIRST_WARNING = "first_warning"
    SECOND_WARNING = "second_warning"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The next step, since when the server is idle (None: it is not), and the sentence for its user."""

    step: Step
    idle_since: datetime | None = None
    sentence: str = ""


def idle_since(activity: Activity) -> datetime | None:
    """Since when nothing was done; None if something is, or if that can't be told."""
    if activity.kernel_busy is None or activity.kernel_busy:
        return None
    known = [at for at in (activity.gpu_used_at, activity.kernel_active_at) if at is not None]
    return max(known, default=activity.seen_from)


def warns_of_idleness(sentence: str) -> bool:
    """Whether the sentence is a warning that `judge` gave, in this broker or in an earlier one."""
    return sentence.startswith("For ") and sentence.endswith((_KEEP, _ONLY_SAID))


def judge(policy: IdleRules, activity: Activity, warned: Warned, look: Look) -> Verdict:
    """The next step for one server that holds a GPU. Call it again within a minute or so.

    No step is skipped: who was not warned twice is warned first, however long the idleness.
    """
    since, now = idle_since(activity), look.now
    seconds = 0.0 if since is None else (now - since).total_seconds()
    if since is None or seconds < policy.first_warning_seconds:
        return Verdict(Step.BACK if warned != Warned() else Step.NONE, since)
    if warned.first_at is not None and warned.first_at < since:
        warned = Warned()  # it was used in between, and nobody looked
    if warned.first_at is None:
        acts_at = _acts_at(policy, activity, since)
        return Verdict(Step.FIRST_WARNING, since, _warning(policy, activity, since, look, acts_at))
    if seconds < policy.second_warning_seconds:
        return Verdict(Step.NONE, since)
    if warned.second_at is None:
        acts_at = max(_acts_at(policy, activity, since), now + timedelta(seconds=NOTICE_SECONDS))
        return Verdict(Step.SECOND_WARNING, since, _warning(policy, activity, since, look, acts_at))
    told_seconds = (now - warned.second_at).total_seconds()
    due = now >= _acts_at(policy, activity, since) and told_seconds >= NOTICE_SECONDS
    held_back = policy.only_when_waiting and not look.somebody_waits
    if not due or held_back or policy.action is EndAction.NOTHING:
        return Verdict(Step.NONE, since)
    return Verdict(Step.ACT, since, _acted(policy, activity, since, now))


def _warning(policy: IdleRules, activity: Activity, since: datetime, look: Look, acts_at: datetime) -> str:
    """The sentence stays for many minutes: it gives the time of the action, not how long it is until then."""
    what = (
        "no notebook of this server has computed anything (whether its GPU was used can't be measured here)"
        if activity.gpu_used_at is None
        else "this server has not used its GPU, and no notebook of it computes"
    )
    sentence = f"For {_minutes(look.now - since)} {what}."
    if policy.action is EndAction.NOTHING:
        return f"{sentence} {_ONLY_SAID}"
    at = format_local(max(acts_at, look.now), look.timezone, look.now)
    when = f"if somebody waits for it on {at} or later" if policy.only_when_waiting else f"on {at}"
    becomes = "put to sleep" if policy.action is EndAction.SLEEP else "stopped"
    return f"{sentence} It will be {becomes} {when}: {_KEEP}"


def _acts_at(policy: IdleRules, activity: Activity, since: datetime) -> datetime:
    """When an idle server is ended at the earliest, warnings aside."""
    at = since + timedelta(seconds=policy.after_seconds)
    return at if activity.kept_until is None else max(at, activity.kept_until)


def _acted(policy: IdleRules, activity: Activity, since: datetime, now: datetime) -> str:
    done = "put to sleep" if policy.action is EndAction.SLEEP else "stopped"
    measured = activity.gpu_used_at is not None
    why = "its GPU was not used" if measured else "no notebook of it computed anything"
    return f"This server was {done} because {why} for {_minutes(now - since)}."


def _minutes(passed: timedelta) -> str:
    """For example "30 minutes"; idleness of less than one is none."""
    count = max(1, round(passed.total_seconds() / 60))
    return f"{count} minute{'' if count == 1 else 's'}"
