"""Hub, broker, agents and labs of three machines together: each lab has a GPU of its machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.errors import APIError
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network

from tests.swarm.cluster import WITH_RUNTIME, Cluster
from tests.swarm.swarm_hub import NAME, SUBNET, Agent, SwarmHub, script_of, uuid_of
from tests.swarm.test_services import GATEWAY_IMAGE, container_of

pytestmark = pytest.mark.docker


@dataclass
class Site:
    """The hub on machine a, whose broker has a's GPU, and the agents of b and c."""

    machines: Cluster
    hub: SwarmHub
    agents: dict[str, Agent]

    @property
    def all(self) -> list[str]:
        """The GPUs of all machines."""
        return sorted(map(uuid_of, "abc"))

    def home(self, user: str, machine: str) -> str:
        """The volume that the user's lab on that machine has as its home."""
        mounts = container_of(self.machines, machine, user)["Mounts"]
        return next(str(each["Name"]) for each in mounts if each["Type"] == "volume")

    def labs(self, machine: str) -> list[str]:
        """Whose labs run on that machine."""
        client = self.machines[machine].client
        found = client.containers(filters={"label": [f"gpuspawner.hub={NAME}", "gpuspawner.user"]})
        return sorted(each["Labels"]["gpuspawner.user"] for each in found)

    def environment(self, user: str, machine: str) -> dict[str, str]:
        """The environment of the user's lab, which must run on that machine."""
        found = container_of(self.machines, machine, user)["Config"]["Env"]
        return dict(line.split("=", 1) for line in found)

    def log(self) -> str:
        """What hub, broker and agents have written last."""
        parts = [self.hub.log_path.read_text()[-8000:]]
        parts += [f"agent of {name}:\n{agent.log[-3000:]}" for name, agent in self.agents.items()]
        return "\n".join(parts)


@pytest.fixture(scope="module")
def site(machines: Cluster, engine: docker.APIClient) -> Iterator[Site]:
    """Everything runs, and the GPUs of all three machines are in service."""
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    client = machines.manager.client
    list(client.load_image(b"".join(engine.get_image(GATEWAY_IMAGE))))
    ensure_network(calls_of(client), NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    hub = SwarmHub(machines, folder, GATEWAY_IMAGE)
    hub.use_script(script_of(machines.manager))
    found = Site(machines, hub, {name: Agent(machines[name], hub) for name in ("b", "c")})
    try:
        hub.start()
        for agent in found.agents.values():
            agent.join()
            agent.start()
        hub.until(lambda: hub.serving() == found.all)
        yield found
    finally:
        for agent in found.agents.values():
            agent.kill()
        hub.close()
        print(found.log())  # pytest shows it when a test fails
        for service in client.services(filters={"label": f"gpuspawner.hub={NAME}"}):
            client.remove_service(service["ID"])
        with suppress(APIError):
            client.remove_container(f"{NAME}-gateway", force=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("machine", ["b", "a", "c"])
def test_a_lab_has_the_gpu_of_the_machine_that_it_is_on(site: Site, machine: str) -> None:
    hub = site.hub
    hub.spawn(f"ada-{machine}", f"on-{machine}")
    assert hub.call("GET", f"/user/ada-{machine}/api") == (200, '{"version": "stub"}\n')
    assert hub.leases() == [(f"ada-{machine}", "running")]
    environment = site.environment(f"ada-{machine}", machine)
    assert environment["NVIDIA_VISIBLE_DEVICES"] == uuid_of(machine)
    hub.stop(f"ada-{machine}")
    assert hub.leases() == []


def test_a_home_stays_on_its_machine_and_gpus_come_to_it(site: Site) -> None:
    """Any GPU would do: after a first start on b, all of the user's servers run there, or wait for it."""
    hub = site.hub
    hub.spawn("bea", "on-b")
    volume = site.home("bea", "b")
    hub.stop("bea")
    hub.spawn("bea", "any")
    assert site.environment("bea", "b")["NVIDIA_VISIBLE_DEVICES"] == uuid_of("b")
    assert site.home("bea", "b") == volume
    hub.stop("bea")
    hub.spawn("bea", "cpu")
    assert site.home("bea", "b") == volume
    hub.stop("bea")
    assert hub.refusal("bea", "on-c") == (
        "You asked for a GPU with 'l40s' in its name on the machine b, where your files are, but it has "
        "none: choose another tier, or CPU."
    )
    hub.spawn("cid", "on-b")  # somebody else has it, so bea waits, although a and c have one each
    hub.ask("bea", "any")
    hub.until(lambda: hub.leases() == [("bea", "waiting"), ("cid", "running")])
    assert "Your files are on the machine b: it starts there" in hub.news("bea")
    hub.stop("cid")
    hub.until(lambda: hub.server("bea").get("ready"))
    assert site.environment("bea", "b")["NVIDIA_VISIBLE_DEVICES"] == uuid_of("b")
    hub.stop("bea")


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
    hub.until(lambda: hub.serving() == [uuid_of("a"), uuid_of("c")])
    assert hub.leases() == [("dan", "running")]
    hub.ask("eva", "on-b")
    hub.until(lambda: hub.leases() == [("dan", "running"), ("eva", "waiting")])
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


def test_the_manager_starts_again_and_the_broker_is_killed(site: Site) -> None:
    hub, a = site.hub, site.machines.manager
    hub.spawn("ida", "on-b")
    hub.kill_broker()
    hub.until(lambda: hub.leases() == [("ida", "running")] and hub.serving() == site.all)
    a.kill()
    hub.until(lambda: hub.serving() == [])  # nothing is known without the manager
    assert hub.leases() == [("ida", "running")]
    a.start()
    hub.until(lambda: hub.serving() == site.all)
    assert hub.leases() == [("ida", "running")]
    hub.until(lambda: hub.call("GET", "/user/ida/api")[0] == 200)
    hub.stop("ida")
    assert site.labs("b") == []


def test_an_orphan_of_a_dead_hub_is_removed_with_its_service(site: Site) -> None:
    """A service with a lease that nobody holds, as if the hub had died between create and start."""
    hub, client = site.hub, site.machines.manager.client
    labels = {
        "gpuspawner.lease": "f" * 32, "gpuspawner.node": "b", "gpuspawner.broker": str(hub.folder),
        "gpuspawner.hub": NAME, "gpuspawner.user": "jon",
    }  # fmt: skip
    task = {
        "ContainerSpec": {
            "Image": client.inspect_image("gpuspawner-hubtest/lab")["Id"],
            "Labels": labels,
            "Command": ["/lab"],
        },
        "RestartPolicy": {"Condition": "none"},
        "Placement": {"Constraints": [f"node.id=={site.machines.node_id('b')}"]},
    }
    made = client.create_service(
        task, name=f"{NAME}-jon", labels=labels, mode={"Replicated": {"Replicas": 0}},
        endpoint_spec={"Mode": "dnsrr"},
    )["ID"]  # fmt: skip
    hub.until(lambda: made not in [each["ID"] for each in client.services()])
    assert hub.leases() == []


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
