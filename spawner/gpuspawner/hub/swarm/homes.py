"""Which machine has whose home. A home is a volume of one machine, and never comes up empty on another.

It is written into the Swarm before the first lab with the home starts: a config object for each home, with
the volume and the machine as labels. Swarm keeps it with its own state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ...core.errors import EngineFault, StartFault
from ...core.labels import NODE
from ..call import Call, or_none

HOME = "gpuspawner.home"
"""The label with the name of the volume."""
_TAKEN = 409


@dataclass(frozen=True, slots=True)
class Homes:
    """The homes of a Swarm. `own` is the machine whose engine is asked. Methods block, raise EngineFault."""

    own: str

    def machine_of(self, call: Call, volume: str) -> str:
        """The machine that has the home; "" if nobody has it yet.

        One that is only known as a volume of the hub's machine is from the time before the Swarm.
        """
        written = _written(call, volume)
        return written or ("" if or_none(call, "inspect_volume", volume) is None else self.own)

    def claim(self, call: Call, volume: str, machine: str) -> None:
        """Writes down that the home is on this machine. Raises StartFault if it is on another."""
        known = self.machine_of(call, volume)
        if known and known != machine:
            raise StartFault(
                f"Your files are on the machine {known}, and this server would start on {machine}. Choose a "
                "server without a GPU, which starts there, or tell an admin.",
                "home",
            )
        try:
            call("create_config", _name(volume), b"-", labels={HOME: volume, NODE: machine})
        except EngineFault as fault:
            if fault.status != _TAKEN:
                raise
            if (written := _written(call, volume)) != machine:  # another start was faster
                raise StartFault(f"Your files are on the machine {written}: try again.", "home") from fault

    def all(self, call: Call) -> dict[str, str]:
        """The machine of each home that is written down, by the name of its volume."""
        found = call("configs", filters={"label": HOME})
        labels = [each["Spec"].get("Labels") or {} for each in found]
        return {each[HOME]: self.machine_of(call, each[HOME]) for each in labels if HOME in each}

    def move(self, call: Call, volume: str, machine: str) -> None:
        """Writes down that the home is on this machine now; its files must be there already.

        Labels of a config can't be changed by docker-py, so it is made again. Meanwhile a second one says the
        same: whatever ends this, one of them is there, and the home never counts as new.
        """
        labels = {HOME: volume, NODE: machine}
        for name in (_name(volume) + _MOVING, _name(volume)):
            _remove(call, name)
            call("create_config", name, b"-", labels=labels)
        _remove(call, _name(volume) + _MOVING)


_MOVING = "-moving"


def _remove(call: Call, name: str) -> None:
    try:
        call("remove_config", name)
    except EngineFault as fault:
        if fault.status != 404:
            raise


def _name(volume: str) -> str:
    """A config's name has up to 64 characters, a volume's up to 255."""
    return f"gpuspawner-home-{hashlib.sha256(volume.encode()).hexdigest()[:40]}"


def _written(call: Call, volume: str) -> str:
    for name in (_name(volume), _name(volume) + _MOVING):
        found = or_none(call, "inspect_config", name)
        if found is not None:
            return str(found["Spec"]["Labels"].get(NODE, ""))
    return ""
