"""Doctor's word on the labs' network: facts in, one line out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.tools.doctor import BrokerFacts, Facts, Finding, Level
from gpuspawner.tools.doctor.facts import NetworkFacts
from gpuspawner.tools.doctor.network import network_findings, read_network
from traitlets.config import Config

SUBNET = "10.213.0.0/20"
MAKE = (
    "Run `python -m gpuspawner.tools.make_network --config FILE` with the hub's config file; the hub's "
    "service `network` does it within seconds"
)
GOOD = NetworkFacts("labs", SUBNET, present=True, subnets=(SUBNET,), hub_listens=True, address_here=True)
ANSWERS = BrokerFacts("/run/broker.sock")


def said(**changes: Any) -> list[Finding]:
    facts = Facts(network=replace(GOOD, **changes), broker=ANSWERS)
    found = list(network_findings(facts))
    assert {each.subject for each in found} <= {"Labs' network"}
    return found


def test_a_good_network() -> None:
    text = "'labs', 10.213.0.0/20; no lab reaches another"
    assert said() == [Finding(Level.OK, "Labs' network", text)]


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        (
            {"present": False, "subnets": ()},
            Level.PROBLEM,
            "Docker has no network 'labs', so nobody reaches the hub, and no server starts",
        ),
        ({"present": False, "hub_listens": False}, Level.PROBLEM, "Docker has no network 'labs'"),
        (
            {"subnets": ("10.9.0.0/24",)},
            Level.NOTE,
            "'labs' has the addresses 10.9.0.0/24, not 10.213.0.0/20",
        ),
        (
            {"address_here": False},
            Level.PROBLEM,
            "the hub's address 10.213.0.1 isn't on this machine: nobody reaches the hub",
        ),
        ({"isolated": False}, Level.NOTE, "in 'labs', 10.213.0.0/20, labs reach each other"),
    ],
)
def test_what_is_wrong_with_it(changes: dict[str, Any], level: Level, text: str) -> None:
    (finding,) = said(**changes)
    assert (finding.level, finding.text) == (level, text)
    assert finding.remedy


def test_before_the_first_start_a_missing_network_is_no_problem() -> None:
    missing = replace(GOOD, present=False)
    for broker in (None, BrokerFacts("/run/broker.sock", error="isn't running")):
        (finding,) = network_findings(Facts(network=missing, broker=broker))
        assert (finding.level, finding.remedy) == (Level.NOTE, MAKE)


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert list(network_findings(Facts())) == []
    assert said(error="Docker doesn't answer") == []
    assert read_network(Config({"GpuDockerSpawner": {"network_name": "bridge"}})) is None
    assert read_network(Config({"GpuDockerSpawner": {"subnet": "nonsense"}})) is None


def test_a_docker_that_does_not_answer_is_a_fact() -> None:
    nowhere = {"base_url": "tcp://127.0.0.1:1", "version": "1.41"}
    facts = read_network(Config({"GpuDockerSpawner": {"client_kwargs": nowhere}}))
    assert facts is not None
    assert (facts.name, facts.present, bool(facts.error)) == ("gpuspawner", False, True)
