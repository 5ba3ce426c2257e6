"""What XIDs call for: NVIDIA's catalogue, and what isn't in it."""

from __future__ import annotations

import pytest
from gpuspawner.node.xid import Resolution, meaning, resolution, sentence


@pytest.mark.parametrize(
    ("wanted", "xids"),
    [
        (Resolution.IGNORE, (14, 43, 45, 63, 92, 141, 161)),
        (Resolution.RESTART_APP, (8, 13, 31, 32, 68, 82, 86, 88, 94, 96, 105, 126, 135, 139)),
        (Resolution.RESET_GPU, (46, 48, 62, 64, 74, 95, 109, 119, 120, 140, 143, 144, 150, 154, 158)),
        (Resolution.RESTART_MACHINE, (79, 151)),
        (Resolution.CONTACT_SUPPORT, (1, 54, 78, 81, 87, 90, 142, 159, 0, -1, 999)),
    ],
)
def test_the_catalogue(wanted: Resolution, xids: tuple[int, ...]) -> None:
    assert {xid: resolution(xid) for xid in xids} == dict.fromkeys(xids, wanted)


def test_only_a_fault_takes_a_gpu_out_of_service() -> None:
    assert [each for each in Resolution if not each.is_fault] == [Resolution.IGNORE, Resolution.RESTART_APP]


@pytest.mark.parametrize(
    ("xid", "advice"),
    [
        (109, "An admin has to reset it (`nvidia-smi --gpu-reset`)"),
        (79, "An admin has to restart the machine"),
        (999, "An admin has to check it (`dmesg`)"),
    ],
)
def test_the_sentence(xid: int, advice: str) -> None:
    assert sentence(xid) == f"The driver reported a fault of the GPU (XID {xid}). {advice}"


def test_every_fault_has_advice() -> None:
    assert all(sentence(xid) for xid in range(1, 200) if resolution(xid).is_fault)


@pytest.mark.parametrize(
    ("xid", "words"),
    [
        (43, "needs no action, GPU stays in service"),
        (31, "error of a program, GPU stays in service"),
        (48, "fault of the GPU: reset the GPU"),
        (79, "fault of the GPU: restart the machine"),
        (999, "fault of the GPU: contact support"),
    ],
)
def test_the_meaning_in_a_few_words(xid: int, words: str) -> None:
    assert meaning(xid) == words
