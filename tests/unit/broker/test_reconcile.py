"""The plan that makes ledger and Docker agree: facts in, whole plans out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from gpuspawner.broker.leases.reconcile import (
    Adopt,
    Charge,
    Facts,
    Release,
    Remove,
    SetRunning,
    Step,
    plan,
    unknown_ids,
)
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.node.engine import Container
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
ID = "a" * 32
OTHER = "b" * 32
WAITING, RESERVED, RUNNING, ASLEEP, RELEASING = (
    LeaseState.WAITING, LeaseState.RESERVED, LeaseState.RUNNING, LeaseState.ASLEEP, LeaseState.RELEASING,
)  # fmt: skip


def lease(state: LeaseState, lease_id: str = ID, container_id: str | None = None) -> Lease:
    return Lease(lease_id, "hub", "anna", "", "gpu", state, Want(1), NOW, NOW, container_id=container_id)


def box(state: str, container_id: str = "c1", lease_id: str = ID, broker: str = "here") -> Container:
    return Container(
        container_id, ContainerLabels(lease_id, broker, "hub", "anna", device_uuids=("GPU-1",)), state
    )  # fmt: skip


def labelled(**labels: Any) -> Container:
    """A running container with these labels."""
    running = box("running")
    return replace(running, labels=replace(running.labels, **labels))


def steps(leases: list[Lease], boxes: list[Container], *kept: str, closed: str = "") -> tuple[Step, ...]:
    return plan(Facts(leases, boxes, frozenset(kept), frozenset({closed} - {""}), "here"))


def test_agreement_needs_no_step() -> None:
    running = lease(RUNNING, container_id="c1")
    assert steps([running], [box("running")]) == ()
    assert steps([], []) == ()


@pytest.mark.parametrize("state", ["running", "paused", "restarting"])
def test_a_reserved_lease_whose_container_lives_is_running(state: str) -> None:
    reserved = lease(RESERVED)
    assert steps([reserved], [box(state)]) == (SetRunning(reserved, "c1"),)
    assert steps([reserved], [box(state)], ID) == (SetRunning(reserved, "c1"),)


@pytest.mark.parametrize("state", ["created", "exited", "dead", "removing"])
def test_a_reserved_lease_lives_as_long_as_it_is_held(state: str) -> None:
    reserved = lease(RESERVED)
    assert steps([reserved], [box(state)], ID) == ()
    assert steps([reserved], [], ID) == ()
    assert steps([reserved], [box(state)]) == (Release(reserved, "the spawn was given up"),)
    assert steps([reserved], []) == (Release(reserved, "the spawn was given up"),)


@pytest.mark.parametrize("lease_state", [RUNNING, ASLEEP])
def test_a_running_lease_ends_with_its_container(lease_state: LeaseState) -> None:
    running = lease(lease_state, container_id="c1")
    assert steps([running], []) == (Release(running, "its container is gone"),)
    assert steps([running], [box("exited")]) == (Release(running, "its container has ended", box("exited")),)
    assert steps([running], [box("paused")]) == ()


def test_who_holds_a_lease_whose_container_died_may_read_its_log() -> None:
    running = lease(RUNNING, container_id="c1")
    assert steps([running], [box("exited")], ID) == ()
    assert steps([running], [], ID) == (Release(running, "its container is gone"),)


def test_a_second_container_of_a_lease_is_removed() -> None:
    running = lease(RUNNING, container_id="c2")
    boxes = [box("created", "c1"), box("running", "c2"), box("running", "c3"), box("removing", "c4")]
    assert steps([running], boxes) == (
        Remove(boxes[0], "another container has its lease"),
        Remove(boxes[2], "another container has its lease", unexpected=True),
    )


def test_a_waiting_lease_lives_as_long_as_it_is_held_and_has_no_container() -> None:
    waiting = lease(WAITING)
    assert steps([waiting], [], ID) == ()
    assert steps([waiting], []) == (Release(waiting, "nobody waits for it any more"),)
    assert steps([waiting], [box("created")], ID) == (
        Remove(box("created"), "its lease is still waiting", unexpected=True),
    )


def test_a_release_goes_on_until_it_is_closed() -> None:
    releasing = replace(lease(RELEASING), reason="its container is gone")
    assert steps([releasing], []) == (Release(releasing, "its container is gone"),)
    assert steps([releasing], [box("running")], ID) == (Release(releasing, "its container is gone"),)


def test_a_container_that_is_being_ended_is_left_alone() -> None:
    """Its removal hangs, or failed a moment ago: the lease is looked at again when that is over."""
    releasing = replace(lease(RELEASING), reason="stopped")
    boxes = [box("running", "c1"), box("removing", "c2")]
    ending = frozenset({"c1"})
    assert plan(Facts([releasing], boxes, ending=ending)) == ()
    assert plan(Facts([releasing], [*boxes, box("exited", "c3")], ending=ending)) == (
        Release(releasing, "stopped"),
    )
    assert plan(Facts([releasing], [], ending=ending)) == (Release(releasing, "stopped"),)
    assert plan(Facts([], [box("running")], closed={ID}, broker="here", ending=ending)) == ()
    assert plan(Facts([], [box("running")], broker="here", ending=ending)) == ()
    assert plan(Facts([lease(WAITING)], [box("created")], {ID}, ending=ending)) == ()
    running = lease(RUNNING, container_id="c2")
    assert plan(Facts([running], [box("created"), box("running", "c2")], ending=ending)) == ()


def test_a_running_lease_that_is_not_charged_is_charged_once_its_container_runs() -> None:
    running, asleep = lease(RUNNING, container_id="c1"), lease(ASLEEP, container_id="c1")
    assert plan(Facts([running], [box("running")], uncharged={ID})) == (Charge(running, "c1"),)
    assert plan(Facts([running], [box("exited")], uncharged={ID})) == (
        Release(running, "its container has ended", box("exited")),
    )
    assert plan(Facts([asleep], [box("running")], uncharged={ID})) == ()
    assert plan(Facts([running], [box("running")])) == ()


def test_a_container_of_a_closed_lease_is_removed() -> None:
    assert steps([], [box("created")], closed=ID) == (Remove(box("created"), "its lease is closed"),)
    assert steps([], [box("running")], closed=ID) == (
        Remove(box("running"), "its lease is closed", unexpected=True),
    )
    assert steps([], [box("removing")], closed=ID) == ()


def test_a_container_of_an_unknown_lease_is_taken_up_only_if_it_runs_and_tells_its_lease() -> None:
    assert steps([], [box("running")]) == (Adopt(box("running")),)
    assert steps([], [box("created")]) == (Remove(box("created"), "the ledger doesn't know its lease"),)
    for nameless in (
        labelled(user=""),
        labelled(hub=""),
        labelled(device_uuids=()),
        labelled(lease_id="../../etc"),
    ):
        wanted = (Remove(nameless, "the ledger doesn't know its lease", unexpected=True),)
        assert steps([], [nameless]) == wanted


def test_another_brokers_containers_matter_only_with_a_lease_of_ours() -> None:
    assert steps([], [box("running", broker="elsewhere")]) == ()
    running = lease(RUNNING, container_id="c1")
    assert steps([running], [box("running", broker="elsewhere")]) == ()


def test_unknown_ids_are_those_of_no_living_lease() -> None:
    boxes = [box("running"), box("exited", "c2", OTHER), box("exited", "c3", OTHER)]
    assert unknown_ids([lease(RUNNING)], boxes) == (OTHER,)


LEASES = st.sampled_from([WAITING, RESERVED, RUNNING, ASLEEP, RELEASING])
STATES = st.sampled_from(["created", "running", "paused", "restarting", "removing", "exited", "dead"])


@given(LEASES, st.lists(STATES, max_size=3), st.booleans())
def test_no_plan_ends_a_lease_in_use_nor_touches_its_container(
    state: LeaseState, states: list[str], kept: bool
) -> None:
    """Whatever there is: a lease with a living container is never released, unless its release has begun."""
    living = lease(state, container_id="c0" if state in (RUNNING, ASLEEP) else None)
    boxes = [box(each, f"c{number}") for number, each in enumerate(states)]
    made = steps([living], boxes, *([ID] if kept else []))
    alive = [item for item in boxes if item.alive]
    if alive and state in (RESERVED, RUNNING, ASLEEP):
        assert not any(isinstance(step, Release) for step in made)
        removed = {step.container.id for step in made if isinstance(step, Remove)}
        assert len([item for item in alive if item.id not in removed]) == 1
    going = state is RELEASING and states and set(states) == {"removing"}
    if not alive and not kept and not going:
        assert [step for step in made if isinstance(step, Release)] != []
