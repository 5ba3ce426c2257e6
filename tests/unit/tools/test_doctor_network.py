"""Doctor's word on the labs' network: facts in, one line out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.tools.doctor import BrokerFacts, Facts, Finding, Level
from gpuspawner.tools.doctor.checks import main_job_runs
from gpuspawner.tools.doctor.facts import MetadataFacts, NetworkFacts
from gpuspawner.tools.doctor.network import network_findings, read_network, strangers_of
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


def test_a_network_that_containers_use_is_not_to_be_removed() -> None:
    started = (
        "The hub was probably started with GPUSPAWNER_SUBNET=10.9.0.0/24: set it (c.GpuDockerSpawner.subnet) "
        "for this command, too; if the network belongs to another hub, give this hub a GPUSPAWNER_NAME of "
        "its own"
    )
    remedies = [
        finding.remedy
        for running in ((), ("lab-ada",), ("lab-ada", "lab-ben"), ("a", "b", "c"))
        for finding in said(subnets=("10.9.0.0/24",), running=running)
    ]
    assert remedies == [
        f"{started}; if nobody needs it, `docker network rm labs`",
        f"{started}. Don't remove it: lab-ada runs in it",
        f"{started}. Don't remove it: lab-ada and 1 other run in it",
        f"{started}. Don't remove it: a and 2 others run in it",
    ]


def test_the_containers_of_a_broken_network_are_stopped_first() -> None:
    remedies = [said(address_here=False, running=names)[0].remedy for names in ((), ("lab-ada", "lab-ben"))]
    assert remedies == [
        "Run `docker network rm labs`: it is created again",
        "Stop its containers (lab-ada, lab-ben), then run `docker network rm labs`: it is created again",
    ]


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


@pytest.mark.parametrize(
    ("metadata", "level", "text"),
    [
        (MetadataFacts(False, rules_missing=6), Level.OK, "none answers this machine at 169.254.169.254"),
        (MetadataFacts(True, rules_missing=0), Level.OK, "labs don't reach 169.254.169.254"),
        (
            MetadataFacts(True, rules_missing=2),
            Level.PROBLEM,
            "labs reach 169.254.169.254, which gives them the keys of this machine",
        ),
        (
            MetadataFacts(True),
            Level.NOTE,
            "whether labs reach 169.254.169.254 is not known: this user can't read the firewall",
        ),
        (
            MetadataFacts(True, block=False, rules_missing=6),
            Level.NOTE,
            "labs may reach 169.254.169.254, as c.GpuDockerSpawner.block_metadata = False allows",
        ),
    ],
)
def test_the_metadata_service(metadata: MetadataFacts, level: Level, text: str) -> None:
    facts = Facts(network=replace(GOOD, metadata=metadata), broker=ANSWERS)
    finding = next(network_findings(facts))
    assert (finding.subject, finding.level, finding.text) == ("Metadata service", level, text)
    command = "Run `python -m gpuspawner.tools.block_metadata --config FILE` as root, after each boot"
    assert (finding.remedy == command) is ("reach" in text and "don't" not in text and "may" not in text)


def test_without_a_hub_missing_rules_are_a_note_and_servers_can_run() -> None:
    facts = Facts(network=replace(GOOD, metadata=MetadataFacts(True, block=True, rules_missing=6)))
    finding = next(network_findings(facts))
    assert finding == Finding(
        Level.NOTE,
        "Metadata service",
        "no rule of the firewall keeps labs from 169.254.169.254, which gives them the keys of this machine; "
        "a hub that runs as root adds the rules",
        "If the hub doesn't run as root: run `python -m gpuspawner.tools.block_metadata --config FILE` as "
        "root, after each boot",
    )
    assert main_job_runs(tuple(network_findings(facts)))


def test_containers_of_dockerspawner_are_named() -> None:
    containers = [
        {"Names": ["/jupyter-ben"], "Labels": {}},
        {"Names": ["/gpuspawner-ada"], "Labels": None},
        {"Names": ["/gpuspawner-cy"], "Labels": {"gpuspawner.hub": "hub"}},
        {"Names": ["/postgres"], "Labels": {}},
    ]
    strangers = strangers_of(containers, "gpuspawner")
    assert strangers == ("gpuspawner-ada", "jupyter-ben")
    finding = next(network_findings(Facts(network=replace(GOOD, strangers=strangers), broker=ANSWERS)))
    assert finding == Finding(
        Level.NOTE,
        "Other containers",
        "gpuspawner-ada and 1 more have names of labs, but no label of a hub, as containers of "
        "DockerSpawner: nobody here stops them, and a server with such a name can't start",
        "Save what is in them, then `docker rm -f gpuspawner-ada jupyter-ben`",
    )
    assert strangers_of([{}], "gpuspawner") == ()
