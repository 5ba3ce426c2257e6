"""Who is awake, paused, asleep and woken in a pool of turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpuspawner.broker.decide.turn_waits import HeldUp, held_up
from gpuspawner.broker.decide.turns import (
    Action,
    Experience,
    Gpu,
    Rank,
    Seat,
    Step,
    Turn,
    TurnRules,
    most_seats,
    plan,
    sleep_seconds,
    wait_seconds,
    waiting_order,
    wake_seconds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.turns_machine import GIB, RULES, SIZE, Pool, TurnsMachine, assert_sound

A, B = "GPU-0", "GPU-1"
ONE = (Gpu(A, SIZE),)
TWO = (Gpu(A, SIZE), Gpu(B, SIZE))
NOW = 1000.0

TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=25)


def awake(name: str, gpu: str = A, *, turn: float = 100.0, idle: float | None = None, gib: int = 10) -> Seat:
    idle_since = None if idle is None else NOW - idle
    return Seat(name, Turn.AWAKE, NOW - turn, 24 * GIB, gpu, gib * GIB, idle_since=idle_since)


def paused(
    name: str, gpu: str = A, *, since: float = 50.0, wants: float | None = None, gib: int = 10
) -> Seat:
    wants_since = None if wants is None else NOW - wants
    return Seat(name, Turn.PAUSED, NOW - since, 24 * GIB, gpu, gib * GIB, wants_since=wants_since)


def asleep(name: str, *, since: float = 50.0, wants: float | None = None, gib: int = 10) -> Seat:
    wants_since = None if wants is None else NOW - wants
    return Seat(name, Turn.ASLEEP, NOW - since, 24 * GIB, None, gib * GIB, wants_since=wants_since)


def test_who_wants_is_woken_on_the_gpu_that_has_its_memory() -> None:
    seats = [paused("a", B, wants=1), awake("b", A, idle=0.1)]
    assert plan(seats, TWO, NOW, RULES) == (Action(Step.WAKE, "a", B),)


def test_nobody_wants_so_nothing_is_done() -> None:
    assert plan([awake("a", idle=5), paused("b", since=29), asleep("c")], TWO, NOW, RULES) == ()


def test_an_idle_turn_ends_when_somebody_wants_and_a_busy_one_at_max_turn() -> None:
    wanting = paused("w", wants=1)
    assert plan([awake("a", idle=0.5, turn=5), wanting], ONE, NOW, RULES) == ()
    assert plan([awake("a", idle=1.0, turn=5), wanting], ONE, NOW, RULES) == (Action(Step.PAUSE, "a"),)
    assert plan([awake("a", idle=1.0, turn=1.5), wanting], ONE, NOW, RULES) == ()  # min_turn
    assert plan([awake("a", turn=9.9), wanting], ONE, NOW, RULES) == ()
    assert plan([awake("a", turn=10.0), wanting], ONE, NOW, RULES) == (Action(Step.PAUSE, "a"),)
    assert plan([awake("a", turn=1000.0)], ONE, NOW, RULES) == ()  # nobody else wants


def test_the_longest_idle_makes_room_for_the_promise() -> None:
    """24 GiB are promised to w; 30 + 30 + 24 don't fit in 80."""
    seats = [paused("old", gib=30, since=90), paused("new", gib=30, since=10), asleep("w", wants=1, gib=5)]
    assert plan(seats, ONE, NOW, RULES) == (Action(Step.SLEEP, "old"),)
    moved = [replace(seats[0], under_way=Action(Step.SLEEP, "old")), *seats[1:]]
    assert plan(moved, ONE, NOW, RULES) == ()  # its memory is still there
    gone = [replace(seats[0], turn=Turn.ASLEEP, gpu_uuid=None), *seats[1:]]
    assert plan(gone, ONE, NOW, RULES) == (Action(Step.WAKE, "w", A),)


def test_an_empty_gpu_is_taken_before_somebody_is_moved() -> None:
    seats = [paused("old", A, gib=70, since=5), asleep("w", wants=1)]
    assert plan(seats, TWO, NOW, RULES) == (Action(Step.WAKE, "w", B),)


def test_moving_is_worth_it_only_when_the_wait_is_longer() -> None:
    """Moving 10 GiB takes 5.3 + 2.1 s. The one who computes on its own GPU may go on for 10 s.

    The other GPU is kept for it from then on, until it is awake there.
    """
    wanting = paused("w", A, wants=1, gib=10)
    assert sleep_seconds(10 * GIB) + wake_seconds(10 * GIB) == pytest.approx(7.4, abs=0.1)
    assert plan([wanting, awake("a", A, turn=4)], TWO, NOW, RULES) == ()
    assert plan([wanting, awake("a", A, turn=2)], TWO, NOW, RULES) == (Action(Step.SLEEP, "w", B),)
    leaving = replace(wanting, under_way=Action(Step.SLEEP, "w", B), target_uuid=B)
    later = asleep("x", wants=0.5)
    assert plan([leaving, awake("a", A, turn=2), later], TWO, NOW, RULES) == ()
    left = replace(leaving, under_way=None, turn=Turn.ASLEEP, gpu_uuid=None)
    assert plan([left, awake("a", A, turn=2), later], TWO, NOW, RULES) == (Action(Step.WAKE, "w", B),)
    assert plan([replace(left, wants_since=None), later], TWO, NOW, RULES) == (Action(Step.WAKE, "x", A),)
    failed = replace(left, retry_at=NOW + 1)
    assert plan([failed, awake("a", A), later], TWO, NOW, RULES) == (Action(Step.WAKE, "x", B),)


def test_one_who_is_soon_back_at_home_is_not_moved_because_another_is_next_there() -> None:
    """Before, a turn that was just given to somebody at home made every other GPU look better."""
    first, second = paused("first", A, wants=5, gib=10), paused("second", A, wants=4, gib=10)
    seen = Experience(turn_seconds=5.0)
    assert plan([first, second], TWO, NOW, RULES, seen) == (Action(Step.WAKE, "first", A),)
    assert plan([first, second], TWO, NOW, RULES, Experience(turn_seconds=8.0)) == (
        Action(Step.WAKE, "first", A),
        Action(Step.SLEEP, "second", B),
    )


def test_a_turn_ends_at_once_at_the_prompt_and_late_while_a_program_runs() -> None:
    wanting = paused("w", wants=1)
    at_prompt = replace(awake("a", idle=0.3, turn=5), rests_since=NOW - 0.2)
    assert plan([at_prompt, wanting], ONE, NOW, RULES) == (Action(Step.PAUSE, "a"),)
    assert plan([replace(at_prompt, rests_since=NOW - 0.1), wanting], ONE, NOW, RULES) == ()
    assert plan([replace(at_prompt, since=NOW - 1.9), wanting], ONE, NOW, RULES) == ()  # min_turn
    loads = awake("a", idle=9.9, turn=10)
    rules = TurnRules()
    assert plan([loads, wanting], ONE, NOW, rules) == ()
    assert plan([loads, wanting], ONE, NOW + 0.1, rules) == (Action(Step.PAUSE, "a"),)


def test_room_is_made_while_the_one_who_computes_goes_on() -> None:
    """Only the switch itself costs the GPU time: memory leaves before, of the last in line if all want."""
    computes = awake("a", turn=5, gib=24)
    rests = paused("old", gib=40, since=20)
    wanting = asleep("w", wants=3, gib=5)
    assert plan([computes, rests, wanting], ONE, NOW, RULES) == (Action(Step.SLEEP, "old"),)
    last = replace(rests, wants_since=NOW - 1)
    assert plan([computes, last, wanting], ONE, NOW, RULES) == (Action(Step.SLEEP, "old"),)
    patient = replace(RULES, max_turn_seconds=60)
    assert plan([computes, last, wanting], ONE, NOW, patient) == ()  # it may want to go on before
    over = replace(computes, since=NOW - 10)
    leaving = replace(last, under_way=Action(Step.SLEEP, "old"))
    assert plan([over, leaving, wanting], ONE, NOW, RULES) == ()  # it computes until there is room
    assert plan([over, wanting], ONE, NOW, RULES) == (Action(Step.PAUSE, "a"),)
    whole = replace(wanting, promise_bytes=SIZE)
    assert plan([over, whole], ONE, NOW, RULES) == (Action(Step.SLEEP, "a"),)


def test_the_machine_s_speed_and_the_length_of_turns_are_learned() -> None:
    seen = Experience()
    assert seen.with_move(Step.SLEEP, 1000, 9.0) == seen  # too small to say anything
    assert seen.with_move(Step.PAUSE, 10 * GIB, 9.0) == seen
    for _ in range(60):
        seen = seen.with_move(Step.SLEEP, 10 * GIB, 2.8).with_move(Step.WAKE, 10 * GIB, 1.3).with_turn(4.0)
    assert seen.sleep_seconds(8 * GIB) == pytest.approx(2.3, rel=0.01)
    assert seen.wake_seconds(20 * GIB) == pytest.approx(2.3, rel=0.01)
    assert seen.turn_seconds == pytest.approx(4.0, rel=0.01)


def test_the_order_is_rank_then_time_and_nobody_is_passed_for_ever() -> None:
    late, early = (
        replace(asleep(name, wants=since), rank=Rank(0, (1, 3)))
        for name, since in (("late", 5), ("early", 9))
    )
    first = replace(asleep("first", wants=1), rank=Rank(1, (9, 9)))
    group = replace(asleep("group", wants=1), rank=Rank(0, (0, 9)))
    user = replace(asleep("user", wants=1), rank=Rank(0, (1, 2)))
    overdue = replace(asleep("overdue", wants=20), rank=Rank(0, (8, 8)))
    low = replace(asleep("low", wants=59), rank=Rank(-1))
    starving = replace(asleep("starving", wants=61), rank=Rank(-5))
    waiting = [late, early, first, group, user, overdue, low, starving, asleep("idle")]
    order = waiting_order(waiting, NOW, RULES)
    assert [seat.lease_id for seat in order] == [
        "starving", "first", "overdue", "group", "user", "early", "late", "low",
    ]  # fmt: skip


def test_who_computes_does_not_give_way_to_a_lower_rank_before_its_patience_ends() -> None:
    strong = replace(awake("strong", turn=30), rank=Rank(1, (5,)))
    weak = replace(paused("weak", wants=59), rank=Rank(0, (0,)))
    assert plan([strong, weak], ONE, NOW, RULES) == ()
    assert plan([replace(strong, idle_since=NOW - 1), weak], ONE, NOW, RULES) == (
        Action(Step.PAUSE, "strong"),
    )
    assert plan([strong, weak], ONE, NOW + 1, RULES) == (Action(Step.PAUSE, "strong"),)


def test_who_has_used_less_computes_on_for_two_turns_and_no_longer() -> None:
    little = replace(awake("little", turn=15), rank=Rank(0, (1, 2)))
    much = replace(paused("much", wants=19), rank=Rank(0, (1, 3)))
    assert plan([little, much], ONE, NOW, RULES) == ()
    assert plan([little, replace(much, rank=little.rank)], ONE, NOW, RULES) == (Action(Step.PAUSE, "little"),)
    assert plan([little, much], ONE, NOW + 1, RULES) == (Action(Step.PAUSE, "little"),)
    turned = [replace(much, turn=Turn.AWAKE, since=NOW - 10, wants_since=None), paused("little", wants=0)]
    assert plan(turned, ONE, NOW, RULES) == (Action(Step.PAUSE, "much"),)  # after one turn
    early = [replace(turned[0], since=NOW - 9.9), turned[1]]
    assert plan(early, ONE, NOW, RULES) == ()


def test_a_group_that_computes_on_fewer_gpus_than_it_is_guaranteed_comes_first() -> None:
    lab = Rank(0, (9,), "lab", 1.0)
    first, second = (replace(asleep(name, wants=since), rank=lab) for name, since in (("1", 3), ("2", 2)))
    other = replace(asleep("other", wants=15), rank=Rank(0, (0,), "club"))
    boss = replace(asleep("boss", wants=1), rank=Rank(1, (9,)))
    waiting = [first, second, other, boss]

    def order(*computing: Seat) -> list[str]:
        return [seat.lease_id for seat in waiting_order([*waiting, *computing], NOW, RULES)]

    assert order() == ["boss", "1", "other", "2"]  # for one GPU, whoever of them it is
    member = replace(awake("m", turn=5), rank=lab)
    assert order(member) == ["boss", "other", "1", "2"]
    assert order(replace(member, since=NOW - 10)) == ["boss", "1", "other", "2"]  # its turn is over
    waking = replace(paused("m"), rank=lab, under_way=Action(Step.WAKE, "m", A))
    assert order(waking) == ["boss", "other", "1", "2"]
    waiting[2] = replace(other, wants_since=NOW - 60)
    assert order() == ["other", "boss", "1", "2"]  # nobody waits for ever


def test_a_guaranteed_gpu_stays_with_its_group_and_its_members_take_turns() -> None:
    lab = Rank(0, (9,), "lab", 1.0)
    member = replace(awake("m", turn=30), rank=lab)
    other = replace(paused("other", wants=59), rank=Rank(0, (0,), "club"))
    assert plan([member, other], ONE, NOW, RULES) == ()
    assert plan([member, other], ONE, NOW + 1, RULES) == (Action(Step.PAUSE, "m"),)  # after its patience
    assert plan([replace(member, idle_since=NOW - 1), other], ONE, NOW, RULES) == (Action(Step.PAUSE, "m"),)
    mate = replace(paused("mate", wants=1), rank=replace(lab, used=(30,)))
    assert plan([replace(member, since=NOW - 9), other, mate], ONE, NOW, RULES) == ()
    less = [member, other, replace(mate, rank=lab)]
    assert plan(less, ONE, NOW, RULES) == (Action(Step.PAUSE, "m"),)
    woken = plan([replace(paused("m", wants=0), rank=lab), *less[1:]], ONE, NOW, RULES)
    assert woken == (Action(Step.WAKE, "mate", A),)
    two = replace(awake("m2", B, turn=30), rank=lab)  # one more than is guaranteed
    assert Action(Step.PAUSE, "m2") in plan([member, two, replace(other, gpu_uuid=B)], TWO, NOW, RULES)


def test_idle_memory_leaves_the_gpu_in_the_end() -> None:
    seats = [paused("a", since=30), paused("b", since=29), awake("c", B, idle=31, turn=40)]
    assert plan(seats, TWO, NOW, RULES) == (Action(Step.SLEEP, "a"), Action(Step.SLEEP, "c"))


def test_nobody_is_woken_on_a_drained_gpu_and_memory_leaves_it() -> None:
    """Who computes there goes on, for as long as it computes; idle memory goes after `pause_after`."""
    drained = (replace(ONE[0], drained=True), Gpu(B, SIZE))
    computes, rests, wanting = awake("a", A, turn=500), paused("b", A, since=2), asleep("w", wants=300)
    assert plan([computes], drained, NOW, RULES) == ()
    assert plan([computes, awake("c", B, turn=5), wanting], drained, NOW, RULES) == ()
    assert plan([rests], drained, NOW, RULES) == (Action(Step.SLEEP, "b"),)
    assert plan([replace(rests, since=NOW - 0.5)], drained, NOW, RULES) == ()
    assert plan([awake("a", A, turn=5, idle=1)], drained, NOW, RULES) == (Action(Step.SLEEP, "a"),)
    wants = replace(rests, wants_since=NOW, since=NOW)
    assert plan([computes, wants, wanting], drained, NOW, RULES) == (
        Action(Step.WAKE, "w", B),
        Action(Step.SLEEP, "b"),
    )
    fixed = replace(wants, unmovable_since=NOW - 100)
    assert plan([fixed], drained, NOW, RULES) == (Action(Step.WAKE, "b", A),)  # it can compute nowhere else
    lost = (replace(ONE[0], usable=False), Gpu(B, SIZE))
    assert plan([fixed], lost, NOW, RULES) == ()
    assert plan([wants], lost, NOW, RULES) == (Action(Step.SLEEP, "b"),)


def test_a_seat_is_woken_only_on_a_gpu_that_its_container_sees() -> None:
    old = replace(asleep("old", wants=9), sees=frozenset({A}))
    new = replace(asleep("new", wants=5), sees=frozenset({A, B}))
    computes = replace(awake("x", A, turn=5), sees=frozenset({A}))
    assert plan([computes, old, new], TWO, NOW, RULES) == (Action(Step.WAKE, "new", B),)
    assert plan([old, new], TWO, NOW, RULES) == (Action(Step.WAKE, "old", A), Action(Step.WAKE, "new", B))
    fixed = replace(paused("fixed", B, gib=70), unmovable_since=NOW - 100)
    assert plan([computes, old, fixed], TWO, NOW, RULES) == ()  # its end would not help


def test_memory_that_cannot_move_ends_after_a_warning_if_nobody_else_can_compute() -> None:
    pinned = replace(paused("pinned", gib=70, since=20), unmovable_since=NOW - 4)
    wanting = asleep("w", wants=15)
    assert plan([pinned, wanting], ONE, NOW, RULES) == ()
    assert plan([pinned, wanting], ONE, NOW + 1, RULES) == (Action(Step.END, "pinned"),)
    assert plan([pinned, wanting], ONE, NOW + 1, replace(RULES, warn_seconds=None)) == ()
    assert plan([pinned, wanting], TWO, NOW + 1, RULES) == (Action(Step.WAKE, "w", B),)


def test_who_can_not_be_paused_is_never_passed_over_and_ends_only_by_the_policy() -> None:
    silent = replace(awake("silent", turn=100), can_pause=False, unmovable_since=NOW - 4)
    wanting = asleep("w", wants=15)
    assert plan([silent, wanting], ONE, NOW, RULES) == ()
    assert plan([silent, wanting], TWO, NOW, RULES) == (Action(Step.WAKE, "w", B),)
    assert plan([silent, wanting], ONE, NOW + 1, replace(RULES, warn_seconds=None)) == ()
    assert plan([silent, wanting], ONE, NOW + 1, RULES) == (Action(Step.END, "silent"),)
    short = replace(silent, since=NOW - 8)
    assert plan([short, wanting], ONE, NOW + 1, RULES) == ()  # its turn goes on until max_turn


def test_who_is_shut_out_by_memory_that_can_not_leave_goes_to_another_gpu() -> None:
    """Even if as many lie there: at home its turn would not come before the other one's program ends."""
    silent = replace(awake("silent", turn=100), can_pause=False, unmovable_since=NOW - 4)
    wanting, idle = paused("w", wants=15, since=20), paused("i", since=5)
    there = paused("there", B, since=5)
    away = (Action(Step.SLEEP, "w"),)
    assert plan([silent, wanting, idle, there], TWO, NOW, RULES) == away
    assert plan([silent, wanting, there, awake("x", B, turn=1)], TWO, NOW, RULES) == away  # and waits there
    assert plan([silent, wanting], ONE, NOW, RULES) == ()  # it would win nothing
    both = [silent, replace(silent, lease_id="other", gpu_uuid=B), wanting]
    assert plan(both, TWO, NOW, RULES) == ()
    large = replace(paused("large", gib=70), unmovable_since=NOW - 4)
    assert plan([large, wanting, there], TWO, NOW, RULES) == away
    small = replace(large, memory_bytes=GIB)
    assert plan([small, wanting, there], TWO, NOW, RULES) == (Action(Step.WAKE, "w", A),)


def test_who_can_not_leave_a_gpu_waits_for_no_other_one() -> None:
    """Found by the stateful machine: a free GPU that it can't reach kept it waiting for ever."""
    stays = replace(paused("stays", wants=15, gib=1), promise_bytes=SIZE, unmovable_since=NOW - 9)
    holds = replace(awake("holds", turn=100, gib=1), unmovable_since=NOW - 9)
    warned = replace(RULES, warn_seconds=5.0)
    assert plan([stays, holds], TWO, NOW, warned) == (Action(Step.END, "holds"),)
    assert plan([stays, holds], TWO, NOW, replace(RULES, warn_seconds=None)) == ()
    assert held_up(stays, [stays, holds], TWO) is HeldUp.PROGRAM
    assert [gpu.uuid for gpu in TWO if gpu.serves(stays)] == [A]


def test_nothing_is_begun_with_a_seat_that_failed_or_is_under_way() -> None:
    assert plan([replace(paused("a", wants=1), retry_at=NOW + 0.1)], ONE, NOW, RULES) == ()
    waking = replace(paused("a", wants=1), under_way=Action(Step.WAKE, "a", A))
    assert plan([waking, paused("b", wants=5)], ONE, NOW, RULES) == ()


def test_seats_are_as_many_as_host_memory_holds_asleep() -> None:
    assert most_seats(200 * GIB, 24 * GIB) == 8


def test_three_with_small_memory_take_turns_in_milliseconds_in_the_order_of_their_wanting() -> None:
    pool = Pool([Gpu(A, SIZE)])
    for name in ("a", "b", "c"):
        pool.join(name, 24 * GIB)
        pool.compute(name, 1000.0, 0)
        pool.run(0.5)
    for student in pool.students.values():
        student.seat = replace(student.seat, memory_bytes=20 * GIB)
    pool.run(95)
    wakes = [action.lease_id for action in pool.log if action.step is Step.WAKE]
    assert wakes[:9] == ["a", "b", "c"] * 3
    assert {action.step for action in pool.log} == {Step.PAUSE, Step.WAKE}
    computed = [student.computed_seconds for student in pool.students.values()]
    assert sum(computed) > 85  # a switch takes up to three ticks here
    assert max(computed) - min(computed) <= RULES.max_turn_seconds + 1


def join_queue(queue: list[str], pool: Pool) -> None:
    """Who has come to want the GPU since goes to the end."""
    for seat in sorted(pool.seats(), key=lambda seat: (seat.wants_since or 0, seat.lease_id)):
        if seat.wants_since is not None and seat.lease_id not in queue and seat.under_way is None:
            queue.append(seat.lease_id)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), min_size=1, max_size=8))
def test_one_naive_queue_says_who_is_next(bursts: list[tuple[int, int]]) -> None:
    """Equal seats on one GPU: a list of who waits, in which those paused go to the end, is all it takes."""
    pool = Pool([Gpu(A, SIZE)])
    queue: list[str] = []
    for number in range(len(bursts)):
        pool.join(f"{number:02}", 8 * GIB)
    for tick in range(300):
        pool.now += 0.01  # who begins to want comes after who was paused in the last tick
        for number, (at, seconds) in enumerate(bursts):
            if at == tick:
                pool.compute(f"{number:02}", float(seconds), 0)
        join_queue(queue, pool)
        seen = len(pool.log)
        pool.tick()
        join_queue(queue, pool)
        woken = [action.lease_id for action in pool.log[seen:] if action.step is Step.WAKE]
        assert woken == queue[: len(woken)]
        del queue[: len(woken)]
        assert not queue or any(each.occupies(A) for each in pool.seats())


RANKS = st.builds(Rank, st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2)))
BURSTS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), RANKS), min_size=1, max_size=8)


def naive_first(seats: list[Seat], now: float) -> str:
    """Who comes next by the policy, said step by step: the overdue, the priority, the use, the time."""
    left = [each for each in seats if each.wants_since is not None and each.turn is not Turn.AWAKE]
    waits = {each.lease_id: now - (each.wants_since or 0.0) for each in left}
    if overdue := [each for each in left if waits[each.lease_id] >= RULES.patience_seconds]:
        left = overdue
    else:
        left = [each for each in left if each.rank.priority == max(one.rank.priority for one in left)]
        if late := [each for each in left if waits[each.lease_id] >= RULES.use_patience_seconds]:
            left = late
        else:
            left = [each for each in left if each.rank.used == min(one.rank.used for one in left)]
    return max(left, key=lambda each: waits[each.lease_id]).lease_id


@given(BURSTS)
def test_nobody_is_woken_before_one_who_comes_first_by_the_policy(
    bursts: list[tuple[int, int, Rank]],
) -> None:
    """No inversion: equal seats whose memory lies side by side on one GPU, and a naive order."""
    pool = Pool([Gpu(A, SIZE)])
    for number, (_, _, rank) in enumerate(bursts):
        pool.join(f"{number:02}", 8 * GIB, rank)
    for tick in range(400):
        pool.now += 0.01  # no two begin to want at the same moment
        for number, (at, seconds, _) in enumerate(bursts):
            if at == tick:
                pool.now += 0.001
                pool.compute(f"{number:02}", float(seconds), 0)
        seen = len(pool.log)
        pool.tick()
        for action in pool.log[seen:]:
            if action.step is Step.WAKE:
                assert action.lease_id == naive_first(pool.before, pool.now)


@given(st.lists(RANKS, min_size=2, max_size=6), st.integers(1, 2))
def test_nobody_waits_longer_than_patience_and_the_turns_of_those_before_it(
    ranks: list[Rank], count: int
) -> None:
    """No starvation, by a bound that can be told: everybody computes without end, whatever their ranks."""
    pool = Pool([Gpu(f"GPU-{number}", SIZE) for number in range(count)])
    for number, rank in enumerate(ranks):
        pool.join(f"{number:02}", 10 * GIB, rank)
        pool.compute(f"{number:02}", 1e6, 0)
    levels = {rank.priority for rank in ranks}
    patience = RULES.patience_seconds if len(levels) > 1 else RULES.use_patience_seconds
    bound = patience + len(ranks) * (RULES.max_turn_seconds + 1.0)
    for _ in range(round(4 * bound)):
        pool.tick()
        for seat in pool.seats():
            assert seat.wants_since is None or pool.now - seat.wants_since <= bound


SEATS = st.lists(
    st.builds(
        Seat,
        lease_id=st.uuids().map(str),
        turn=st.just(Turn.ASLEEP),
        since=st.floats(0, NOW),
        promise_bytes=st.sampled_from([8 * GIB, 24 * GIB, SIZE]),
        memory_bytes=st.integers(0, 8).map(lambda gib: gib * GIB),
        wants_since=st.none() | st.floats(0, NOW),
        sees=st.none() | st.sets(st.sampled_from(["GPU-0", "GPU-1", "GPU-2"])).map(frozenset),
    ),
    max_size=6,
)


@given(SEATS, SEATS, st.integers(1, 3))
def test_nobody_asleep_waits_beside_a_free_gpu(sleepers: list[Seat], stayers: list[Seat], count: int) -> None:
    """In any state: the first in line is woken, or room is made on a free GPU, or that is under way."""
    gpus = [Gpu(f"GPU-{number}", SIZE) for number in range(count)]
    seats = [
        *sleepers,
        *(replace(each, turn=Turn.PAUSED, gpu_uuid=f"GPU-{n % count}") for n, each in enumerate(stayers)),
    ]
    actions = plan(seats, gpus, NOW, RULES)
    order = waiting_order(seats, NOW, RULES)
    begun = {action.lease_id: action for action in actions}
    if order and order[0].turn is Turn.ASLEEP and any(gpu.serves(order[0]) for gpu in gpus):
        helped = begun.get(order[0].lease_id, Action(Step.PAUSE, "")).step is Step.WAKE
        assert helped or any(action.step is Step.SLEEP for action in actions)
    assert len(begun) == len(actions)
    for gpu in gpus:
        assert sum(action.gpu_uuid == gpu.uuid for action in actions) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60), st.integers(1, 30)), min_size=3, max_size=9),
    st.integers(2, 3),
)
def test_every_move_ends_where_it_was_meant_to(bursts: list[tuple[int, int, int]], count: int) -> None:
    """Without faults, memory that left one GPU for another is woken there, and never where it came from."""
    pool = Pool([Gpu(f"GPU-{number}", SIZE) for number in range(count)])
    for number in range(len(bursts)):
        pool.join(f"{number:02}", 24 * GIB)
    targets: dict[str, str | None] = {}
    for tick in range(600):
        for number, (at, seconds, gib) in enumerate(bursts):
            if tick % 300 == at:
                pool.compute(f"{number:02}", float(seconds), gib * GIB)
        seen = len(pool.log)
        pool.tick()
        assert_sound(pool)
        for action in pool.log[seen:]:
            if action.step is Step.SLEEP and action.gpu_uuid is not None:
                targets[action.lease_id] = action.gpu_uuid
            elif action.step is Step.WAKE and action.lease_id in targets:
                assert action.gpu_uuid == targets.pop(action.lease_id)


@given(st.floats(0, 100), st.none() | st.floats(0, 100))
def test_a_turn_that_could_end_now_has_no_wait(turn: float, idle: float | None) -> None:
    seat = awake("a", turn=turn, idle=None if idle is None else min(idle, turn))
    rules = TurnRules()
    wait = wait_seconds(seat, NOW, rules)
    later = replace(seat, since=seat.since - wait, idle_since=seat.idle_since and seat.idle_since - wait)
    assert wait_seconds(later, NOW, rules) == pytest.approx(0, abs=1e-6)
