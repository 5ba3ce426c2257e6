"""Slices through the whole broker: real containers, a scripted NVML and a stand-in for MPS.

What the student gets in the container, what the guard does to it, and that a restart forgets nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest
from gpuspawner.broker.app import GpuBroker
from gpuspawner.core.errors import NoCapacity
from gpuspawner.core.model import GpuRequest, Mode
from gpuspawner.core.want import Want
from gpuspawner.node.injection import Access, Injection
from gpuspawner.node.mps.control import find_all, find_daemon, pipes_of, place_of
from gpuspawner.node.processes import ProcessTable
from gpuspawner.protocol.client import BrokerClient, Grant

from tests.docker.life import remove
from tests.docker.test_guard import Box, alive, waited
from tests.mps import standin
from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script
from tests.soon import until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="MPS and the guard serve containers only as root"),
]

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
GIB, MIB = 1 << 30, 1 << 20
CONFIG = f"""
c.GpuSite.inventory = "nvml"
c.GpuSite.pools = [
    {{"name": "class", "mode": "slice", "devices": ["{A}"], "slices": 8}},
    {{"name": "whole"}},
]
c.GpuSite.tiers = [
    {{"name": "cpu"}},
    {{"name": "slice", "mode": "slice", "memory": "8G"}},
    {{"name": "gpu", "devices": 1}},
]
"""
SHELL = "/bin/busybox mkdir -p /tmp; /bin/busybox --install -s /bin; sleep 600"


class Site:
    """A state folder on which brokers run, and its students."""

    def __init__(self, folder: Path, engine: docker.APIClient, image: str, script: Script) -> None:
        self.folder, self.engine, self.image, self.script = folder, engine, image, script
        self.client = BrokerClient(str(folder / "broker.sock"))
        self.containers: list[str] = []

    def config(self) -> Path:
        """The file with its settings."""
        path = self.folder / "config.py"
        path.write_text(CONFIG)
        return path

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[GpuBroker]:
        """One that runs inside the block."""
        broker = GpuBroker()
        broker.initialize(["--config", str(self.config())])
        running = asyncio.create_task(broker.run())
        try:
            await until(lambda: (self.folder / "broker.sock").exists() or running.done())
            yield broker
        finally:
            if not running.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await running

    def request(self, user: str, **more: Any) -> GpuRequest:
        """A slice of 8 GiB, or what `more` says of tier and want."""
        tier = more.pop("tier", "slice")
        want = replace(Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB), **more)
        return GpuRequest(uuid.uuid4().hex, "hub", user, "", tier, want)

    async def start(self, user: str, **more: Any) -> tuple[Grant, Box]:
        """A student's server, as the spawner starts it."""
        request = self.request(user, **more)
        async with self.client.acquire(request, lambda *place: None) as grant:
            container = await asyncio.to_thread(self.create, grant)
            await self.client.confirm(request.lease_id)
            await asyncio.to_thread(self.engine.start, container)
            box = Box(self.engine, container)
            await asyncio.to_thread(waited, lambda: "sleep" in box.pids())
        return grant, box

    def create(self, grant: Grant) -> str:
        mounts = [docker.types.Mount(**mount) for mount in grant.patch.mounts]
        made = self.engine.create_container(
            self.image,
            ["/bin/busybox", "sh", "-c", SHELL],
            environment=grant.patch.env,
            labels=grant.patch.labels,
            host_config=self.engine.create_host_config(mounts=mounts),
        )
        self.containers.append(made["Id"])
        return str(made["Id"])

    def notice(self, grant: Grant) -> str:
        return (self.folder / "leases" / grant.lease.id / "notice").read_text()

    async def device(self, uuid_: str) -> dict[str, Any]:
        status = await self.client.status()
        return next(device for device in status["devices"] if device["uuid"] == uuid_)

    async def shares(self) -> list[tuple[str, int, float]]:
        device = await self.device(A)
        return [(each["user"], each["memory_bytes"], each["compute_percent"]) for each in device["shares"]]


@asynccontextmanager
async def slice_site(
    engine: docker.APIClient, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """A site on two scripted GPUs; its folder's path is short, for sockets."""
    folder = Path("/tmp") / f"gss-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    program = standin.install(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GPUSPAWNER_STATE_DIR", str(folder))
    monkeypatch.delenv("JUPYTERHUB_SERVICE_URL", raising=False)
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu(B)]
        script.write()
        site = Site(folder, engine, image, script)
        yield site
        await site.client.close()
        for container in site.containers:
            remove(engine, container)
    for process in find_all(place_of(A, folder), ProcessTable()):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(pipes_of(folder), ignore_errors=True)
    shutil.rmtree(folder)


@pytest.fixture
async def site(
    engine: docker.APIClient, tiny_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    async def way_in(*_: object) -> Access:
        return Access(Injection.NONE)  # there is nothing to inject

    monkeypatch.setattr("gpuspawner.node.local.LocalNode.way_in", way_in)
    async with slice_site(engine, tiny_image, tmp_path, monkeypatch) as site:
        monkeypatch.setattr("gpuspawner.node.mps.control.RUN_DIR", site.folder / "run")
        yield site


async def test_two_students_on_one_gpu_and_the_one_who_takes_too_much(site: Site) -> None:
    place_of_a = place_of(A, site.folder)
    async with site.broker():
        (anna, anna_box), (ben, ben_box) = await site.start("anna"), await site.start("ben")
        assert (anna.lease.device_uuids, anna.lease.memory_bytes, anna.lease.compute_percent) == (
            (A,),
            8 * GIB,
            25.0,
        )
        assert anna.patch.env["CUDA_MPS_PIPE_DIRECTORY"] == "/run/gpuspawner-mps"
        assert anna.patch.env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=8192M"
        lease = json.loads((site.folder / "leases" / anna.lease.id / "lease.json").read_text())
        assert [lease[key] for key in ("mode", "memory_bytes", "compute_percent", "guarantee")] == [
            "slice", 8 * GIB, 25.0, "guarded",
        ]  # fmt: skip
        daemon = find_daemon(place_of_a, ProcessTable())
        assert daemon is not None
        await until(lambda: _running(site, 2))
        assert await site.shares() == [("anna", 8 * GIB, 25.0), ("ben", 8 * GIB, 25.0)]
        device = await site.device(A)
        assert (device["free_slices"], device["total_slices"], device["guarantee"], device["lease_id"]) == (
            6, 8, "guarded", None,
        )  # fmt: skip
        document = await site.client.tiers()
        assert (document["simulated"], document["driver"]) == (
            False,
            {"version": "580.159.04", "cuda": "13.0"},
        )
        tiers = {tier["name"]: tier for tier in document["tiers"]}
        assert (tiers["slice"]["free"], tiers["slice"]["total"], tiers["gpu"]["free"]) == (6, 8, 1)

        kernel, neighbour = anna_box.sleeper("kernel"), ben_box.sleeper("neighbour")
        site.script.process(neighbour, 8 * GIB, mps=1)
        site.script.process(kernel, 9 * GIB, mps=1)
        await until(lambda: not alive(kernel))
        await until(lambda: "this server used 9.0 GiB of its 8.0 GiB of GPU memory" in site.notice(anna))
        assert alive(neighbour)
        assert site.notice(ben) == ""
        statuses = {lease["user"]: lease["notice"] for lease in (await site.client.status())["leases"]}
        assert "was ended" in statuses["anna"]
        assert 'gpuspawner_guard_ended_total{offence="memory"} 1.0' in (await _metrics(site))
    # The broker is gone; daemon and servers go on, and with the next one quotas hold again.
    assert find_daemon(place_of_a, ProcessTable()) == daemon
    again = anna_box.sleeper("again")
    site.script.process(again, 20 * GIB, mps=1)
    async with site.broker():
        await until(lambda: not alive(again))
        assert await site.shares() == [("anna", 8 * GIB, 25.0), ("ben", 8 * GIB, 25.0)]
        assert find_daemon(place_of_a, ProcessTable()) == daemon
        # Who goes round MPS is ended as well.
        outside = ben_box.sleeper("outside")
        site.script.process(outside, GIB)
        await until(lambda: not alive(outside))
        await until(lambda: "bypassed MPS" in site.notice(ben))
        # The daemon dies: both are told; it is back at once.
        os.kill(daemon.pid, signal.SIGKILL)
        await until(lambda: "runs again: restart your kernel" in site.notice(anna))
        await until(lambda: "runs again" in site.notice(ben))


async def test_a_gpu_that_is_read_late_is_guarded_and_leased_from_then_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be read in the moment in which the broker was started anew."""
    monkeypatch.setattr("gpuspawner.node.local.LOOK_SECONDS", 0.3)
    async with site.broker():
        anna, anna_box = await site.start("anna")
        await until(lambda: _running(site, 1))
    kernel = anna_box.sleeper("kernel")
    site.script.process(kernel, 20 * GIB, mps=1)
    line = site.script.fault("nvmlDeviceGetMemoryInfo", 999, gpu=0)
    async with site.broker():
        assert (await site.device(A))["model"] == "not found"
        with pytest.raises(NoCapacity):
            await site.start("ben")
        await asyncio.sleep(1)
        assert alive(kernel)  # nobody can say what it has
        site.script.drop(line)
        await until(lambda: not alive(kernel))
        await until(lambda: "this server used 20 GiB of its 8.0 GiB" in site.notice(anna))
        await site.start("ben")
        await until(lambda: _running(site, 2))
        assert await site.shares() == [("anna", 8 * GIB, 25.0), ("ben", 8 * GIB, 25.0)]
        site.script.change(0, lost=15)  # and it is watched
        await until(lambda: _withdrawn(site))


async def test_a_lost_ledger_is_made_again_from_the_labels(site: Site) -> None:
    async with site.broker():
        await site.start("anna")
        await site.start("ben", tier="small", memory_bytes=4 * GIB, compute_percent=10.0)
        await until(lambda: _running(site, 2))
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    async with site.broker():
        await until(lambda: _running(site, 2))
        assert sorted(await site.shares()) == [("anna", 8 * GIB, 25.0), ("ben", 4 * GIB, 10.0)]
        with pytest.raises(NoCapacity, match="a slice of 20 GiB of a GPU, but this machine has none"):
            await site.start("carl", memory_bytes=20 * GIB)


async def _running(site: Site, count: int) -> bool:
    leases = (await site.client.status())["leases"]
    return [lease["state"] for lease in leases] == ["running"] * count


async def _withdrawn(site: Site) -> bool:
    return not (await site.device(A))["healthy"]


async def _metrics(site: Site) -> str:
    connector = aiohttp.UnixConnector(path=str(site.folder / "broker.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://x/metrics") as answer,
    ):
        return await answer.text()
