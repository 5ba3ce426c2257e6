"""What the spawn page says of tiers and quota, whole values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from gpuspawner.core.model import Guarantee, Mode, Tier
from gpuspawner.core.want import Want
from gpuspawner.hub.cards import Found, Meter, State, TierCard, make_cards, make_quota, with_obstacle
from gpuspawner.protocol.messages import RefusalMessage, TierDocument, TiersDocument
from gpuspawner.protocol.rules import BudgetDocument, KeptDocument, LikelyWait, OfferDocument, TierOffer

from tests.unit.fake_spawner import make_allowance, make_offer

GIB = 1 << 30
NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
CPU = Tier("cpu", "CPU", "No GPU.")
GPU = Tier("gpu", "One GPU", "A whole GPU.", Want(1))
PAIR = Tier("gpu", "Two", "", Want(2))
SLICE = Tier("gpu", "A slice", "", Want(1, mode=Mode.SLICE))
MIG = Tier("gpu", "A MIG instance", "", Want(1, mode=Mode.MIG))
TURNS = Tier("gpu", "In turns", "", Want(1, mode=Mode.TURNS))
FULL = (Meter("GPU memory", "80 GiB", 100.0), Meter("Compute", "100 %", 100.0))
HARD = "Hard: while your server runs, nobody else can use this GPU."
GUARDED = "Guarded: a process that uses more than this memory is ended within seconds."
KEPT = KeptDocument(
    session="cs231n", group="cs231n", places=2, begins_at=NOON, ends_at=NOON, unused_free_at=NOON,
    message="2 places are kept for cs231n.",
)  # fmt: skip


def served(tier: Tier, **changes: Any) -> TierDocument:
    """The broker's document of a tier that whole H100 serve."""
    mode = tier.want.mode
    guarantee = Guarantee.GUARDED if mode is Mode.SLICE else Guarantee.HARD
    values: dict[str, Any] = {
        "device_models": ("H100 80GB",), "device_memory_bytes": 80 * GIB, "memory_bytes": 80 * GIB,
        "compute_percent": 100.0, "guarantee": guarantee, "compute_guarantee": guarantee, "free": 2,
        "total": 2,
    }  # fmt: skip
    return TierDocument(
        name=tier.name, title=tier.title, description=tier.description, model=None, mode=mode,
        device_count=tier.want.device_count, **{**values, **changes},
    )  # fmt: skip


def card(
    tier: Tier, document: TierDocument | None, offer: TierOffer, simulated: bool = False, **found: Any
) -> TierCard:
    documents = () if document is None else (document,)
    tiers = TiersDocument(simulated=simulated, driver=None, tiers=documents)
    offers = OfferDocument(timezone="UTC", tiers=(offer,), allowance=found.pop("allowance", make_allowance()))
    return make_cards([tier], Found(tiers, offers, **found))[0]


@pytest.mark.parametrize(
    ("offer", "state", "badge", "free", "reason"),
    [
        (make_offer(), State.NOW, "Free now", "2 of 2 GPUs free now.", ""),
        (make_offer(free=1, total=1), State.NOW, "Free now", "1 of 1 GPU free now.", ""),
        (
            make_offer(free=0, waiting=3, starts_now=False),
            State.WAIT, "Queue", "0 of 2 GPUs free now. 3 wait in line. You will wait in line.", "",
        ),
        (
            make_offer(
                free=1, waiting=1, starts_now=False,
                wait=LikelyWait(earliest_at=NOON, latest_at=NOON, message="likely between 11:35 and 12:10"),
            ),
            State.WAIT, "Queue",
            "1 of 2 GPUs free now. 1 waits in line. You will wait in line: likely between 11:35 and 12:10.",
            "",
        ),
        (
            make_offer(refused=RefusalMessage(reason="quota_tier", message="Not for you: choose CPU.")),
            State.OFF, "Not available", "2 of 2 GPUs free now.", "Not for you: choose CPU.",
        ),
    ],
)  # fmt: skip
def test_a_tier_says_what_is_free_and_whether_one_would_wait(
    offer: TierOffer, state: State, badge: str, free: str, reason: str
) -> None:
    assert card(GPU, served(GPU), offer) == TierCard(
        GPU, state, badge, free, "H100 80GB", FULL, HARD, reason=reason
    )


@pytest.mark.parametrize(
    ("tier", "changes", "device", "meters", "guarantee"),
    [
        (PAIR, {}, "2 × H100 80GB", (Meter("GPU memory", "80 GiB each", 100.0), FULL[1]), HARD),
        (
            SLICE, {"memory_bytes": 8 * GIB, "compute_percent": 25.0}, "H100 80GB",
            (Meter("GPU memory", "8.0 GiB of 80 GiB", 10.0), Meter("Compute", "up to 25 %", 25.0)), GUARDED,
        ),
        (
            SLICE, {"memory_bytes": 8 * GIB, "compute_guarantee": Guarantee.NONE}, "H100 80GB",
            (Meter("GPU memory", "8.0 GiB of 80 GiB", 10.0), Meter("Compute", "shared", 100.0)),
            f"{GUARDED} Users share the compute by time-slicing; nothing limits it.",
        ),
        (
            MIG, {"memory_bytes": 10 * GIB, "device_memory_bytes": 10 * GIB}, "H100 80GB",
            (Meter("GPU memory", "10 GiB", 12.5),),
            "Hard: the hardware separates your part of the GPU from the others.",
        ),
        (GPU, {"device_models": ("H100", "A100")}, "H100 or A100", FULL, HARD),
        (
            TURNS, {"total": 8},
            "A whole H100 80GB whenever you compute, shared in turns by up to 8 people", FULL,
            "Guarded: while it is your turn, you have the GPU to yourself. Between turns your program is "
            "paused, and continues where it was.",
        ),
    ],
)  # fmt: skip
def test_a_tier_says_which_part_of_a_device_it_is_and_what_that_is_worth(
    tier: Tier, changes: Any, device: str, meters: Any, guarantee: str
) -> None:
    cost = 0.125 if tier is MIG else float(tier.want.device_count)
    found = card(tier, served(tier, **changes), make_offer(gpu_hours_an_hour=cost))
    assert (found.device, found.meters, found.guarantee) == (device, meters, guarantee)


def test_simulated_gpus_are_called_so() -> None:
    found = card(GPU, served(GPU), make_offer(), simulated=True)
    assert (found.free, found.guarantee) == (
        "2 of 2 simulated GPUs free now.",
        "Simulated: this hub has no such GPU. Code that asks for a GPU finds none.",
    )


@pytest.mark.parametrize(
    ("tier", "total", "reason"),
    [
        (PAIR, 1, "Needs 2 GPUs; 1 is in service for this tier now."),
        (PAIR, 0, "Needs 2 GPUs; none is in service for this tier now."),
        (GPU, 0, "Needs 1 GPU; none is in service for this tier now."),
    ],
)
def test_too_few_gpus_in_service_are_said(tier: Tier, total: int, reason: str) -> None:
    found = card(tier, served(tier, total=total), make_offer(total=total))
    assert (found.state, found.badge, found.reason, found.free) == (State.OFF, "Not available", reason, "")


def test_without_the_broker_cpu_starts_and_a_gpu_doesnt() -> None:
    assert make_cards([CPU, GPU], Found()) == [
        TierCard(CPU, State.NOW, "Starts at once"),
        TierCard(GPU, State.OFF, "Not available", reason="Not available now."),
    ]


def test_a_tier_without_a_gpu_may_be_refused_too() -> None:
    refused = RefusalMessage(reason="quota_tier", message="Your quota has no CPU.")
    assert card(CPU, None, make_offer("cpu", refused=refused)) == TierCard(
        CPU, State.OFF, "Not available", reason="Your quota has no CPU."
    )


def test_what_else_is_to_be_said() -> None:
    budget = BudgetDocument(
        limit_gpu_seconds=36000, used_gpu_seconds=9000, left_gpu_seconds=27000, period="week", timezone="UTC",
        renewed_at=NOON,
    )  # fmt: skip
    offer = make_offer(
        ends_message="It ends at 16:00.", gpu_hours_an_hour=1.0, own_session=KEPT, kept=(KEPT,)
    )
    found = card(
        GPU, served(GPU), offer, limits={"gpu": "8.0 GiB of memory"},
        images={"gpu": "Its image is far away."},
        allowance=make_allowance().model_copy(update={"budgets": (budget,)}),
    )  # fmt: skip
    assert (found.notes, found.limits) == (
        (
            "It ends at 16:00.", "One hour costs 1 GPU-hour.", "2 places are kept for cs231n.",
            "2 places are kept for cs231n.", "Its image is far away.",
        ),
        "Your server gets 8.0 GiB of memory.",
    )  # fmt: skip
    refused = offer.model_copy(update={"refused": RefusalMessage(reason="x", message="No.")})
    found = card(
        GPU, served(GPU), refused, allowance=make_allowance().model_copy(update={"budgets": (budget,)})
    )
    assert found.notes == ("2 places are kept for cs231n.",) * 2  # neither its end nor its cost


def test_an_image_that_cant_work_closes_a_tier_unless_another_can_be_chosen() -> None:
    usable = TierCard(GPU, State.NOW, "Free now")
    assert with_obstacle(usable, "", usable=False) == usable
    assert with_obstacle(usable, "lab needs more.", usable=True) == replace(
        usable, notes=("lab needs more.",)
    )
    assert with_obstacle(usable, "lab needs more.", usable=False) == TierCard(
        GPU, State.OFF, "Not available", reason="lab needs more."
    )


def test_the_quota_is_what_is_left_and_what_other_servers_hold() -> None:
    budget = BudgetDocument(
        limit_gpu_seconds=36000, used_gpu_seconds=9000, left_gpu_seconds=27000, period="week",
        timezone="Europe/Berlin", renewed_at=datetime(2026, 11, 29, 23, 0, tzinfo=UTC),
    )  # fmt: skip
    term = budget.model_copy(
        update={"period": "2026-10-12 to 2027-02-12", "renewed_at": None, "left_gpu_seconds": -5.0}
    )
    allowance = make_allowance().model_copy(
        update={
            "budgets": (budget, term), "leases": 2, "held_leases": 1, "devices": 4, "held_devices": 0,
            "slices": None, "held_slices": 1,
        }
    )  # fmt: skip
    assert make_quota(OfferDocument(timezone="UTC", tiers=(), allowance=allowance)) == (
        Meter("GPU-hours", "7.5 of 10 left this week; new ones on Monday at 00:00 (Europe/Berlin)", 75.0),
        Meter("GPU-hours", "0.0 of 10 left from 2026-10-12 to 2027-02-12", 0.0),
        Meter("Servers with a GPU", "1 of 2 in use by your other servers", 50.0),
    )
    assert make_quota(None) == ()


def test_a_drained_device_is_named() -> None:
    """Who counts the GPUs of the machine sees why one is missing, and why a tier has none."""
    one = card(GPU, served(GPU, drained=1), make_offer(free=1, total=1))
    assert one.free == "1 of 1 GPU free now. An admin has taken 1 GPU out of use for now."
    none = card(GPU, served(GPU, total=0, free=0, drained=2), make_offer(free=0, total=0))
    assert none.reason == (
        "Needs 1 GPU; none is in service for this tier now. An admin has taken 2 GPUs out of use for now."
    )
