"""The machines of a Swarm by name, and which of them can start something."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError, StartFault
from gpuspawner.hub.swarm.machines import Machine, check_manager, find_machine, own_machine, read_machines


def node(number: str, host: str, state: str = "ready", availability: str = "active", **labels: str) -> Any:
    return {
        "ID": number,
        "Spec": {"Labels": labels, "Availability": availability},
        "Description": {"Hostname": host},
        "Status": {"State": state},
    }


MACHINES = read_machines(
    [
        node("3", "c", state="down"),
        node("1", "host-1", **{"gpuspawner.node": "a"}),
        node("2", "b"),
        node("4", "d", availability="drain"),
        node("5", "e"),
        node("6", "e"),
    ]
)


def test_a_machine_has_the_name_of_its_label_else_of_its_host() -> None:
    assert (
        Machine("a", "1"),
        Machine("b", "2"),
        Machine("c", "3", "it can't be reached (Swarm says 'down')"),
        Machine("d", "4", "an admin has taken it out of use (it is on 'drain')"),
        Machine("e", "5"),
        Machine("e", "6"),
    ) == MACHINES
    assert find_machine(MACHINES, "a") == Machine("a", "1")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("c", "can't start on the machine c: it can't be reached"),
        ("d", "can't start on the machine d: an admin has taken it out of use"),
        ("e", "The machine e has the name of another one"),
        ("f", "The machine f isn't part of the Swarm"),
    ],
)
def test_a_machine_where_nothing_can_start(name: str, why: str) -> None:
    with pytest.raises(StartFault, match=why):
        find_machine(MACHINES, name)


def test_where_the_files_are_on_a_machine_that_is_away_the_user_reads_that() -> None:
    with pytest.raises(StartFault) as caught:
        find_machine(MACHINES, "c", has_files=True)
    assert str(caught.value) == (
        "Your server can't start on the machine c: it can't be reached (Swarm says 'down'). Your files are "
        "there, so it can't start elsewhere. Try again later, or tell an admin."
    )


def test_the_hub_s_machine_must_be_a_manager() -> None:
    def call(method: str) -> Any:
        return {"Swarm": {"NodeID": "2", "ControlAvailable": True}}

    assert own_machine(call, MACHINES) == Machine("b", "2")
    with pytest.raises(ConfigError, match="docker swarm init"):
        check_manager({"NodeID": "2", "ControlAvailable": False})
    with pytest.raises(ConfigError, match="docker swarm init"):
        check_manager({})
