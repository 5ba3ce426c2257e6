"""What a past session counts as in fair share when the broker starts. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.model import Lease, LeaseState
from ...core.want import Mode
from ..ledger import PastSession


def past_use(session: PastSession, living: Lease | None = None) -> Iterable[tuple[float, float, float]]:
    """Parts of a GPU, from and until when (seconds since 1970), that a past session counts as.

    In turns only the time awake counts, spread over the session; of a `living` lease the time before its
    present state, as that is counted from memory. Another living lease has no past.
    """
    lease, began, ended = session.lease, session.began_at.timestamp(), session.ended_at.timestamp()
    if lease.mode is not Mode.TURNS:
        return () if living is not None else ((lease.gpu_fraction, began, ended),)
    awake_seconds = session.awake_seconds
    if living is not None and began < (since := living.since.timestamp()) < ended:
        awake_seconds -= 0.0 if living.state is LeaseState.ASLEEP else ended - since
        ended = since
    if awake_seconds <= 0 or ended <= began:
        return ()
    return ((lease.gpu_fraction * awake_seconds / (ended - began), began, ended),)
