"""Quotas from settings: what they become, and what each mistake is answered with."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
from gpuspawner.config.quotas import (
    Known,
    limits_to_json,
    parse_properties,
    parse_quotas,
    subject_from_text,
    value_from_text,
)
from gpuspawner.config.site import GpuSite
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.model import Tier
from gpuspawner.core.quota import (
    ALL_TIERS,
    EVERYBODY,
    UNLIMITED,
    Budget,
    Limits,
    Period,
    PeriodKind,
    Quota,
    Subject,
    SubjectKind,
)
from gpuspawner.core.want import Mode, Want
from traitlets.config import Application, Config

CPU = Tier("cpu", "CPU")
SLICE = Tier("slice", "A slice", want=Want(1, mode=Mode.SLICE))
GPU = Tier("gpu", "One GPU", want=Want(1))
PAIR = Tier("pair", "Two GPUs", want=Want(2))
KNOWN = Known((CPU, SLICE, GPU, PAIR), frozenset({"students", "phd"}), "Europe/Berlin")
STUDENTS = Subject(SubjectKind.GROUP, "students")
HOUR = 3600.0


def test_every_key_becomes_its_limit() -> None:
    raw = [
        {"tiers": ["cpu"]},
        {
            "group": "students",
            "tiers": ["cpu", "slice", "gpu"],
            "leases": 2,
            "devices": 1,
            "slices": 1,
            "gpu_hours": 10,
            "period": "Week from  Sunday",
            "timezone": "America/New_York",
            "session_hours": 4,
            "extend_hours": 0.5,
            "minimum_hours": 1.5,
            "weight": 2,
            "priority": -1,
            "guaranteed_devices": 1.5,
        },
        {"user": "ada", "tiers": "unlimited", "devices": "unlimited", "gpu_hours": "unlimited"},
    ]
    week = Period(PeriodKind.WEEK, "America/New_York", 6)
    assert parse_quotas(raw, KNOWN) == (
        Quota(EVERYBODY, Limits(tiers=("cpu",))),
        Quota(
            STUDENTS,
            Limits(
                tiers=("cpu", "slice", "gpu"),
                leases=2,
                devices=1,
                slices=1,
                budget=Budget(10 * HOUR, week),
                session_seconds=4 * HOUR,
                extend_seconds=HOUR / 2,
                minimum_seconds=1.5 * HOUR,
                weight=2.0,
                priority=-1,
                guaranteed_devices=1.5,
            ),
        ),
        Quota(
            Subject(SubjectKind.USER, "ada"),
            Limits(
                tiers=ALL_TIERS,
                devices=UNLIMITED,
                budget=Budget(UNLIMITED, Period(PeriodKind.WEEK, "Europe/Berlin")),
            ),
        ),
    )


def test_limits_are_shown_as_they_are_written() -> None:
    raw = {
        "tiers": ["cpu", "gpu"], "leases": 2, "devices": "unlimited", "slices": 0, "gpu_hours": 1.5,
        "period": "2026-10-12 to 2027-02-12", "timezone": "Europe/Berlin", "session_hours": 4,
        "extend_hours": 0, "minimum_hours": 0.5, "weight": 2.0, "priority": 3,
    }  # fmt: skip
    (quota,) = parse_quotas([{"user": "ada", **raw}], KNOWN)
    assert limits_to_json(quota.limits) == raw
    assert quota.limits.budget == Budget(
        1.5 * HOUR,
        Period(PeriodKind.TERM, "Europe/Berlin", first=date(2026, 10, 12), last=date(2027, 2, 12)),
    )


ONE = "c.GpuSite.quotas, entry 1 (group:students)"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("students", "c.GpuSite.quotas, entry 1, is 'students': write it like {\"group\": \"students\", "
                     '"devices": 1, "gpu_hours": 10}'),
        ({"user": "ada", "group": "students"},
         'c.GpuSite.quotas, entry 1, has "user" and "group": make two entries of it, one for each'),
        ({"group": 3}, 'c.GpuSite.quotas, entry 1: group is 3: give a name, like "group": "students"'),
        ({"group": "students", "device": 1}, f"{ONE}: there is no key 'device': write \"devices\""),
        ({"group": "student"},
         "c.GpuSite.quotas, entry 1 (group:student): the hub has no group 'student': write "
         '"group": "students", or add it to c.JupyterHub.load_groups, like "student": {"users": []}'),
        ({"group": "students", "tiers": ["gpus"]},
         f"{ONE}: tiers has 'gpus', and c.GpuSite.tiers has no such tier: write 'gpu'"),
        ({"group": "students", "tiers": []}, f'{ONE}: tiers is []: write "tiers": ["cpu", "slice"]'),
        ({"group": "students", "devices": -1},
         f'{ONE}: devices is -1: give a whole number from 0 to 10000, like "devices": 1, or "unlimited"'),
        ({"group": "students", "leases": True},
         f'{ONE}: leases is True: give a whole number from 0 to 10000, like "leases": 1, or "unlimited"'),
        ({"group": "students", "slices": 1.5},
         f'{ONE}: slices is 1.5: give a whole number from 0 to 10000, like "slices": 1, or "unlimited"'),
        ({"group": "students", "gpu_hours": -10},
         f'{ONE}: gpu_hours is -10: give a number of hours, 0 or more, like "gpu_hours": 10, or "unlimited"'),
        ({"group": "students", "gpu_hours": float("nan")},
         f'{ONE}: gpu_hours is nan: give a number of hours, 0 or more, like "gpu_hours": 10, or "unlimited"'),
        ({"group": "students", "session_hours": 0},
         f"{ONE}: session_hours is 0: give a number of hours, more than 0, like \"session_hours\": 10, or "
         '"unlimited"'),
        ({"group": "students", "gpu_hours": 1, "period": "fortnight"},
         f"{ONE}: there is no period 'fortnight': write "
         '"period": "day", "week", "week from sunday" or "2026-10-12 to 2027-02-12"'),
        ({"group": "students", "gpu_hours": 1, "period": "2027-02-12 to 2026-10-12"},
         f'{ONE}: period ends before it begins: write "period": "2026-10-12 to 2027-02-12"'),
        ({"group": "students", "gpu_hours": 1, "timezone": "Europe/Berlln"},
         f"{ONE}: there is no time zone 'Europe/Berlln': write \"timezone\": \"Europe/Berlin\""),
        ({"group": "students", "period": "day"},
         f'{ONE}: period belongs to gpu_hours, which is missing: add "gpu_hours": 10, or leave period out'),
        ({"group": "students", "minimum_hours": "unlimited"},
         f'{ONE}: minimum_hours is "unlimited": give a number of hours, like "minimum_hours": 0.5'),
        ({"group": "students", "minimum_hours": 3, "session_hours": 2},
         f'{ONE}: minimum_hours is 3, but a session ends after 2: write "minimum_hours": 2, or less'),
        ({"group": "students", "weight": 0},
         f'{ONE}: weight is 0: give a number above 0, like "weight": 2 for twice the share'),
        ({"group": "students", "priority": 1000},
         f'{ONE}: priority is 1000: give a whole number from -100 to 100, like "priority": 10'),
        ({"group": "students", "guaranteed_devices": -1},
         f'{ONE}: guaranteed_devices is -1: give a number, 0 or more, like "guaranteed_devices": 2'),
        ({"user": "ada", "guaranteed_devices": 1},
         "c.GpuSite.quotas, entry 1 (user:ada): guaranteed_devices is for a group as a whole: give the entry "
         'a "group", or leave it out'),
        ({"group": "students", "tiers": ["pair"], "devices": 1},
         f"{ONE}: tiers has 'pair', which takes 2, but devices is 1: write \"devices\": 2, or leave the "
         "tier out"),
        ({"group": "students", "tiers": ["slice"], "slices": 0},
         f"{ONE}: tiers has 'slice', which takes 1, but slices is 0: write \"slices\": 1, or leave the "
         "tier out"),
        ({"group": "students", "tiers": ["gpu"], "leases": 0},
         f'{ONE}: leases is 0, but tiers has some with a GPU: write "leases": 1'),
        ({"group": "students", "session_hours": "unlimited", "extend_hours": 1},
         f"{ONE}: session_hours is 'unlimited', so extend_hours has no meaning: leave it out"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_the_line_that_would_be_right(entry: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_quotas([entry], KNOWN)
    assert str(caught.value) == sentence


def test_the_same_subject_twice_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_quotas([{"group": "phd"}, {"devices": 1}, {"group": "phd", "devices": 2}], KNOWN)
    assert str(caught.value) == (
        "c.GpuSite.quotas, entry 3 (group:phd): entry 1 is for group:phd too: put both into one"
    )


def test_where_the_hub_s_groups_are_not_known_any_group_may_be_named() -> None:
    (quota,) = parse_quotas([{"group": "others", "devices": 1}], Known((CPU,)))
    assert quota == Quota(Subject(SubjectKind.GROUP, "others"), Limits(devices=1))


def test_properties_of_a_hub_group_have_the_same_keys_and_may_have_others() -> None:
    assert parse_properties("any", {"color": "red", "devices": 2}, KNOWN) == Quota(
        Subject(SubjectKind.GROUP, "any"), Limits(devices=2)
    )
    assert parse_properties("any", {"color": "red"}, KNOWN) is None
    with pytest.raises(ConfigError) as caught:
        parse_properties("any", {"devices": "many"}, KNOWN)
    assert str(caught.value) == (
        "The properties of the hub's group 'any': devices is 'many': give a whole number from 0 to 10000, "
        'like "devices": 1, or "unlimited"'
    )


def test_subjects_and_values_from_the_command_line() -> None:
    for subject in (EVERYBODY, STUDENTS, Subject(SubjectKind.USER, "a:b")):
        assert subject_from_text(str(subject)) == subject
    for text in ("students", "group:", "tier:gpu", ""):
        with pytest.raises(ConfigError):
            subject_from_text(text)
    assert [
        value_from_text(key, text)
        for key, text in (
            ("devices", "2"),
            ("gpu_hours", "0.5"),
            ("tiers", "cpu, gpu"),
            ("tiers", "unlimited"),
            ("leases", "unlimited"),
            ("period", "week from sunday"),
        )
    ] == [2, 0.5, ["cpu", "gpu"], "unlimited", "unlimited", "week from sunday"]
    with pytest.raises(ConfigError, match="devices is 'two': give a number, or 'unlimited'"):
        value_from_text("devices", "two")
    with pytest.raises(ConfigError, match="There is no key 'device': use devices"):
        value_from_text("device", "2")


def site(config: dict[str, Any], tmp_path: Path, source: str) -> GpuSite:
    """The settings as the broker has them, after it loaded a file with this text."""

    class Broker(Application):
        loaded_config_files: ClassVar[list[str]] = [str(tmp_path / "jupyterhub_config.py")]

    (tmp_path / "jupyterhub_config.py").write_text(source)
    return GpuSite(parent=Broker(config=Config(config)))


def test_an_error_says_file_and_line(tmp_path: Path) -> None:
    source = "c = get_config()\nc.GpuSite.quotas = [\n    {},\n    {'devices': -1, 'user': 'ada'},\n]\n"
    quotas = [{}, {"devices": -1, "user": "ada"}]
    with pytest.raises(ConfigError) as caught:
        site({"GpuSite": {"quotas": quotas}}, tmp_path, source).parsed_quotas()
    assert str(caught.value).startswith(
        f"{tmp_path}/jupyterhub_config.py:4: c.GpuSite.quotas, entry 2 (user:ada): devices is -1: "
    )


def test_groups_are_known_where_the_settings_name_them_all(tmp_path: Path) -> None:
    groups = {"load_groups": {"students": {}}}
    quotas = {"quotas": [{"group": "phd"}]}
    with pytest.raises(ConfigError, match="the hub has no group 'phd'"):
        site({"GpuSite": quotas, "JupyterHub": groups}, tmp_path, "").parsed_quotas()
    expected = (Quota(Subject(SubjectKind.GROUP, "phd"), Limits()),)
    assert site({"GpuSite": quotas}, tmp_path, "").parsed_quotas() == expected
    managed = {"GpuSite": quotas, "JupyterHub": groups, "LDAPAuthenticator": {"manage_groups": True}}
    assert site(managed, tmp_path, "").parsed_quotas() == expected


def test_a_time_zone_of_the_site_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        site({"GpuSite": {"timezone": "Berlin"}}, tmp_path, "").parsed_quotas()
    assert str(caught.value) == (
        "c.GpuSite.timezone: there is no time zone 'Berlin': write c.GpuSite.timezone = \"Europe/Berlin\""
    )
