"""Shortens the report to what matters on this machine. Pure."""

from __future__ import annotations

from ...core.finding import Finding, Level
from .facts import Facts

_REAL_ONLY = (
    "NVIDIA driver",
    "cgroup",
    "CDI",
    "CDI spec",
    "Classic request",
    "MPS",
    "CUDA checkpoint",
    "GPU memory by cgroup",
)
"""Subjects that matter only for real GPUs."""


def brief(findings: tuple[Finding, ...], facts: Facts) -> tuple[Finding, ...]:
    """With simulated GPUs, the notes that matter only for real ones become one line; else nothing changes.

    The note about a GPU without a driver stays, because somebody may want to use it.
    """
    if not facts.simulated:
        return findings
    subjects = [each for each in _REAL_ONLY if not (each == "NVIDIA driver" and facts.pci_gpus)]
    left = [each for each in findings if each.level is Level.NOTE and each.subject in subjects]
    if not left:
        return findings
    names = ", ".join(dict.fromkeys(each.subject for each in left))
    line = Finding(Level.OK, "Left out", f"not needed for simulated GPUs: {names} (--all shows them)")
    return (*(each for each in findings if each not in left), line)
