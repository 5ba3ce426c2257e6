"""Which machine has whose home. A home is a volume of one machine, and never comes up empty on another.

It is written into the Swarm before the first lab with the home starts: a config object for each home, with
the volume and the machine as labels. Swarm keeps it with its own state. The hub reads and claims, the broker
moves. While a home is moved, a second config object, the hold, keeps its user's servers from starting.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..core.errors import EngineFault, StartConflict, StartFault
from ..core.labels import BROKER, NODE
from .call import Call, or_none, unless_gone

HOME = "gpuspawner.home"
"""The label with the name of the volume."""
HELD = "gpuspawner.home-held"
"""The label of a hold, with the name of the volume; its other label is the machine to which it is moved."""
_TAKEN = 409
_MOVING, _HOLD = "-moving", "-held"


@dataclass(frozen=True, slots=True)
class HomePlaces:
    """The homes of a Swarm. `own` is the machine whose engine is asked. Methods block, raise EngineFault."""

    own: str

    def machine_of(self, call: Call, volume: str) -> str:
        """The machine that has the home; "" if nobody has it yet.

        One that is only known as a volume of the hub's machine is from the time before the Swarm.
        """
        written = _written(call, volume)
        return written or ("" if or_none(call, "inspect_volume", volume) is None else self.own)

    def claim(self, call: Call, volume: str, machine: str) -> None:
        """Writes down that the home is on this machine.

        Raises StartFault if it is on another, StartConflict if it is held.
        """
        check_free(call, volume)
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
            unless_gone(call, "remove_config", name)
            call("create_config", name, b"-", labels=labels)
        unless_gone(call, "remove_config", _name(volume) + _MOVING)


# ---- the hold: no server with the home starts while it is moved


def hold(call: Call, volume: str, machine: str, broker: str) -> None:
    """No server with this home starts from now on. This broker moves it to that machine. Raises EngineFault.

    A start that has looked before has its service already: look at the services after this.
    """
    name = _name(volume) + _HOLD
    unless_gone(call, "remove_config", name)
    call("create_config", name, b"-", labels={HELD: volume, NODE: machine, BROKER: broker})


def release(call: Call, volume: str) -> None:
    """Servers with this home may start again; no error if they may already. Raises EngineFault."""
    unless_gone(call, "remove_config", _name(volume) + _HOLD)


def held(call: Call, broker: str = "") -> dict[str, str]:
    """The volumes of homes that this broker moves ("": any), and the machine to which. Raises EngineFault."""
    wanted = [HELD, f"{BROKER}={broker}"] if broker else [HELD]
    labels = [each["Spec"].get("Labels") or {} for each in call("configs", filters={"label": wanted})]
    return {each[HELD]: str(each.get(NODE, "")) for each in labels if HELD in each}


def check_free(call: Call, volume: str) -> None:
    """Raises StartConflict while the home is moved, EngineFault.

    Who starts a server looks twice: before, and when the service is there. The broker sets the hold before it
    looks at the services. So one of the two sees the other.
    """
    found = or_none(call, "inspect_config", _name(volume) + _HOLD)
    if found is not None:
        raise StartConflict(
            f"Your files are being moved to the machine {found['Spec']['Labels'].get(NODE, '')}. Start your "
            "server again in some minutes."
        )


def used_volumes(call: Call) -> set[str]:
    """The volumes that services of the Swarm mount, also services without a task. Raises EngineFault."""
    specs = [each["Spec"]["TaskTemplate"].get("ContainerSpec") or {} for each in call("services")]
    return {str(mount.get("Source")) for spec in specs for mount in spec.get("Mounts") or ()}


def _name(volume: str) -> str:
    """A config's name has up to 64 characters, a volume's up to 255."""
    return f"gpuspawner-home-{hashlib.sha256(volume.encode()).hexdigest()[:40]}"


def _written(call: Call, volume: str) -> str:
    for name in (_name(volume), _name(volume) + _MOVING):
        found = or_none(call, "inspect_config", name)
        if found is not None:
            return str(found["Spec"]["Labels"].get(NODE, ""))
    return ""
