"""Two simulated machines and real containers: one goes away, the broker dies, no device has two leases."""

from __future__ import annotations

import asyncio

import pytest
from gpuspawner.core.want import Want

from tests.docker.life import remove
from tests.docker.place import Place
from tests.soon import until

pytestmark = pytest.mark.docker

TWO = {
    "GpuSite": {"inventory": "simulated", "simulated_devices": "a: 1 x H100 80GB; b: 1 x A100 40GB"},
    "GpuBroker": {"reconcile_seconds": 0.2},
}
A100 = Want(1, "a100")


async def device_of_b(place: Place) -> dict[str, object] | None:
    """Whether it is in service, and who has it; None if the broker doesn't know it."""
    devices = (await place.client.status())["devices"]
    return next(
        ({key: each[key] for key in ("healthy", "user")} for each in devices if each["node"] == "b"), None
    )


@pytest.mark.parametrize("killed", [False, True])
async def test_a_machine_that_was_away_has_its_leases_as_before(place: Place, killed: bool) -> None:
    """`killed`: the broker dies meanwhile, and the new one begins while the machine is away."""
    place.settings = TWO
    await place.start()
    anna, ben = place.server(want=A100), place.server("ben", want=A100)
    await anna.spawn()
    await place.settled("anna")
    faults = place.folder / "simulated_faults"
    faults.write_text("b cut\n")
    if killed:
        await place.kill_broker()
        await place.restart()
    else:

        async def is_away() -> bool:
            return await device_of_b(place) == {"healthy": False, "user": "anna"}

        await until(is_away)
        waiting = asyncio.create_task(ben.spawn())
        await asyncio.sleep(0.5)
    assert (await place.leases())["anna"][0] == "running"
    assert place.containers() == {"anna": "running"}
    faults.write_text("")

    async def is_back() -> bool:
        return await device_of_b(place) == {"healthy": True, "user": "anna"}

    await until(is_back)
    if killed:
        waiting = asyncio.create_task(ben.spawn())
        await asyncio.sleep(0.3)
    assert not waiting.done()
    assert place.containers() == {"anna": "running"}
    await asyncio.to_thread(remove, place.engine, anna.container_id)
    await waiting
    await place.settled("ben")
    assert await device_of_b(place) == {"healthy": True, "user": "ben"}
