"""The node's interface on the wire: every value comes back as it was, anything else is Garbled."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError, DeviceFault, EngineFault, Fault, LedgerFault
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.core.model import Device, DeviceHealth
from gpuspawner.node.api import (
    Access,
    ComputeMode,
    Condition,
    DaemonPlan,
    DesiredState,
    DriverFacts,
    GuardEvent,
    Injection,
    LabFolders,
    MpsEvent,
    MpsLimits,
    MpsProgram,
    MpsState,
    Node,
    NodeEvent,
    NodeFacts,
    Offence,
    Outcome,
    Process,
    Quota,
    QuotaPlan,
    Readings,
    Seat,
    SeatReading,
    TurnHands,
    TurnReadings,
    Usage,
    Users,
    XidSeen,
)
from gpuspawner.node.engine import Container, ContainerEvent, Engine, EventsConnected
from gpuspawner.node.homes import HomeFacts, HomeFiles, Skimmed
from gpuspawner.node.labs import MachineDoctor
from gpuspawner.node.remote import wire

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
FACTS = NodeFacts(
    "b", devices=(Device("GPU-1", "H100", 80 << 30, (9, 0), index=0),), left_out=("GPU 1 is lost",),
    compute_modes=MappingProxyType({"GPU-1": ComputeMode.EXCLUSIVE_PROCESS, "GPU-2": None}),
    driver=DriverFacts("580.1", "13.0", 2, ()), mps=MpsProgram(Path("/usr/bin/mps")), memory_bytes=1 << 40,
)  # fmt: skip
DESIRED = DesiredState(
    frozenset({"GPU-1", "GPU-2"}),
    QuotaPlan((Quota("l", "c", "GPU-1", 8 << 30, True),), frozenset({"c", "d"}), frozenset({"GPU-1"})),
    MappingProxyType({"GPU-1": DaemonPlan(MpsLimits(25.0, 8 << 30), True, True)}),
    frozenset({"GPU-2"}),
)
CONTAINER = Container("c", ContainerLabels("l", device_uuids=("GPU-1",), user="anna"), "running", "lab", 7)
SEAT = Seat("c", 12, ("GPU-1", "GPU-2"))
TURNS = TurnReadings({"c": SeatReading(Condition.ASLEEP, {"GPU-1": 5})}, {"GPU-1": True})
EVENTS: tuple[NodeEvent, ...] = (
    FACTS,
    NodeFacts("b", fault="no"),
    DeviceHealth("GPU-1", False, "XID 79", AT, needs_admin=True),
    GuardEvent(AT, Offence.MEMORY, "c", None, "GPU-1", 7, "python", 9, 8, 1.5, "over"),
    MpsEvent("GPU-1", MpsState.FAILED, "no", died=True, notice="gone"),
    Readings(
        MappingProxyType({"GPU-1": Usage(1, 2.5, Users({"c": AT}, None), memory_bytes={"c": None, "d": 3})}),
        {"GPU-2": "why"},
        {"GPU-1": (XidSeen(AT, 31),)},
    ),
)


def over(value: Any) -> Any:
    """As it comes out of the other end."""
    return json.loads(json.dumps(wire.plain(value)))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_as_it_was(event: NodeEvent) -> None:
    assert wire.event_of(json.loads(json.dumps(wire.event_to_plain(event)))) == event


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("start", (), FACTS),
        ("apply", (DESIRED,), None),
        ("apply", (DesiredState(),), None),
        ("settle", ("GPU-1",), None),
        ("health", (), (DeviceHealth("GPU-1", True), DeviceHealth("GPU-2", False, "lost"))),
        ("way_in", ({"A": [1, {"b": None}]}, {}, ("GPU-1",)), Access(Injection.CDI, {"GPU-1": "no spec"})),
        ("processes", ("GPU-1",), (Process(1, 2, "x", ("c",)),)),
        ("reload_stamp", (), None),
        ("reload_stamp", (), 17),
        ("check_turns", (("GPU-1",),), "too old"),
        ("turn_read", ((SEAT,),), TURNS),
        ("turn_wake", (SEAT, "GPU-1"), Outcome(Condition.AWAKE, seconds=1.5)),
        ("turn_end", (SEAT,), 3),
        ("docker_list", (None,), (CONTAINER, CONTAINER)),
        ("docker_list", ("a" * 32,), ()),
        ("docker_finished_at", ("c",), AT),
        ("docker_started_at", ("c",), None),
        ("docker_main_pid", ("c",), 7),
        ("docker_is_denied", ("c", "/dev/nvidiactl"), False),
        ("docker_facts", (), ({"Runtimes": {"runc": {}}, "x": [None, True, 1.5]}, {"Version": "28"})),
        ("folder_write", ("a" * 32, {"notice": "é\n"}, True), None),
        ("folder_write_all", ({"a" * 32: {"use": "é\n"}},), None),
        ("folder_keep_only", (("a" * 32,),), None),
        ("home_describe", ("v",), None),
        ("home_describe", ("v",), HomeFacts("local", {"o": "size=9g"}, {"a": "b"}, ("lab",), True)),
        ("home_prepare", ("v", HomeFacts("local")), None),
        ("home_begin_read", ("v",), "id"),
        ("home_read", ("id",), bytes(range(256))),
        ("home_read", ("id",), b""),
        ("home_write", ("id", b"\0" * 1000), None),
        ("home_skim", ("id",), Skimmed(5, "ab")),
        ("home_finish", ("id",), False),
        ("home_unfinished", (), ("v", "w")),
    ],
)  # fmt: skip
def test_a_call_comes_as_it_was(name: str, arguments: tuple[Any, ...], result: Any) -> None:
    assert wire.arguments_of(name, over(arguments)) == arguments
    assert wire.result_of(name, over(result)) == result


def test_every_method_of_the_interface_is_a_call() -> None:
    here = {"events", "close", "turn_hands", "labs"}  # of the broker's side, or an object of other calls

    def methods(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}

    asked = {"turn": methods(TurnHands), "docker": methods(Engine) - {"watch_events"},
             "folder": methods(LabFolders), "home": methods(HomeFiles)}  # fmt: skip
    doctor = methods(MachineDoctor)
    others = {f"{part}_{name}" for part, names in asked.items() for name in names}
    assert set(wire.CALLS) == (methods(Node) - here) | others | doctor


@pytest.mark.parametrize(
    ("name", "values"),
    [("settle", []), ("settle", [1]), ("settle", ["a", "b"]), ("apply", [{"quotas": 3}])],
)
def test_another_form_is_garbled(name: str, values: Any) -> None:
    with pytest.raises(wire.Garbled):
        wire.arguments_of(name, values)


def test_what_only_another_release_has_is_no_error_of_the_form() -> None:
    with pytest.raises(wire.Unknown, match=r"^this release of gpuspawner has no call 'x': install the same"):
        wire.arguments_of("x", [])
    assert wire.event_of({"kind": "Fault", "value": {}}) is None
    assert wire.docker_event_of({"kind": "NodeFacts", "value": {}}) is None


@pytest.mark.parametrize("event", [ContainerEvent("die", "c", "l", "b", 5, 137), EventsConnected()])
def test_an_event_of_docker_comes_as_it_was(event: ContainerEvent | EventsConnected) -> None:
    assert wire.docker_event_of(json.loads(json.dumps(wire.event_to_plain(event)))) == event


@pytest.mark.parametrize("message", [None, {}, {"kind": 1}, {"kind": "MpsEvent", "value": {"uuid": 1}}])
def test_an_event_of_another_form_is_garbled(message: Any) -> None:
    with pytest.raises(wire.Garbled):
        wire.event_of(message)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(DeviceFault("lost"), DeviceFault), (ConfigError("set x"), ConfigError),
     (EngineFault("down"), EngineFault), (LedgerFault("full"), LedgerFault), (RuntimeError("bug"), Fault)],
)  # fmt: skip
def test_an_error_is_raised_on_the_other_side(error: Exception, kind: type[Exception]) -> None:
    found = wire.fault_of(over(wire.fault_to_plain(error)))
    assert (type(found), str(found)) == (kind, str(error))


@pytest.mark.parametrize(("ahead", "works"), [(0, True), (1, True), (-1, True), (2, False), (-2, False)])
def test_versions_differ_by_one_at_most(ahead: int, works: bool) -> None:
    refusal = wire.Hello("b", "run", wire.VERSION + ahead).refusal()
    assert (refusal == "") == works
    if not works:
        behind = "the agent on" if ahead < 0 else "the broker for"
        assert refusal.startswith(f"{behind} machine b is more than one release behind")
