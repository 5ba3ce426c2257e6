"""Three machines in network namespaces, joined to one Swarm; the tests of a file share them."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import docker.errors
import pytest

from tests.docker.conftest import engine, tiny_image
from tests.docker.engine import missing
from tests.hub.conftest import images
from tests.swarm.cluster import Cluster, cluster

__all__ = ["engine", "images", "tiny_image"]

LAB_IMAGES = ("gpuspawner-hubtest/lab", "gpuspawner-hubtest/crash", "gpuspawner-hubtest/mute")


@pytest.fixture(scope="module")
def machines(engine: docker.APIClient, images: None) -> Iterator[Cluster]:
    """The machines a, b and c with the test images; a is the Swarm's manager."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with cluster() as found:
        found.load(engine, *LAB_IMAGES)
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the engines' logs."""
    report = yield
    found: Cluster | None = getattr(item, "funcargs", {}).get("machines")
    if report.when == "call" and report.failed and found is not None:
        for each in found:
            report.sections.append((f"engine of {each.name}", each.log[-4000:]))
    return report
