"""What one user may have: limits put together, the sentences of refusals, and a naive model."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from gpuspawner.broker.decide.allow.budget import Spent
from gpuspawner.broker.decide.allow.period import window_at
from gpuspawner.broker.decide.allow.quota import (
    Ask,
    Holding,
    allowance,
    beyond,
    check,
    refusals,
    survivors,
)
from gpuspawner.core.errors import QuotaDevices, QuotaGpuHours, QuotaLeases, QuotaSlices, QuotaTier, Refusal
from gpuspawner.core.quota import (
    ALL_TIERS,
    EVERYBODY,
    UNLIMITED,
    Allowance,
    Budget,
    Limits,
    Period,
    PeriodKind,
    Quota,
    Subject,
    SubjectKind,
)
from gpuspawner.core.want import Mode, Want
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
WEEK = Period(PeriodKind.WEEK, "Europe/Berlin")
DAY = Period(PeriodKind.DAY, "UTC")
GPU, PAIR, SLICE, CPU = (
    Ask("gpu", Want(1)),
    Ask("pair", Want(2)),
    Ask("slice", Want(1, mode=Mode.SLICE)),
    Ask("cpu", Want(0)),
)


def of_group(name: str, **limits: object) -> Quota:
    return Quota(Subject(SubjectKind.GROUP, name), Limits(**limits))  # type: ignore[arg-type]


def of_user(name: str, **limits: object) -> Quota:
    return Quota(Subject(SubjectKind.USER, name), Limits(**limits))  # type: ignore[arg-type]


def everybody(**limits: object) -> Quota:
    return Quota(EVERYBODY, Limits(**limits))  # type: ignore[arg-type]


def test_without_quotas_everything_is_allowed() -> None:
    assert allowance([], "ada", ["students"]) == Allowance()
    assert Allowance().allows_tier("gpu")


def test_of_several_groups_the_most_generous_of_each_limit() -> None:
    week, day = Budget(10.0, WEEK), Budget(2.0, DAY)
    quotas = [
        everybody(devices=9, leases=9, tiers=("cpu",)),
        of_group("a", tiers=("cpu", "slice"), devices=1, leases=3, budget=week, weight=2.0, priority=-5),
        of_group(
            "b", tiers=("gpu", "cpu"), devices=2, leases=1, budget=day, session_seconds=60.0, priority=-9
        ),
        of_group("c", tiers=ALL_TIERS, devices=UNLIMITED),
    ]
    assert allowance(quotas, "ada", ["a", "b", "x"]) == Allowance(
        tiers=("cpu", "slice", "gpu"),
        leases=3,
        devices=2,
        budgets=(week, day),
        session_seconds=60.0,
        weight=2.0,
        priority=-5,
        group="a",
    )
    with_c = allowance(quotas, "ada", ["a", "c"])
    assert (with_c.tiers, with_c.devices) == (ALL_TIERS, UNLIMITED)


def test_the_user_s_own_value_counts_even_if_it_is_less() -> None:
    quotas = [
        everybody(devices=4, budget=Budget(1.0, DAY)),
        of_group("a", devices=2, budget=Budget(10.0, WEEK)),
        of_user("ada", devices=0, budget=Budget(UNLIMITED, DAY)),
    ]
    assert allowance(quotas, "ada", ["a"]) == Allowance(devices=0)
    assert allowance(quotas, "bob", ["a"]) == Allowance(devices=2, budgets=(Budget(10.0, WEEK),))
    assert allowance(quotas, "bob", []) == Allowance(devices=4, budgets=(Budget(1.0, DAY),))


def test_a_group_s_properties_say_what_the_settings_leave_open() -> None:
    quotas = [of_group("a", devices=2)]
    properties = [of_group("a", devices=5, leases=3), of_group("elsewhere", slices=1)]
    assert allowance(quotas, "ada", ["a"], properties) == Allowance(devices=2, leases=3)


def test_the_group_with_the_most_entitlement_counts_in_the_queue() -> None:
    quotas = [
        of_group("a", weight=9.0),
        of_group("b", guaranteed_devices=1.0),
        of_group("c", guaranteed_devices=2.5, weight=3.0),
        of_group("d", devices=1),
    ]
    found = allowance(quotas, "ada", ["a", "b", "c", "d"])
    assert (found.group, found.guaranteed_devices, found.weight) == ("c", 2.5, 3.0)
    assert allowance(quotas, "ada", ["d"]).group == ""
    own = allowance([*quotas, of_user("ada", weight=4.0)], "ada", ["a", "c"])
    assert (own.group, own.guaranteed_devices, own.weight) == ("user:ada", 0.0, 4.0)


def spent(used_hours: float, limit_hours: float = 10) -> list[Spent]:
    return [Spent(Budget(limit_hours * 3600, WEEK), window_at(WEEK, NOW), used_hours * 3600)]


@pytest.mark.parametrize(
    ("allowed", "ask", "holdings", "used", "kind", "sentence"),
    [
        (Allowance(devices=1), GPU, [Holding("train", GPU)], [], QuotaDevices,
         "You hold 1 of 1 GPU in server 'train': stop it, or choose CPU."),
        (Allowance(devices=1), GPU, [Holding("", GPU)], [], QuotaDevices,
         "You hold 1 of 1 GPU in your default server: stop it, or choose CPU."),
        (Allowance(devices=1), GPU, [Holding("train", GPU, waits=True)], [], QuotaDevices,
         "You wait for 1 of 1 GPU in server 'train': stop it, or choose CPU."),
        (Allowance(devices=3), PAIR, [Holding("a", GPU), Holding("b", GPU, waits=True)], [], QuotaDevices,
         "You hold or wait for 2 of 3 GPUs in servers 'a' and 'b' and asked for 2 more: stop one of them, or "
         "choose CPU."),
        (Allowance(devices=1), GPU, [Holding("train", GPU, ends=True)], [], QuotaDevices,
         "The GPU of server 'train' is still being given back: try again in a moment."),
        (Allowance(devices=1), PAIR, [], [], QuotaDevices,
         "You asked for 2 GPUs, and your quota is 1: choose a smaller tier, or CPU."),
        (Allowance(devices=0), GPU, [], [], QuotaDevices,
         "Your quota has no GPUs: choose CPU. An admin can change your quota."),
        (Allowance(devices=0, wants={"cpu": CPU.want, "gpu": GPU.want, "slice": SLICE.want}), GPU, [], [],
         QuotaDevices,
         "Your quota has no GPUs: choose another tier, or CPU. An admin can change your quota."),
        (Allowance(devices=0, slices=0, wants={"slice": SLICE.want}), GPU, [], [], QuotaDevices,
         "Your quota has no GPUs: choose CPU. An admin can change your quota."),
        (Allowance(leases=0, wants={"slice": SLICE.want}), GPU, [], [], QuotaLeases,
         "Your quota has no servers with a GPU: choose CPU. An admin can change your quota."),
        (Allowance(slices=2), SLICE, [Holding("", SLICE), Holding("b", SLICE), Holding("c", GPU)], [],
         QuotaSlices,
         "You hold 2 of 2 slices in your default server and 'b': stop one of them, or choose CPU."),
        (Allowance(leases=1), SLICE, [Holding("b", GPU)], [], QuotaLeases,
         "You have 1 of 1 server with a GPU (server 'b'): stop it, or choose CPU."),
        (Allowance(tiers=("cpu", "slice")), GPU, [], [], QuotaTier,
         "Your quota does not include the tier 'gpu': choose 'cpu' or 'slice'. "
         "An admin can change your quota."),
        (Allowance(tiers=("cpu",)), GPU, [], [], QuotaTier,
         "Your quota does not include the tier 'gpu': choose 'cpu'. An admin can change your quota."),
        (Allowance(tiers=("cpu",), titles={"gpu": "One GPU", "cpu": "CPU"}), GPU, [], [], QuotaTier,
         "Your quota does not include the tier 'One GPU': choose 'CPU'. An admin can change your quota."),
        (Allowance(), GPU, [], spent(10), QuotaGpuHours,
         "You have used 10.0 of 10 GPU-hours this week; new ones from Monday 00:00 (Europe/Berlin)."),
    ],
)  # fmt: skip
def test_a_refusal_names_the_limit_its_use_and_what_to_do(
    allowed: Allowance,
    ask: Ask,
    holdings: list[Holding],
    used: list[Spent],
    kind: type[Refusal],
    sentence: str,
) -> None:
    with pytest.raises(kind) as caught:
        check(allowed, ask, holdings, used, NOW)
    assert caught.value.message == sentence


def test_what_is_within_the_quota_passes() -> None:
    check(Allowance(devices=2, leases=2), GPU, [Holding("a", GPU)], spent(9.9), NOW)
    check(Allowance(devices=0, slices=0, leases=0), CPU, [], spent(10), NOW)
    check(Allowance(devices=0), SLICE, [], [], NOW)


def test_a_lower_limit_meets_who_came_last_and_none_who_holds() -> None:
    holdings = [
        Holding("first", GPU, waits=True),
        Holding("runs", GPU),
        Holding("second", GPU, waits=True),
        Holding("slice", SLICE, waits=True),
    ]
    judged = survivors(Allowance(devices=2), holdings, [], NOW)
    told = [(each.server, refusal.message if refusal else None) for each, refusal in judged]
    assert told == [
        ("first", None),
        ("runs", None),
        (
            "second",
            "You hold or wait for 2 of 2 GPUs in servers 'runs' and 'first': stop one of them, or choose "
            "CPU.",
        ),
        ("slice", None),
    ]


def test_of_what_runs_the_earliest_have_the_room_of_a_lower_limit() -> None:
    """Three of one GPU, then a slice; without the tier of the second."""
    held = [Holding(f"s{number}", Ask("gpu", Want(1))) for number in range(3)]
    held.append(Holding("s3", Ask("slice", Want(1, mode=Mode.SLICE))))
    assert beyond(Allowance(devices=2), held) == [False, False, True, False]
    assert beyond(Allowance(leases=1), held) == [False, True, True, True]
    assert beyond(Allowance(tiers=("slice",)), held) == [True, True, True, False]
    assert beyond(Allowance(), held) == [False] * 4


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=8),
    st.integers(0, 4), st.integers(0, 4), st.integers(0, 4),
)  # fmt: skip
def test_what_stays_is_within_the_limits_and_nobody_goes_in_vain(
    drawn: list[tuple[bool, int]], devices: int, slices: int, leases: int
) -> None:
    """Against counting by hand."""
    allowed = Allowance(devices=devices, slices=slices, leases=leases)
    held = [
        Holding(f"s{n}", Ask("x", Want(count, mode=Mode.SLICE if sliced else Mode.WHOLE)))
        for n, (sliced, count) in enumerate(drawn)
    ]
    room = [float(slices), float(devices), float(leases)]
    by_hand = []
    for sliced, count in drawn:
        need = [count if sliced else 0, 0 if sliced else count, 1]
        fits = all(not each or each <= left for each, left in zip(need, room, strict=True))
        by_hand.append(not fits)
        if fits:
            room = [left - each for each, left in zip(need, room, strict=True)]
    assert beyond(allowed, held) == by_hand


def test_who_waits_for_a_tier_that_was_taken_away_is_told_so() -> None:
    holdings = [Holding("runs", GPU), Holding("waits", GPU, waits=True)]
    (_, none), (_, refusal) = survivors(Allowance(tiers=("cpu", "slice")), holdings, [], NOW)
    assert none is None
    assert isinstance(refusal, QuotaTier)
    assert refusal.message == (
        "The tier 'gpu' was taken out of your quota while you waited for it: choose 'cpu' or 'slice'."
    )


asks = st.sampled_from([GPU, PAIR, SLICE])
limits = st.one_of(st.integers(0, 4), st.just(UNLIMITED))


@given(
    st.builds(Allowance, devices=limits, slices=limits, leases=limits),
    st.lists(st.tuples(st.booleans(), asks, st.integers(0, 3)), max_size=25),
)
def test_no_sequence_of_starts_and_stops_exceeds_a_limit(
    allowed: Allowance, steps: list[tuple[bool, Ask, int]]
) -> None:
    """Against a naive model that just adds up: refused exactly when the sum would be too much."""
    held: dict[str, Ask] = {}
    for starts, ask, number in steps:
        server = f"s{number}"
        if not starts or server in held:
            held.pop(server, None)
            continue
        after = [*held.values(), ask]
        fits = (
            len(after) <= allowed.leases
            and (ask.want.mode is Mode.SLICE or sum(each.devices for each in after) <= allowed.devices)
            and (ask.want.mode is not Mode.SLICE or sum(each.slices for each in after) <= allowed.slices)
        )
        found = refusals(allowed, ask, [Holding(name, each) for name, each in held.items()], [], NOW)
        assert (found == []) == fits
        if not found:
            held[server] = ask
        assert len(held) <= allowed.leases
        assert sum(each.devices for each in held.values()) <= allowed.devices
        assert sum(each.slices for each in held.values()) <= allowed.slices
