"""Converts `c.GpuSite.node_labels` to values, or raises ConfigError with the remedy. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError
from ..core.model import Tier
from .tiers import NAME

MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
"""Valid names of machines, as they join."""


def parse_node_labels(raw: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The labels of each machine, by its name. Raises ConfigError."""
    return {parse_machine(name, "c.GpuSite.node_labels"): _labels(name, given) for name, given in raw.items()}


def parse_machine(name: object, where: str) -> str:
    """The name of a machine. Raises ConfigError."""
    if not isinstance(name, str) or MACHINE.fullmatch(name) is None:
        raise ConfigError(f"{where}: {name!r} is no machine's name: `gpuspawner node list` shows them")
    return name


def check_labels(tiers: Sequence[Tier], labels: Mapping[str, frozenset[str]]) -> None:
    """Raises ConfigError for a tier whose label no machine has."""
    known = frozenset[str]().union(*labels.values())
    for tier in tiers:
        label = tier.want.node_label
        if label is not None and label not in known:
            raise ConfigError(
                f"c.GpuSite.tiers: tier {tier.name!r}: no machine has the label {label!r}: give it to one, "
                f'like c.GpuSite.node_labels = {{"gpu-b": ["{label}"]}}, or remove node_label'
            )


def _labels(name: str, given: object) -> frozenset[str]:
    if not isinstance(given, list | tuple | set | frozenset):
        raise ConfigError(
            f'c.GpuSite.node_labels: {name}: {given!r}: give a list of labels, like ["fast-disk"]'
        )
    for label in given:
        if not isinstance(label, str) or NAME.fullmatch(label) is None:
            raise ConfigError(
                f"c.GpuSite.node_labels: {name}: label {label!r} can't be used: use lower-case letters, "
                "digits, '-', '_'"
            )
    return frozenset(given)
