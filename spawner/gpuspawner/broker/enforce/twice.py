"""GPUs that two machines say they have: the first one keeps them, and the other one is told of.

A GPU is in one machine. Two have it if one is a copy of the other, or if two agents run on one machine; both
would start servers on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ...node.api import NodeFacts


class Twice:
    """One a machine. `node_with(uuid)` is the machine that has a device; "" if none has it yet."""

    def __init__(self, node: str, node_with: Callable[[str], str], log: logging.Logger) -> None:
        self._node, self._node_with, self._log = node, node_with, log
        self.sentences: tuple[str, ...] = ()
        """One for each device that another machine has, as of the last look."""

    def without(self, facts: NodeFacts) -> NodeFacts:
        """The facts without devices that another machine has. Each is logged once."""
        others = {device.uuid: self._node_with(device.uuid) for device in facts.devices}
        sentences = tuple(self._say(uuid, node) for uuid, node in others.items() if self._is_other(node))
        for sentence in sentences:
            if sentence not in self.sentences:
                self._log.error("Machine %s: %s", self._node, sentence)
        self.sentences = sentences
        if not sentences:
            return facts
        mine = tuple(device for device in facts.devices if not self._is_other(others[device.uuid]))
        return replace(facts, devices=mine)

    def _is_other(self, node: str) -> bool:
        return node not in ("", self._node)

    def _say(self, uuid: str, node: str) -> str:
        return (
            f"{uuid} is a GPU of machine {node}, too, and is leased there only. A GPU is in one machine: if "
            "this one is a copy of that one, or an agent on the same machine, run `gpuspawner node leave` "
            f"here; if the GPU was moved here, run `gpuspawner node forget {node}` on the broker's machine"
        )
