"""Agents, engines, cables, the manager and the broker end: labs go on, and no GPU is given out twice."""

from __future__ import annotations

import time

import pytest

from tests.swarm.cluster import WITH_RUNTIME
from tests.swarm.site import Site, site
from tests.swarm.swarm_hub import uuid_of
from tests.swarm.test_services import container_of

__all__ = ["site"]

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_agent_and_engine_of_a_machine_die_and_its_lab_keeps_its_lease(site: Site) -> None:
    hub, b = site.hub, site.machines["b"]
    hub.spawn("dan", "on-b")
    site.agents["b"].kill()
    hub.until(lambda: hub.serving() == [uuid_of("a"), uuid_of("c")])
    assert hub.call("GET", "/user/dan/api")[0] == 200
    assert hub.leases() == [("dan", "running")]
    site.agents["b"].start()
    hub.until(lambda: hub.serving() == site.all)
    assert hub.leases() == [("dan", "running")]

    b.kill()  # the engine alone: what runs in its containers ends when it starts again, without live-restore
    try:
        hub.until(lambda: hub.serving() == [uuid_of("a"), uuid_of("c")])
        assert hub.leases() == [("dan", "running")]
        hub.ask("eva", "on-b")
        hub.until(lambda: hub.leases() == [("dan", "running"), ("eva", "waiting")])
    finally:
        b.start()
    hub.until(lambda: hub.server("eva").get("ready"))
    assert hub.leases() == [("eva", "running")]
    assert site.environment("eva", "b")["NVIDIA_VISIBLE_DEVICES"] == uuid_of("b")
    hub.stop("eva")
    hub.until(lambda: not hub.server("dan"))


def test_a_cut_machine_keeps_its_lab_and_its_gpu_until_it_is_back(site: Site) -> None:
    """Its user has stopped the server meanwhile, and somebody waits: never two labs with the GPU."""
    hub, c = site.hub, site.machines["c"]
    hub.spawn("fay", "on-c")
    hub.spawn("gus", "on-a")
    c.cut()
    try:
        hub.until(lambda: uuid_of("c") not in hub.serving())
        assert container_of(site.machines, "c", "fay")["State"]["Running"]
        assert hub.call("GET", "/user/gus/api")[0] == 200
        hub.call("DELETE", "/hub/api/users/fay/server")
        hub.ask("hal", "on-c")
        hub.until(lambda: hub.leases()[1:] == [("gus", "running"), ("hal", "waiting")])
        time.sleep(5)  # some rounds
        assert dict(hub.leases())["fay"] in ("running", "releasing")
        assert dict(hub.leases())["hal"] == "waiting"
        assert container_of(site.machines, "c", "fay")["State"]["Running"]
    finally:
        c.mend()
    hub.until(lambda: hub.server("hal").get("ready"), 120)
    assert hub.leases() == [("gus", "running"), ("hal", "running")]
    assert site.labs("c") == ["hal"]
    hub.stop("hal")
    hub.stop("gus")


def test_a_broker_that_starts_while_a_machine_is_cut_gives_nothing_there_twice(site: Site) -> None:
    """It knows only its ledger of the cut machine. Somebody waits for that GPU when the cable is back."""
    hub, c = site.hub, site.machines["c"]
    hub.spawn("lea", "on-c")
    c.cut()
    try:
        hub.until(lambda: uuid_of("c") not in hub.serving())
        hub.kill_broker()
        hub.until(lambda: hub.serving() == [uuid_of("a"), uuid_of("b")])
        assert hub.leases() == [("lea", "running")]
        hub.ask("max", "on-c")
        hub.until(lambda: hub.leases() == [("lea", "running"), ("max", "waiting")])
    finally:
        c.mend()
    hub.until(lambda: hub.serving() == site.all, 120)
    assert hub.leases() == [("lea", "running"), ("max", "waiting")]
    assert site.labs("c") == ["lea"]
    hub.stop("lea")
    hub.until(lambda: hub.server("max").get("ready"))
    assert site.labs("c") == ["max"]
    hub.stop("max")


@pytest.mark.parametrize("victim", ["agent", "broker", "engine"])
def test_what_dies_while_a_lab_starts_leaves_no_lease_without_a_lab(site: Site, victim: str) -> None:
    """In the middle of a start: in the end, it runs with its GPU, or nothing of it is left."""
    hub, b, user = site.hub, site.machines["b"], f"ned-{victim}"
    hub.ask(user, "on-b")
    hub.until(lambda: dict(hub.leases()).get(user) in ("reserved", "running"))
    if victim == "agent":
        site.agents["b"].kill()
        site.agents["b"].start()
    elif victim == "broker":
        hub.kill_broker()
    else:
        b.kill()
        b.start()
    hub.until(lambda: hub.serving() == site.all, 120)

    def settled() -> bool:
        server = hub.server(user)
        running = dict(hub.leases()) == {user: "running"} and site.labs("b") == [user]
        return (bool(server.get("ready")) and running) or (
            not server and not hub.leases() and not site.labs("b")
        )

    hub.until(settled, 120)
    if hub.leases():
        assert site.environment(user, "b")["NVIDIA_VISIBLE_DEVICES"] == uuid_of("b")
        hub.stop(user)
    assert site.labs("b") == []


def test_a_machine_that_left_the_swarm_keeps_its_leases_until_it_is_removed_there(site: Site) -> None:
    """Its Docker has nothing of the lab, but Swarm has not said that it won't start it again."""
    hub, c, client = site.hub, site.machines["c"], site.machines.manager.client
    hub.spawn("ora", "on-c")
    node = site.machines.node_id("c")
    c.client.leave_swarm(force=True)
    hub.until(lambda: site.labs("c") == [])
    hub.until(lambda: uuid_of("c") not in hub.serving())
    assert "join-token" in hub.reason(uuid_of("c"))
    hub.call("DELETE", "/hub/api/users/ora/server")
    time.sleep(5)  # some rounds
    assert [user for user, _ in hub.leases()] == ["ora"]
    client.remove_node(node, force=True)
    hub.until(lambda: hub.leases() == [])
    hub.until(lambda: not hub.server("ora"), 120)
    site.machines.join_one("c")
    hub.until(lambda: hub.serving() == site.all, 120)
    hub.spawn("pia", "on-c")
    hub.stop("pia")


def test_the_manager_starts_again_and_the_broker_is_killed(site: Site) -> None:
    hub, a = site.hub, site.machines.manager
    hub.spawn("ida", "on-b")
    hub.kill_broker()
    hub.until(lambda: hub.leases() == [("ida", "running")] and hub.serving() == site.all)
    a.kill()
    try:
        hub.until(lambda: hub.serving() == [uuid_of("a")])  # nothing is known of the others without it
        assert hub.leases() == [("ida", "running")]
    finally:
        a.start()
    hub.until(lambda: hub.serving() == site.all)
    assert hub.leases() == [("ida", "running")]
    hub.until(lambda: hub.call("GET", "/user/ida/api")[0] == 200)
    hub.stop("ida")
    assert site.labs("b") == []


def test_a_machine_whose_default_runtime_gives_no_gpus_is_out_of_use(site: Site) -> None:
    hub, c = site.hub, site.machines["c"]
    c.kill()
    c.settings = {}
    c.start()
    hub.until(lambda: "nvidia-ctk runtime configure" in hub.reason(uuid_of("c")))
    assert "choose" in hub.refusal("kai", "on-c").lower()
    c.kill()
    c.settings = dict(WITH_RUNTIME)
    c.start()
    hub.until(lambda: hub.serving() == site.all)
