"""The token bucket of each sender: a burst, then a steady rate, and nobody else's changes count."""

from __future__ import annotations

from gpuspawner.broker.api.public import limits
from gpuspawner.broker.api.public.limits import WriteLimits


class Clock:
    """Seconds that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    bucket = WriteLimits(burst=2, per_second=0.5, monotonic=clock)
    assert [bucket.wait_seconds("anna") for _ in range(3)] == [0.0, 0.0, 2.0]
    assert bucket.wait_seconds("bob") == 0.0
    clock.now += 1.5
    assert bucket.wait_seconds("anna") == 0.5
    clock.now += 0.5
    assert [bucket.wait_seconds("anna") for _ in range(2)] == [0.0, 2.0]
    clock.now += 1000.0
    assert [bucket.wait_seconds("anna") for _ in range(3)] == [0.0, 0.0, 2.0]


def test_senders_who_stopped_are_forgotten() -> None:
    clock = Clock()
    bucket = WriteLimits(burst=1, per_second=1.0, monotonic=clock)
    for number in range(limits.MOST_SENDERS):
        bucket.wait_seconds(f"user-{number}")
    clock.now += 10.0
    bucket.wait_seconds("one more")
    assert len(bucket) == 1
