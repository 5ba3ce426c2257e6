"""How many files a process may have open: hub and broker raise their own limit as far as they may."""

from __future__ import annotations

import logging
import resource

ENOUGH = 65_536
"""Limit that is asked for: more costs nothing, and thousands of waiting users need less."""
FOR_A_WAITING_USER = 2
"""What somebody who waits takes of the hub's: one connection to the broker, one to the open page."""
FOR_THE_HUB_ITSELF = 200
"""Database, log, proxy, Docker (at most 32) and requests that are being answered."""


def raise_limit(log: logging.Logger) -> int:
    """Raises the soft limit of open files to the hard one, at most ENOUGH; returns the limit in force.

    The usual soft limit, 1,024, is for programs that use `select()` (getrlimit(2), systemd.exec(5)); hub and
    broker don't. The hard limit is the administrator's and stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.debug("This process may now have %d files open; it was %d", wanted, soft)
        return wanted
    return soft


def waiting_users(limit: int) -> int:
    """How many users a hub with this limit can have waiting with their pages open."""
    return max(0, (limit - FOR_THE_HUB_ITSELF) // FOR_A_WAITING_USER)
