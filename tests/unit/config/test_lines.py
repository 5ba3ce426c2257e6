"""The line of a setting's entry is found in the file as it is written."""

from __future__ import annotations

from gpuspawner.config.lines import line_of

SOURCE = """\
c = get_config()
c.GpuSite.quotas = [{"devices": 3}]
if True:
    c.GpuSite.quotas = [
        {"devices": 1},
        {
            "group": "students",
        },
    ]
c.GpuSite.tiers = [*c.GpuSite.tiers, {"name": "gpu"}]
c.GpuSite.pools = make_pools()
"""


def test_the_last_assignment_counts() -> None:
    assert [line_of(SOURCE, "GpuSite", "quotas", number) for number in (1, 2, 3)] == [5, 6, None]


def test_a_computed_list_has_no_line() -> None:
    assert line_of(SOURCE, "GpuSite", "tiers", 2) is None
    assert line_of(SOURCE, "GpuSite", "pools", 1) is None
    assert line_of("c.GpuSite.quotas = [", "GpuSite", "quotas", 1) is None
    assert line_of("", "GpuSite", "quotas", 1) is None
