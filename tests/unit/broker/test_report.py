"""Reports of use: every line, and that days and users add up to the total."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from gpuspawner.broker.decide.allow.budget import Interval
from gpuspawner.broker.decide.allow.report import By, Charged, Line, make_report
from gpuspawner.core.quota import Window
from hypothesis import given
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"
START = datetime(2026, 10, 23, 22, 0, tzinfo=UTC)  # midnight of the 24th in Berlin; clocks change on the 25th
WINDOW = Window(START, START + timedelta(days=4))
HOUR = 3600.0


def charged(
    lease: str, user: str, groups: str, tier: str, after: float, hours: float, part: float = 1.0
) -> Charged:
    interval = Interval(START + timedelta(hours=after), hours * HOUR, part)
    return Charged(lease, user, tuple(groups.split()), tier, interval, "" if user == "eve" else "gpu-a")


USE = [
    charged("a", "ada", "phd students", "gpu", -1, 3),
    charged("a", "ada", "phd students", "gpu", 20, 10),
    charged("b", "bob", "students", "slice", 30, 8, 0.125),
    charged("c", "eve", "", "gpu", 95, 100),
    charged("d", "old", "", "gpu", -50, 10),
]


@pytest.mark.parametrize(
    ("by", "lines"),
    [
        (By.USER, [("ada", 12, 1, 1), ("eve", 1, 1, 1), ("bob", 1, 1, 1)]),
        (By.GROUP, [("students", 13, 2, 2), ("phd", 12, 1, 1), ("(no group)", 1, 1, 1)]),
        (By.NODE, [("gpu-a", 13, 2, 2), ("(not known)", 1, 1, 1)]),
        (By.TIER, [("gpu", 13, 2, 2), ("slice", 1, 1, 1)]),
        (
            By.DAY,
            [("2026-10-24", 6, 1, 1), ("2026-10-25", 7, 2, 2), ("2026-10-27", 1, 1, 1)],
        ),
    ],
)
def test_lines(by: By, lines: list[tuple[str, float, int, int]]) -> None:
    report = make_report(USE, by, WINDOW, BERLIN)
    expected = [Line(name, hours * HOUR, leases, users) for name, hours, leases, users in lines]
    assert sorted(report.lines, key=str) == sorted(expected, key=str)
    assert report.total == Line("total", 14 * HOUR, 3, 3)


def test_most_use_comes_first_and_days_in_order() -> None:
    assert [line.name for line in make_report(USE, By.USER, WINDOW, BERLIN).lines] == ["ada", "bob", "eve"]
    assert [line.name for line in make_report(USE, By.DAY, WINDOW, BERLIN).lines] == [
        "2026-10-24", "2026-10-25", "2026-10-27",
    ]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-100, 100), st.integers(0, 60), st.integers(1, 8)),
        max_size=9,
    )
)
def test_days_and_users_add_up_to_the_total(drawn: list[tuple[str, int, int, int]]) -> None:
    use = [charged(user, user, "", "gpu", after, hours, part / 8) for user, after, hours, part in drawn]
    naive = sum(
        sum(1 for hour in range(after, after + hours) if 0 <= hour < 96) * part / 8
        for _, after, hours, part in drawn
    )
    for by in (By.USER, By.DAY, By.TIER):
        report = make_report(use, by, WINDOW, BERLIN)
        assert report.total.gpu_seconds == pytest.approx(naive * HOUR)
        assert sum(line.gpu_seconds for line in report.lines) == pytest.approx(naive * HOUR)
