"""The table of metrics in docs/admins.md is that of the code."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.served_metrics import Family, broker_text, families, hub_text

ROOT = Path(__file__).resolve().parents[2]
UNITS = {
    "gpu_seconds_total": "GPU-seconds",
    "seconds": "seconds",
    "bytes": "bytes",
    "up": "0 or 1",
    "ready": "0 or 1",
}
ROW = re.compile(r"^\| `(gpuspawner_\w+)` \| (\w+) \|(.*?)\| (.*?) \| (.+) \|$", re.MULTILINE)


def documented() -> dict[Family, str]:
    """Each row of the tables, with its unit."""
    found = {}
    for name, kind, labels, unit, _ in ROW.findall((ROOT / "docs" / "admins.md").read_text()):
        found[Family(name, kind, frozenset(re.findall(r"`(\w+)`", labels)))] = unit
    return found


def served() -> list[Family]:
    return [each for each in families(broker_text() + hub_text()) if each.name.startswith("gpuspawner_")]


def test_every_metric_is_documented_with_its_kind_and_labels() -> None:
    assert sorted(documented(), key=lambda each: each.name) == served()


def test_units_are_base_units_and_in_the_name() -> None:
    units = {
        family: next((unit for end, unit in UNITS.items() if family.name.endswith(f"_{end}")), "number")
        for family in served()
    }
    assert documented() == units
