"""Each lab has a GPU of the machine that it is on, and its home; a service that nobody holds is removed."""

from __future__ import annotations

import docker
import pytest

from tests.running import IMAGE
from tests.swarm.site import Site, site
from tests.swarm.swarm_hub import NAME, uuid_of

__all__ = ["site"]

pytestmark = pytest.mark.docker


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


@pytest.mark.slow
def test_a_kernel_on_another_machine_is_reached_through_the_proxy(
    site: Site, engine: docker.APIClient
) -> None:
    data = b"".join(engine.get_image(IMAGE))
    for machine in ("a", "b"):
        list(site.machines[machine].client.load_image(data))
    site.hub.spawn("leo", "kernel-on-b")
    code = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'], 6 * 7)"
    assert site.hub.printed("leo", code) == f"{uuid_of('b')} 42\n"
    site.hub.stop("leo")


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


def test_a_machine_with_the_image_comes_first(site: Site) -> None:
    """By the other rules a lab goes to b before c. The hub's machine always has the image; it is taken."""
    hub, manager, c = site.hub, site.machines.manager.client, site.machines["c"].client
    box = manager.create_container("gpuspawner-hubtest/lab")["Id"]
    manager.commit(box, "gpuspawner-hubtest/fresh", changes=["LABEL fresh=yes"])
    manager.remove_container(box)
    list(c.load_image(b"".join(manager.get_image("gpuspawner-hubtest/fresh"))))
    hub.spawn("eva", "on-a")

    def goes_to_c() -> bool:
        hub.spawn("fay", "on-c")  # a lab that has started is a reason to look which images are there
        hub.stop("fay")
        hub.spawn("gil", "fresh")
        found = site.labs("c") == ["gil"]
        hub.stop("gil")
        return found

    hub.until(goes_to_c, seconds=120.0)
    hub.stop("eva")


def test_an_orphan_of_a_dead_hub_is_removed_with_its_service(site: Site) -> None:
    """A service with a lease that nobody holds, as if the hub had died between create and start."""
    hub, client = site.hub, site.machines.manager.client
    labels = {
        "gpuspawner.lease": "f" * 32, "gpuspawner.node": "b", "gpuspawner.broker": str(hub.folder),
        "gpuspawner.hub": NAME, "gpuspawner.user": "jon",
    }  # fmt: skip
    made = site.machines.create_service("b", f"{NAME}-jon", labels, mode={"Replicated": {"Replicas": 0}})
    hub.until(lambda: made not in [each["ID"] for each in client.services()])
    assert hub.leases() == []
