"""The soft limit of open files goes up to the hard one, and no further."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys

import pytest
from gpuspawner.config.open_files import ENOUGH, raise_limit, waiting_users

LOG = logging.getLogger("test")


def after(soft: int, hard: int) -> tuple[int, int, int]:
    """What a process of these limits has afterwards, and what it was told; its own process, as it can't go
    back."""
    script = (
        "import logging, resource\n"
        "from gpuspawner.config.open_files import raise_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "print(raise_limit(logging.getLogger()), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    told, now_soft, now_hard = map(int, out.split())
    return told, now_soft, now_hard


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [(1024, 4096, (4096, 4096, 4096)), (512, 512, (512, 512, 512)), (4096, 4096, (4096, 4096, 4096))],
)
def test_the_soft_limit_is_raised_to_the_hard_one(soft: int, hard: int, wanted: tuple[int, int, int]) -> None:
    assert after(soft, hard) == wanted


def test_more_than_enough_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for limits in [(1024, 1 << 20), (1024, resource.RLIM_INFINITY), (ENOUGH * 2, ENOUGH * 4)]:
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        raise_limit(LOG)
    assert set_to == [(ENOUGH, 1 << 20), (ENOUGH, resource.RLIM_INFINITY)]


def test_how_many_users_a_limit_is_enough_for() -> None:
    assert [waiting_users(limit) for limit in (100, 1024, 65_536)] == [0, 412, 32_668]
