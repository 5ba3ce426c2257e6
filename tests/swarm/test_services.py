"""Labs as real services: on their machine, behind the gateway, kept apart; how starts and ends are told."""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import docker
import pytest
from gpuspawner.config.swarm import GpuSwarm
from gpuspawner.core.errors import EngineFault, StartConflict, StartFault
from gpuspawner.core.labels import Owner
from gpuspawner.core.limits import Limits, Machine
from gpuspawner.hub.container import ContainerFacts, ContainerPlan, plan
from gpuspawner.hub.docker import DockerEngine
from gpuspawner.hub.docker_answers import exit_status, running
from gpuspawner.hub.home import Home, Volume
from gpuspawner.hub.swarm.opening import HubPlace, open_services
from gpuspawner.hub.swarm.services import Services
from gpuspawner.protocol.home_places import HomePlaces, hold, release, used_volumes

from tests.swarm.cluster import Cluster

pytestmark = pytest.mark.docker
HUB = f"swarmtest-{secrets.token_hex(3)}"
GATEWAY_IMAGE = "gpuspawner/base:0.1.0"
GIB = 1 << 30


@pytest.fixture(scope="module")
def with_python(machines: Cluster, engine: docker.APIClient) -> Cluster:
    """The machines, of which the manager's has an image with Python too, for the gateway."""
    data = b"".join(engine.get_image(GATEWAY_IMAGE))
    list(machines.manager.client.load_image(data))
    return machines


@pytest.fixture
async def services(with_python: Cluster) -> AsyncIterator[Services]:
    """The services of a hub on the manager's machine; all that is left of them is removed at the end."""
    docker_engine = DockerEngine({"base_url": with_python.manager.docker_host})
    settings = GpuSwarm(subnet="10.214.16.0/24", encrypted=False, heartbeat=5, gateway_image=GATEWAY_IMAGE)
    place = HubPlace(HUB, HUB, "10.213.16.0/24", "", lab_port=8888, hub_port=8081)
    found = open_services(place, settings, docker_engine, logging.getLogger("test"))
    yield found
    for service in await docker_engine.call("services", filters={"label": f"gpuspawner.hub={HUB}"}):
        await found.remove(service["ID"])
    await found.settle()
    docker_engine.close()


def lab(user: str, node: str, image: str = "lab", **changes: Any) -> ContainerPlan:
    """A lab of that user on that machine."""
    facts = ContainerFacts(
        name=f"{HUB}-{user}",
        image=f"gpuspawner-hubtest/{image}",
        command=("/lab",),
        owner=Owner(HUB, user, "", "gpu"),
        env={"JUPYTERHUB_SERVICE_PREFIX": f"/user/{user}/", "NOTE": "{{.Node.ID}}"},
        port=8888,
        container_user="1000:100",
        network=HUB,
        machine=Machine(raises_limits=False),
        **changes,
    )
    return replace(plan(facts, None), node=node)


async def start(services: Services, wanted: ContainerPlan) -> dict[str, Any]:
    """Creates and starts it; returns its document."""
    created = await services.create(wanted)
    before = await services.find(created.lab_id)
    assert before is not None
    assert not running(before)
    await services.start(created.lab_id)
    found = await services.find(created.lab_id)
    assert found is not None
    return found


def get(machines: Cluster, address: tuple[str, int], path: str) -> str:
    """What the manager's machine gets from there; "" if nobody answers."""
    host, port = address
    command = machines.manager.inside("curl", "-s", "-m", "3", f"http://{host}:{port}{path}")
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


async def answers(machines: Cluster, address: tuple[str, int], path: str) -> str:
    """As `get`, as soon as somebody answers."""
    for _ in range(40):
        if said := await asyncio.to_thread(get, machines, address, path):
            return said
        await asyncio.sleep(0.25)
    return ""


async def test_the_image_s_health_check_neither_delays_a_lab_nor_ends_it(
    services: Services, with_python: Cluster
) -> None:
    """Swarm would call it started after a good check, and end it after a bad one."""
    check = b'FROM gpuspawner-hubtest/lab\nHEALTHCHECK --interval=1s --retries=1 CMD ["/no-such-program"]\n'
    client: Any = with_python.manager.client
    list(client.build(fileobj=io.BytesIO(check), tag="gpuspawner-hubtest/checked", rm=True))
    document = await start(services, lab("ada", "a", "checked"))
    await asyncio.sleep(4)
    found = await services.find(document["Id"])
    assert found is not None
    assert running(found)


def container_of(machines: Cluster, node: str, user: str) -> dict[str, Any]:
    """Docker's document of the user's running container on that machine."""
    client = machines[node].client
    (found,) = client.containers(filters={"label": f"gpuspawner.user={user}"})
    document: dict[str, Any] = client.inspect_container(found["Id"])
    return document


def inside(machines: Cluster, node: str, user: str, *command: str) -> tuple[int, str]:
    """Exit code and output of a command in the user's lab."""
    client = machines[node].client
    made = client.exec_create(container_of(machines, node, user)["Id"], list(command))["Id"]
    said = client.exec_start(made).decode()
    return client.exec_inspect(made)["ExitCode"], said


@pytest.mark.parametrize("node", ["a", "b", "c"])
async def test_a_lab_runs_on_its_machine_and_is_reached_through_the_gateway(
    services: Services, with_python: Cluster, node: str
) -> None:
    document = await start(services, lab("ada", node, limits=Limits(GIB, 0.5, GIB // 2, 64, 256)))
    address = services.address_of(document)
    assert running(document)
    assert await answers(with_python, address, "/user/ada/api") == '{"version": "stub"}'
    found = container_of(with_python, node, "ada")
    host, config = found["HostConfig"], found["Config"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (GIB, 500_000_000, 64)
    assert (host["CapDrop"], host["SecurityOpt"], host["Init"]) == (["ALL"], ["no-new-privileges=true"], True)
    assert (config["User"], config["Labels"]["gpuspawner.hub"]) == ("1000:100", HUB)
    assert "NOTE={{.Node.ID}}" in config["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in config["Env"]
    _, said = inside(with_python, node, "ada", "/bin/busybox", "df", "-k", "/dev/shm")
    assert str(GIB // 2 // 1024) in said
    await services.stop(document["Id"], 10)
    stopped = await services.find(document["Id"])
    assert stopped is not None
    assert not running(stopped)
    await services.remove(document["Id"])
    assert await services.find(f"{HUB}-ada") is None
    for _ in range(40):
        left = with_python.manager.client.networks(filters={"label": f"gpuspawner.hub={HUB}"})
        if not left:
            break
        await asyncio.sleep(0.25)
    assert left == []


def get_inside(machines: Cluster, node: str, user: str, url: str) -> str:
    """What somebody in the user's lab gets from there; "" if nobody answers."""
    pid = container_of(machines, node, user)["State"]["Pid"]
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "curl", "-s", "-m", "2", url]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


async def test_no_lab_reaches_another_or_the_hubs_side_of_the_gateway(
    services: Services, with_python: Cluster
) -> None:
    places = {"ada": "a", "bob": "a", "cid": "b"}
    documents = {user: await start(services, lab(user, node)) for user, node in places.items()}
    addresses = {user: services.address_of(document) for user, document in documents.items()}
    for user in places:
        assert await answers(with_python, addresses[user], f"/user/{user}/api")
    gateway, port = addresses["bob"]
    lanes = {user: _networks(with_python, places[user], user) for user in places}
    targets = [(gateway, port), *((lanes[user], 8888) for user in ("bob", "cid"))]
    targets += [(_gateway_in_lane(with_python, documents["ada"]), port)]
    for host, number in targets:
        assert get_inside(with_python, "a", "ada", f"http://{host}:{number}/user/bob/api") == ""
    # The lab's own page is there, so what was refused is not for want of curl.
    assert get_inside(with_python, "a", "ada", f"http://{lanes['ada']}:8888/user/ada/api")


def _networks(machines: Cluster, node: str, user: str) -> str:
    """The lab's address in its own network."""
    networks = container_of(machines, node, user)["NetworkSettings"]["Networks"]
    return str(next(each["IPAddress"] for name, each in networks.items() if "lane" in name))


def _gateway_in_lane(machines: Cluster, document: dict[str, Any]) -> str:
    """The gateway's address in the network of that lab."""
    number = document["Config"]["Labels"]["gpuspawner.lane"]
    gateway = machines.manager.client.inspect_container(f"{HUB}-gateway")
    return str(gateway["NetworkSettings"]["Networks"][f"{HUB}-lane-{number}"]["IPAddress"])


async def test_a_lab_reaches_the_hub(services: Services, with_python: Cluster) -> None:
    document = await start(services, lab("ada", "c"))
    gateway = _gateway_in_lane(with_python, document)
    host = services.parts.gateway.subnet.replace(".0/24", ".1")
    script = f"""
import http.server
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"hub")
http.server.HTTPServer(({host!r}, 8081), Hub).handle_request()
"""
    hub = subprocess.Popen(with_python.manager.inside("python3", "-c", script))
    try:
        for _ in range(40):
            if said := get_inside(with_python, "c", "ada", f"http://{gateway}:8081/"):
                break
            await asyncio.sleep(0.25)
        assert said == "hub"
        assert gateway in inside(with_python, "c", "ada", "/bin/busybox", "nslookup", "hub")[1]
    finally:
        hub.kill()
        hub.wait()


async def test_how_a_start_that_fails_is_told(services: Services, with_python: Cluster) -> None:
    with pytest.raises(StartFault, match=r"The image .* isn't on the machine b\. Admin: bring it there"):
        await start(services, lab("ada", "b", image="gone"))
    await services.remove(f"{HUB}-ada")
    wanted = lab("ada", "b")
    missing = replace(
        wanted, create={**wanted.create, "command": ["/nosuch"]}, host={**wanted.host, "init": False}
    )
    with pytest.raises(EngineFault, match='exec: "/nosuch": stat /nosuch: no such file or directory'):
        await start(services, missing)
    await services.remove(f"{HUB}-ada")
    with pytest.raises(StartFault, match="The machine d isn't part of the Swarm"):
        await start(services, lab("ada", "d"))
    created = await services.create(lab("ada", "b"))
    with pytest.raises(EngineFault) as taken:
        await services.create(lab("ada", "b"))
    assert taken.value.status == 409
    await services.remove(created.lab_id)


async def test_how_a_lab_ended_and_what_it_said_last(services: Services, with_python: Cluster) -> None:
    document = await start(services, lab("ada", "b", image="crash"))
    for _ in range(100):
        if not running(document):
            break
        await asyncio.sleep(0.1)
        document = await services.find(document["Id"]) or {}
    assert exit_status(document) == "exit code 3"
    assert "ModuleNotFoundError: No module named 'jupyterhub'" in await services.log_tail(document["Id"])


async def test_a_lab_that_is_killed_for_its_memory(services: Services, with_python: Cluster) -> None:
    limited = lab("ada", "c", limits=Limits(32 << 20))
    eats = ["/bin/busybox", "sh", "-c", "exec /bin/busybox tail /dev/zero"]
    document = await start(services, replace(limited, create={**limited.create, "command": eats}))
    for _ in range(200):
        if not running(document):
            break
        await asyncio.sleep(0.1)
        document = await services.find(document["Id"]) or {}
    assert exit_status(document) == "exit code 137, it was killed, probably because it ran out of memory"


async def test_a_gateway_that_somebody_removed_is_made_again(
    services: Services, with_python: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuspawner.hub.swarm.services.ENSURE_SECONDS", 0.0)
    document = await start(services, lab("ada", "b"))
    with_python.manager.client.remove_container(f"{HUB}-gateway", force=True)
    assert await services.find(document["Id"]) is not None
    assert await answers(with_python, services.address_of(document), "/user/ada/api")


async def test_networks_of_labs_that_are_gone_are_removed(services: Services, with_python: Cluster) -> None:
    await services.parts.docker.run(lambda call: services.parts.lanes.create(call, f"{HUB}-gone"))
    document = await start(services, lab("ada", "a"))
    lanes = await services.parts.docker.run(services.parts.lanes.all)
    assert [lane.lab for lane in lanes] == [f"{HUB}-ada"]
    assert running(document)


async def test_the_network_of_a_service_that_somebody_removed_goes_while_the_hub_runs(
    services: Services, with_python: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuspawner.hub.swarm.services.ENSURE_SECONDS", 0.0)
    gone = await services.create(lab("ada", "b"))
    there = await services.create(lab("ben", "b"))
    with_python.manager.client.remove_service(gone.lab_id)
    for _ in range(2):
        await services.find(there.lab_id)
    lanes = await services.parts.docker.run(services.parts.lanes.all)
    assert [lane.lab for lane in lanes] == [f"{HUB}-ben"]


async def test_a_home_stays_on_its_machine(services: Services, with_python: Cluster) -> None:
    home = Home(Volume("{prefix}-home-{username}", f"{HUB}-home-ada", "/home/jovyan"), unknown=False)
    binds = {f"{HUB}-home-ada": {"bind": "/home/jovyan", "mode": "rw"}}
    first = await start(services, lab("ada", "b", binds=binds, home=home))
    await services.remove(first["Id"])
    with pytest.raises(StartFault, match="Your files are on the machine b, and"):
        await services.create(lab("ada", "c", binds=binds, home=home))
    await start(services, lab("ada", "", binds=binds, home=home))
    assert container_of(with_python, "b", "ada")["Mounts"][0]["Name"] == f"{HUB}-home-ada"


@pytest.mark.parametrize("late", [False, True])
async def test_nothing_starts_with_a_home_that_is_moved(
    services: Services, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`late`: the move begins when the start has looked already, and finds no service yet."""
    volume = f"{HUB}-home-cyd-{late}".lower()
    home = Home(Volume("{prefix}-home-{username}", volume, "/home/jovyan"), unknown=False)
    wanted = lab("cyd", "b", binds={volume: {"bind": "/home/jovyan", "mode": "rw"}}, home=home)
    run = services.parts.docker.run
    if late:
        claim = HomePlaces.claim

        def claim_and_hold(places: HomePlaces, call: Any, volume: str, machine: str) -> None:
            claim(places, call, volume, machine)
            hold(call, volume, "c", "/state")

        monkeypatch.setattr(HomePlaces, "claim", claim_and_hold)
    else:
        await run(lambda call: hold(call, volume, "c", "/state"))
        with pytest.raises(StartConflict, match="Your files are being moved to the machine c"):
            await services.home_machine(volume)
    with pytest.raises(StartConflict, match="Your files are being moved to the machine c"):
        await services.create(wanted)
    assert await services.find(f"{HUB}-cyd") is None
    assert volume not in await run(used_volumes)
    lanes = await run(services.parts.lanes.all)
    assert f"{HUB}-cyd" not in [lane.lab for lane in lanes]
    monkeypatch.undo()
    await run(lambda call: release(call, volume))
    assert (await services.create(wanted)).lab_id
