"""Who follows a place in the queue is told news, and nobody looks more often than there may be some."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from gpuspawner.broker.decide.line.queue import Place
from gpuspawner.broker.decide.snapshot import Change
from gpuspawner.broker.leases.watch import WaitNews, Watch, Watches
from gpuspawner.core.model import Lease, LeaseState

from tests.soon import until
from tests.unit.lease_examples import WAITING, A, B, lease


@dataclass
class Queue:
    """Two who wait, with the places that they have now."""

    places: dict[str, Place]
    leases: dict[str, Lease] = field(default_factory=lambda: {key: lease(key, WAITING) for key in (A, B)})
    looks: list[tuple[str, Place | None]] = field(default_factory=list)
    counted: int = 0

    def __post_init__(self) -> None:
        self.watches = Watches(self.count)
        self.told: list[Change] = []

    def count(self) -> dict[str, Place]:
        self.counted += 1
        return dict(self.places)

    def news_of(self, lease_id: str, place: Place | None) -> WaitNews:
        self.looks.append((lease_id, place))
        return WaitNews(place or self.places.get(lease_id), "", None, "")

    async def follow(self, lease_id: str) -> None:
        async with Watch(lease_id, self.watches, self.leases.get, self.news_of) as changes:
            async for change in changes:
                self.told.append(change)

    def positions(self, lease_id: str) -> list[int | None]:
        return [each.position for each in self.told if each.lease.id == lease_id]


async def test_all_places_are_counted_once_and_only_news_is_told() -> None:
    queue = Queue({A: Place(1, 2), B: Place(2, 2)})
    following = [asyncio.create_task(queue.follow(each)) for each in (A, B)]
    await until(lambda: len(queue.told) == 2)
    assert queue.looks == [(A, None), (B, None)]  # each for itself, and then it waits for news
    queue.places = {A: Place(1, 3), B: Place(3, 3)}
    queue.watches.wake_waiting()
    await until(lambda: queue.positions(B) == [2, 3])
    await asyncio.sleep(0.05)
    assert queue.positions(A) == [1]  # that more wait behind is no news
    assert queue.counted == 1
    assert queue.looks[2:] == [(A, Place(1, 3)), (B, Place(3, 3))]  # who is told looks no second time
    for task in following:
        task.cancel()
    await asyncio.wait(following)
    assert len(queue.watches) == 0


async def test_a_state_counts_more_than_a_place_that_was_found_before_it() -> None:
    queue = Queue({A: Place(2, 2), B: Place(1, 2)})
    following = asyncio.create_task(queue.follow(A))
    await until(lambda: queue.told)
    queue.places = {A: Place(1, 1)}
    [watch] = queue.watches._by_lease[A]
    assert watch.wake(Place(1, 1))
    reserved = replace(queue.leases[A], state=LeaseState.RESERVED)
    queue.places = {}
    queue.watches.put(reserved)
    await until(lambda: len(queue.told) == 2)
    assert (queue.told[1].lease, queue.told[1].position) == (reserved, None)
    queue.watches.put(replace(reserved, state=LeaseState.CLOSED))
    await following
    assert queue.told[-1].lease.state is LeaseState.CLOSED


async def test_who_came_after_the_count_is_not_woken() -> None:
    queue = Queue({A: Place(1, 1), B: Place(2, 2)})
    following = asyncio.create_task(queue.follow(B))
    await until(lambda: queue.told)
    [watch] = queue.watches._by_lease[B]
    assert not watch.wake(None)
    assert not watch.wake(Place(2, 5))
    following.cancel()
    await asyncio.wait([following])
