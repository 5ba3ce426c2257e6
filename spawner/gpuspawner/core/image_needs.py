"""What an image needs from a machine, according to its labels, and why it can't work there. Pure.

The images of this project declare it in the labels `gpuspawner.min-driver` and `gpuspawner.needs-gpu`;
NVIDIA's images in variables like `NVIDIA_REQUIRE_CUDA`, which nvidia-container-toolkit reads. An image with
neither is accepted everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_DRIVER_LABEL = "gpuspawner.min-driver"
NEEDS_GPU_LABEL = "gpuspawner.needs-gpu"
_REQUIRE = "NVIDIA_REQUIRE_"
_DISABLE = "NVIDIA_DISABLE_REQUIRE"
_TERM = re.compile(r"([a-z]+)(>=|<=|!=|=|<|>)(.+)")
_COMPARE = {
    ">=": lambda order: order >= 0, "<=": lambda order: order <= 0, "!=": lambda order: order != 0,
    "=": lambda order: order == 0, "<": lambda order: order < 0, ">": lambda order: order > 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Needs:
    """Lowest driver ("580"; "" for any), whether it needs a GPU, and NVIDIA's conditions."""

    min_driver: str = ""
    gpu: bool = False
    conditions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.min_driver or self.gpu or self.conditions)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the broker says about its machine: versions as text, None if unknown or simulated."""

    simulated: bool
    driver_version: str | None = None
    cuda_version: str | None = None


def read_needs(image: Mapping[str, Any]) -> Needs:
    """The needs declared in Docker's document of an image."""
    config = image.get("Config") or {}
    labels = config.get("Labels") or {}
    environment = dict(item.partition("=")[::2] for item in config.get("Env") or () if isinstance(item, str))
    conditions = tuple(environment[key] for key in sorted(environment) if key.startswith(_REQUIRE))
    if environment.get(_DISABLE, "").lower() in ("1", "true"):
        conditions = ()
    return Needs(
        min_driver=str(labels.get(MIN_DRIVER_LABEL) or ""),
        gpu=labels.get(NEEDS_GPU_LABEL) == "1",
        conditions=tuple(condition for condition in conditions if condition),
    )


def read_machine(document: Mapping[str, Any] | None) -> Machine | None:
    """The machine in the broker's `GET /tiers`; None if it couldn't be asked."""
    if document is None:
        return None
    driver = document.get("driver")
    driver = driver if isinstance(driver, Mapping) else {}
    return Machine(bool(document.get("simulated")), driver.get("version"), driver.get("cuda"))


def obstacle(image: str, needs: Needs, gpu: bool, machine: Machine | None) -> str:
    """Why a server with this image, with or without a GPU, can't work here; "" if no reason is known."""
    if needs.gpu and not gpu:
        return f"{image} needs a GPU: choose a tier with a GPU, or another image."
    if not gpu or machine is None:
        return ""
    if machine.simulated:
        if not needs.gpu:
            return ""
        return f"{image} needs a real GPU, but the GPUs of this machine are simulated: choose another image."
    here = machine.driver_version
    if here is None:
        return ""
    if needs.min_driver and _order(here, needs.min_driver) < 0:
        return _refuse(image, f"driver ≥ {needs.min_driver}", here)
    for condition in needs.conditions:
        if not _holds(condition, machine):
            first = condition.split()[0].split(",")[0]
            return _refuse(image, first.replace(">=", " ≥ ").replace("cuda", "a driver with CUDA"), here)
    return ""


def _refuse(image: str, needed: str, here: str) -> str:
    return (
        f"{image} needs {needed}, this machine's driver is {here}: choose another image, or a server "
        "without a GPU. Admin: update the driver."
    )


def _holds(condition: str, machine: Machine) -> bool:
    """NVIDIA's syntax: spaces separate groups, and one group must hold; commas separate terms, and all must.

    libnvidia-container, `cuda>=12.8 brand=tesla,driver>=535,driver<536`. A term that we
    can't check (brand, arch) counts as true.
    """
    known = {"driver": machine.driver_version, "cuda": machine.cuda_version}
    return any(all(_term_holds(term, known) for term in group.split(",")) for group in condition.split())


def _term_holds(term: str, known: Mapping[str, str | None]) -> bool:
    match = _TERM.fullmatch(term)
    here = known.get(match[1]) if match else None
    return match is None or here is None or bool(_COMPARE[match[2]](_order(here, match[3])))


def version_of(text: str) -> tuple[int, ...]:
    """The numbers in "580.159.04"; empty if there are none."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:8])


def _order(one: str, other: str) -> int:
    """-1, 0 or 1 as `one` is older, the same or newer; "580" is "580.0", and of "12" any 12.x is newer."""
    first, second = version_of(one), version_of(other)
    length = max(len(first), len(second))
    padded = [version + (0,) * (length - len(version)) for version in (first, second)]
    return (padded[0] > padded[1]) - (padded[0] < padded[1])
