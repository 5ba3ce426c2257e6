"""Who may come: as many as before at that time, by habit or by chance; early in a term also strangers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from gpuspawner.broker.decide.line import newcomers as module
from gpuspawner.broker.decide.line.future import Arrival
from gpuspawner.broker.decide.line.newcomers import Newcomers
from gpuspawner.broker.decide.line.queue import Claim, Waiting
from gpuspawner.core.want import Want

HOUR, DAY, WEEK = 3600.0, 86400.0, 7 * 86400.0
ONE = Want(1)


def came(user: str, at: float) -> Arrival:
    return Arrival(at, Waiting(1, "x", ONE, user, at, Claim("students")), "gpu")


def known(arrivals: Iterable[tuple[str, float]]) -> Newcomers:
    made = Newcomers()
    for user, at in arrivals:
        made.arrived(came(user, at))
    return made


def coming(newcomers: Newcomers, now: float, futures: int = 20) -> list[list[Arrival]]:
    draw = random.Random(5)
    return [list(newcomers.coming(now, draw)) for _ in range(futures)]


def test_nobody_is_expected_before_a_day_is_known() -> None:
    assert coming(known([]), 0.0, 1) == [[]]
    newcomers = known([("ada", 0.0), ("bob", HOUR)])
    assert coming(newcomers, DAY - 1.0, 1) == [[]]


def test_about_as_many_come_as_a_week_before_at_the_same_time() -> None:
    """200 in an hour; all of them up to a quarter of an hour sooner or later."""
    newcomers = known([(f"user-{number}", number * 18.0) for number in range(200)])
    futures = coming(newcomers, WEEK)
    assert (
        150 <= sum(map(len, futures)) / len(futures) <= 210
    )  # the first come before now, if all come sooner
    for future in futures:
        assert future == sorted(future, key=lambda each: each.at_seconds)
        assert all(WEEK <= each.at_seconds <= WEEK + 1.25 * HOUR for each in future)
        assert {(each.tier, each.waiting.want, each.waiting.claim) for each in future} == {
            ("gpu", ONE, Claim("students"))
        }


def test_in_the_first_week_any_earlier_day_comes_again() -> None:
    """Three came on the first day, 30 on the second; each of the coming days is like one of these."""
    arrivals = [(f"a{number}", number * HOUR) for number in range(3)]
    arrivals += [(f"b{number}", DAY + HOUR + number) for number in range(30)]
    for ahead in (0, 1, 6, 7):
        begins, ends = (2 + ahead) * DAY, (3 + ahead) * DAY
        counts = [
            sum(begins <= each.at_seconds < ends for each in future)
            for future in coming(known(arrivals), 2 * DAY)
        ]
        assert (min(counts) < 10, max(counts) > 15) == (True, ahead < 7)


def test_at_the_begin_of_a_term_many_have_never_come() -> None:
    """Everybody came once: somebody else is a stranger, and each of these is somebody else."""
    newcomers = known([(f"user-{number}", number * 60.0) for number in range(200)])
    for future in coming(newcomers, DAY):
        strangers = [each.waiting.user for each in future if not each.waiting.user.startswith("user-")]
        assert len(strangers) == len(set(strangers))
        assert len(strangers) > 0.3 * len(future)


def test_nobody_is_new_where_all_came_often() -> None:
    draw = random.Random(1)
    users = [f"user-{number}" for number in range(20)] * 10
    draw.shuffle(users)
    newcomers = known([(user, number * 60.0) for number, user in enumerate(users)])
    seen = Counter(each.waiting.user for future in coming(newcomers, DAY, 50) for each in future)
    assert seen.keys() == set(users)
    assert max(seen.values()) < 2 * min(seen.values())


def test_a_second_visit_by_chance_is_no_habit() -> None:
    """100 users of the same kind, 150 visits at random: who came three times does not come three times as
    often as who came once, and about as many are new as had not come."""
    draw = random.Random(3)
    visits = sorted((draw.uniform(0, 48 * HOUR), f"user-{draw.randrange(100)}") for _ in range(150))
    newcomers = known((user, at) for at, user in visits)
    often = Counter(user for _, user in visits)
    missing = 100 - len(often)
    seen: Counter[int] = Counter()
    for future in coming(newcomers, 48 * HOUR, 200):
        seen.update(often[each.waiting.user] for each in future)
    each = {count: seen[count] / number for count, number in Counter(often.values()).items()}
    assert each[3] < 2.0 * each[1]
    assert seen[0] / sum(seen.values()) == pytest.approx(missing / 100, abs=0.1)


@pytest.mark.parametrize("period", [DAY, WEEK])
def test_a_class_comes_again_by_name(period: float) -> None:
    """The same 30 come three times at the same time, and others in between."""
    draw = random.Random(2)
    arrivals = [
        (f"member-{number}", each * period + HOUR + number) for each in range(3) for number in range(30)
    ]
    arrivals += [(f"other-{number}", draw.uniform(2 * HOUR, 3 * period)) for number in range(40)]
    newcomers = known(sorted(arrivals, key=lambda each: each[1]))
    futures = coming(newcomers, 3 * period)
    ends = 3 * period + 2 * HOUR
    at_the_hour = [each for future in futures for each in future if each.at_seconds < ends]
    members = sum(each.waiting.user.startswith("member") for each in at_the_hour)
    assert members > 0.8 * len(at_the_hour)


def test_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_ARRIVALS", 50)
    arrivals = [(f"old-{number}", float(number)) for number in range(50)]
    arrivals += [(f"new-{number % 10}", 100.0 + number) for number in range(50)]
    seen = {each.waiting.user for future in coming(known(arrivals), DAY + 100.0) for each in future}
    assert seen <= {f"new-{number}" for number in range(10)}
    assert len(seen) == 10
