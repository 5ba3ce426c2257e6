"""Wants: equal where the same devices serve them."""

from __future__ import annotations

from gpuspawner.core.model import Tier
from gpuspawner.core.want import NO_GPU, Mode, Want


def test_the_model_is_the_same_in_upper_and_lower_case_and_an_empty_one_is_none() -> None:
    assert Want(1, "H100") == Want(1, "h100")
    assert hash(Want(1, "H100")) == hash(Want(1, "h100"))
    assert Want(1, "H100").model == "h100"
    assert Want(1, "") == Want(1)


def test_wants_differ_in_everything_else() -> None:
    wants = [
        Want(1), Want(2), Want(1, "a100"), Want(1, mode=Mode.MIG), Want(1, pool="class"),
        Want(1, mig_profile="1g.10gb"), Want(1, memory_bytes=1), Want(1, compute_percent=1.0),
    ]  # fmt: skip
    assert len(set(wants)) == len(wants)


def test_a_tier_without_a_gpu_wants_none() -> None:
    assert Tier("cpu", "CPU").want == NO_GPU
    assert not Tier("cpu", "CPU").needs_gpu
    assert Tier("gpu", "GPU", want=Want(1)).needs_gpu
