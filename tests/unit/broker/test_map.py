"""The map of devices: what each cell says, and in which order its states count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from gpuspawner.broker.api.documents import News, device_document
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.snapshot import DeviceView
from gpuspawner.broker.pages.admin.map import Cell, CellState, Part, Readings, make_map
from gpuspawner.broker.pages.admin.overview import MachineLine, machine_line
from gpuspawner.broker.pages.counts import summary
from gpuspawner.broker.pages.words import moment
from gpuspawner.core.decision import Drain
from gpuspawner.core.machine import MachineState, MachineView
from gpuspawner.core.model import DeviceHealth, Lease, LeaseState
from gpuspawner.core.want import Mode, Want
from gpuspawner.node.api import Usage, XidSeen
from gpuspawner.protocol.messages import document

from tests.unit.lease_examples import GPU0, RUNNING, SIMULATED, A, B, C, D, lease

GIB = 1 << 30
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WELL = DeviceHealth("GPU-0", True)
QUARTERS = SharingRules("class", Mode.SLICE, slices=4)
DRAIN = Drain(NOON, "root", "new fans")


def slice_of(lease_id: str, state: LeaseState = RUNNING) -> Lease:
    return replace(lease(lease_id, state, "GPU-0"), want=Want(1, mode=Mode.SLICE), memory_bytes=20 * GIB)


def cell(view: DeviceView, readings: Readings | None = None) -> Cell:
    return make_map([view], readings or Readings()).cells[0]


def test_a_cell_with_all_its_values() -> None:
    view = DeviceView(GPU0, WELL, (slice_of(A), slice_of(B)), QUARTERS)
    usage = Usage(12 * GIB, 71.0, None, 64.0, 312.4, 700.0)
    xids = tuple(XidSeen(NOON, number) for number in (31, 43, 31))
    found = cell(view, Readings({"GPU-0": usage}, {"GPU-0": xids}, {"GPU-0": "NVML hangs"}))
    assert found == Cell(
        uuid="GPU-0", name="H100 80GB #0", short="0", state=CellState.PARTLY, reason="",
        parts=(Part("user-a", 25.0), Part("user-b", 25.0)), resting=0, used_percent=15.0,
        used="12 GiB of 80 GiB", busy_percent=71.0, temperature_celsius=64.0, power_watts=312.4,
        power="312 of 700 W", xids=(31, 43), unguarded="NVML hangs",
    )  # fmt: skip
    assert found.label == (
        "H100 80GB #0: partly held, held by user-a, user-b, 12 GiB of 80 GiB in use, 71 % busy, 64 °C, "
        "312 of 700 W, XID 31, 43, no quota is enforced now: NVML hangs"
    )


def test_the_worst_news_is_the_cell_s_colour() -> None:
    full = tuple(map(slice_of, (A, B, C, D)))
    states = [
        cell(DeviceView(GPU0, WELL, (), QUARTERS)),
        cell(DeviceView(GPU0, WELL, full[:3], QUARTERS)),
        cell(DeviceView(GPU0, WELL, full, QUARTERS)),
        cell(DeviceView(GPU0, WELL, (lease(A, RUNNING, "GPU-0"),))),
        cell(DeviceView(GPU0, WELL, full, QUARTERS, DRAIN)),
        cell(DeviceView(GPU0, DeviceHealth("GPU-0", False, "XID 79"), full, QUARTERS, DRAIN)),
    ]
    assert [(each.state, each.reason) for each in states] == [
        (CellState.FREE, ""), (CellState.PARTLY, ""), (CellState.FULL, ""), (CellState.FULL, ""),
        (CellState.DRAINED, "by root: new fans"), (CellState.OUT, "XID 79"),
    ]  # fmt: skip


def test_slices_of_sizes_are_full_when_the_smallest_doesn_t_fit() -> None:
    sizes = SharingRules("class", Mode.SLICE, sizes_bytes=(20 * GIB, 40 * GIB), reserve_bytes=GIB)
    three = DeviceView(GPU0, WELL, tuple(map(slice_of, (A, B, C))), sizes)
    assert cell(three).state is CellState.FULL
    assert cell(replace(three, holders=three.holders[:2])).state is CellState.PARTLY


def test_who_sleeps_holds_without_using() -> None:
    turns = [replace(lease(each, RUNNING, "GPU-0"), want=Want(1, mode=Mode.TURNS)) for each in (A, B)]
    asleep = replace(turns[0], id=C, state=LeaseState.ASLEEP)
    view = DeviceView(GPU0, WELL, (*turns, asleep))
    found = cell(view, Readings(awake_on={A: "GPU-0", B: "GPU-1"}))
    assert (found.parts, found.resting) == ((Part("user-a", 100.0),), 2)


def test_what_isn_t_known_is_not_zero() -> None:
    found = cell(DeviceView(SIMULATED, WELL, ()), Readings({"GPU-2": Usage(0)}))
    assert (found.used, found.used_percent, found.busy_percent, found.temperature_celsius, found.power) == (
        "", None, None, None, "",
    )  # fmt: skip
    assert found.label == "H100 80GB #2: free"


def test_memory_in_use_is_explained_only_where_it_is_drawn() -> None:
    views = [DeviceView(SIMULATED, WELL, ()), DeviceView(GPU0, WELL, ())]
    readings = Readings({"GPU-0": Usage(1 << 30), "GPU-2": Usage(0)})
    assert not make_map(views[:1], readings).shows_use
    assert make_map(views, readings).shows_use
    many = [DeviceView(replace(GPU0, uuid=f"GPU-{number}"), WELL, ()) for number in range(65)]
    assert not make_map(many, readings).shows_use


def test_many_names_are_cut() -> None:
    view = DeviceView(GPU0, WELL, tuple(map(slice_of, (A, B, C, D))), QUARTERS)
    assert cell(view).names == "user-a, user-b and 2 others"


def test_counts_are_in_the_order_of_states_and_many_cells_are_small() -> None:
    views = [DeviceView(replace(GPU0, uuid=f"GPU-{number}"), WELL, ()) for number in range(65)]
    views[3] = replace(views[3], drain=DRAIN)
    found = make_map(views, Readings())
    assert (list(found.counts.items()), found.detailed) == (
        [(CellState.DRAINED, 1), (CellState.FREE, 64)], False,
    )  # fmt: skip
    assert make_map(views[:64], Readings()).detailed


def test_the_summary_counts_devices_and_slices() -> None:
    whole = DeviceView(replace(GPU0, uuid="GPU-1"), WELL, ())
    held = replace(whole, holders=(lease(A, RUNNING, "GPU-1"),))
    sliced = DeviceView(GPU0, WELL, (slice_of(A), slice_of(B)), QUARTERS)
    assert said([whole, held, sliced], 2) == "1 of 2 GPUs, 2 of 4 slices free, 2 servers wait."
    drained = replace(sliced, drain=DRAIN)
    assert said([drained], 1, simulated=True) == "0 of 4 simulated slices free, 1 server waits."
    assert said([], 0) == "No GPU on this machine, nobody waits."


def said(views: Sequence[DeviceView], waiting: int, simulated: bool = False) -> str:
    """The sentence on each page, of these devices as the status document has them."""
    devices = [document(device_document(view, News())) for view in views]
    return summary({"simulated": simulated, "devices": devices, "queue": [{}] * waiting})


def test_with_several_machines_the_cells_come_by_machine() -> None:
    views = [DeviceView(replace(GPU0, uuid=uuid), WELL, (), node=node)
             for uuid, node in (("GPU-0", "a"), ("GPU-1", "a"), ("GPU-2", "b"))]  # fmt: skip
    found = make_map(views, Readings())
    assert [(name, [each.uuid for each in cells]) for name, cells in found.machines] == [
        ("a", ["GPU-0", "GPU-1"]), ("b", ["GPU-2"]),
    ]  # fmt: skip
    alone = make_map([replace(view, node="") for view in views], Readings())
    assert [(name, len(cells)) for name, cells in alone.machines] == [("", 3)]


def test_a_line_of_the_list_of_machines() -> None:
    away = MachineView(
        "b", MachineState.AWAY, "it can't be reached: cut", NOON, NOON, "0.1.0", gpus=3, in_service=1,
        drained=1, leases=2, notices=("GPU 1 is lost",),
    )  # fmt: skip
    then = moment(NOON.isoformat(), NOON)
    assert machine_line(away, NOON) == MachineLine(
        "b", False, "away", "danger", ("it can't be reached: cut", "GPU 1 is lost"), then, then,
        "3 (2 out of service, 1 drained)", 2, "0.1.0",
    )  # fmt: skip
    assert machine_line(
        MachineView("a", MachineState.READY, own=True, gpus=2, in_service=2), NOON
    ) == MachineLine("a", True, "ready", "success", (), None, None, "2", 0, "")
