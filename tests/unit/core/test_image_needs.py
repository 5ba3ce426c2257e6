"""Images held against a machine: by the project's labels, by NVIDIA's conditions, and not without either."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.image_needs import Machine, Needs, obstacle, read_machine, read_needs

REAL = Machine(False, "535.230.02", "12.2")
SIMULATED = Machine(True)
# The start of what nvidia/cuda:12.8 carries.
REQUIRE = "cuda>=12.8 brand=unknown,driver>=470,driver<471 brand=tesla,driver>=535,driver<536"

CHOOSE = (
    "this machine's driver is 535.230.02: choose another image, or a server without a GPU. "
    "Admin: update the driver."
)


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        ({}, Needs()),
        ({"Labels": None, "Env": None}, Needs()),
        ({"Labels": {"gpuspawner.min-driver": "", "gpuspawner.needs-gpu": "0"}}, Needs()),
        ({"Labels": {"gpuspawner.min-driver": "580", "gpuspawner.needs-gpu": "1"}}, Needs("580", True)),
        (
            {"Env": ["PATH=/bin", f"NVIDIA_REQUIRE_CUDA={REQUIRE}", "NVIDIA_REQUIRE_X="]},
            Needs(conditions=(REQUIRE,)),
        ),
        ({"Env": [f"NVIDIA_REQUIRE_CUDA={REQUIRE}", "NVIDIA_DISABLE_REQUIRE=1"]}, Needs()),
    ],
)
def test_what_an_image_says(config: dict[str, Any], needs: Needs) -> None:
    assert read_needs({"Config": config}) == needs


@pytest.mark.parametrize(
    ("needs", "gpu", "machine", "sentence"),
    [
        (Needs(), True, REAL, ""),
        (Needs("535"), True, REAL, ""),
        (Needs("535.230.02"), True, REAL, ""),
        (Needs("535.230.2"), True, REAL, ""),
        (Needs("535.230.02.0"), True, REAL, ""),
        (Needs("9"), True, REAL, ""),
        (Needs("580"), True, REAL, f"needs driver ≥ 580, {CHOOSE}"),
        (Needs("535.1000"), True, REAL, f"needs driver ≥ 535.1000, {CHOOSE}"),
        (Needs("580"), False, REAL, ""),
        (Needs("580"), True, SIMULATED, ""),
        (Needs("580"), True, None, ""),
        (Needs("580"), True, Machine(False), ""),
        (Needs("580", True), False, None,
         "needs a GPU: choose a tier with a GPU, or another image."),
        (Needs("", True), True, SIMULATED,
         "needs a real GPU, but the GPUs of this machine are simulated: choose another image."),
        (Needs("", True), True, REAL, ""),
        (Needs(conditions=("cuda>=12.2",)), True, REAL, ""),
        (Needs(conditions=(REQUIRE,)), True, REAL, ""),  # a Tesla may; which one is here isn't known
        (Needs(conditions=(REQUIRE,)), True, Machine(False, "525.60.13", "12.0"),
         f"needs a driver with CUDA ≥ 12.8, {CHOOSE.replace('535.230.02', '525.60.13')}"),
        (Needs(conditions=("cuda>=12.0", "driver>=580")), True, REAL,
         f"needs driver ≥ 580, {CHOOSE}"),
        (Needs(conditions=("what ever, this",)), True, REAL, ""),
    ],
)  # fmt: skip
def test_what_stands_in_the_way(needs: Needs, gpu: bool, machine: Machine | None, sentence: str) -> None:
    assert obstacle("lab", needs, gpu, machine) == (f"lab {sentence}" if sentence else "")


@pytest.mark.parametrize(
    ("document", "machine"),
    [
        (None, None),
        ({}, Machine(False)),
        ({"simulated": True, "driver": None}, SIMULATED),
        ({"simulated": False, "driver": {"version": "535.230.02", "cuda": "12.2"}}, REAL),
    ],
)
def test_what_the_broker_says_of_its_machine(document: Any, machine: Machine | None) -> None:
    assert read_machine(document) == machine
