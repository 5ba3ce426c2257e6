"""100 agents with 800 GPUs on one broker: how soon a request is answered, its CPU at rest, and a restart.

    .venv/bin/python bench/agents.py [--agents 100] [--waiting 1000]

A real broker process with its door, its SQLite ledger and this machine's Docker Engine. The agents are real
(TLS, certificates, messages) and run in this process; their nodes and Docker Engines are stubs. Of 5,000
users, some take all GPUs, then others wait. Prints what was seen, with the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.core.model import Device, GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.node.api import NodeFacts
from gpuspawner.node.remote.agent import Agent, Hands
from gpuspawner.node.remote.certificates import Authority, Identity, fingerprint
from gpuspawner.node.remote.joining import connect
from gpuspawner.node.remote.members import FOLDER, membership_of
from gpuspawner.protocol.client import BrokerClient

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.unit.node.agents import StubDocker, StubHomes, StubNode

USERS, GPUS, REST_SECONDS = 5000, 8, 20.0
LOG = logging.getLogger("stub agents")
LOG.setLevel(logging.ERROR)  # a hundred of them say that the broker is away


def facts_of(name: str) -> NodeFacts:
    """A machine with simulated GPUs."""
    return NodeFacts(
        name,
        simulated=True,
        devices=tuple(
            Device(f"GPU-{uuid.uuid4()}", "H100 80GB", 80 << 30, simulated=True, index=index)
            for index in range(GPUS)
        ),
    )


def enrol(state_dir: Path, folder: Path, authority: Authority, name: str) -> Identity:
    """As joining does, without the connection; a small key, since 100 large ones take minutes."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    certificate = authority.sign(request.public_bytes(serialization.Encoding.PEM).decode())
    identity = Identity(folder / "agent")
    identity.folder.mkdir(parents=True)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (identity.folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    identity.keep(certificate, authority.certificate, authority.broker_fingerprint)
    membership = membership_of(state_dir)
    known_by = fingerprint(ssl.PEM_cert_to_DER_cert(certificate))
    membership.admit(membership.make_token(), name, known_by)
    return identity


class Site:
    """A broker process, and the agents of the other machines in this one."""

    def __init__(self, folder: Path, agents: int) -> None:
        self.folder, self.state_dir = folder, folder / "s"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.names = [f"m{number:03}" for number in range(agents)]
        self.client = BrokerClient(str(self.state_dir / "broker.sock"))
        self.process: subprocess.Popen[bytes] | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.refused = 0
        """Requests that the broker could not serve, as when a machine was too slow to answer."""

    def start_broker(self) -> None:
        config = self.folder / "config.py"
        config.write_text(
            "c.GpuSite.inventory = 'simulated'\nc.GpuSite.simulated_devices = 'a: 1 x T4 16GB'\n"
            f"c.GpuBroker.agents_address = '127.0.0.1:{self.port}'\n"
        )
        environment = {**os.environ, "GPUSPAWNER_STATE_DIR": str(self.state_dir)}
        command = (sys.executable, "-m", "gpuspawner.broker", "--config", str(config))
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)

    def start_agents(self) -> None:
        (self.state_dir / FOLDER).mkdir(mode=0o700, parents=True)
        authority = Authority(self.state_dir / FOLDER / "keys")
        for name in self.names:
            folder = self.folder / name
            identity = enrol(self.state_dir, folder, authority, name)
            node: Any = StubNode(facts_of(name))
            docker: Any = StubDocker()
            opening = partial(connect, "127.0.0.1", self.port, identity)
            agent = Agent(name, Hands(node, docker, StubHomes(), folder), opening, LOG)
            self.tasks.append(asyncio.create_task(agent.run()))

    async def all_serve(self) -> float:
        """Seconds until all GPUs of other machines are in service."""
        began = time.perf_counter()
        while True:
            try:
                devices = (await self.client.status())["devices"]
            except BrokerUnavailable:
                devices = []
            if sum(each["healthy"] for each in devices if each["node"] != "a") == GPUS * len(self.names):
                return time.perf_counter() - began
            await asyncio.sleep(0.2)

    def cpu_seconds(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def ask(self, user: str, times: list[float]) -> asyncio.Task[None]:
        """A request that is held; returns with its first answer: a lease, or a place in the queue."""
        answered = asyncio.Event()
        request = GpuRequest(uuid.uuid4().hex, "hub", user, uuid.uuid4().hex[:8], "gpu", Want(1, "h100"))

        async def hold() -> None:
            async with self.client.acquire(request, lambda place: answered.set()):
                answered.set()
                await asyncio.Event().wait()

        began = time.perf_counter()
        task = asyncio.create_task(hold())
        waiting = asyncio.create_task(answered.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        times.append(time.perf_counter() - began)
        if task.done() and isinstance(task.exception(), BrokerUnavailable):
            times.pop()
            self.refused += 1
        return task

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.close()
        if self.process is not None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait)


def shown(times: list[float]) -> str:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {1000 * statistics.median(times):.1f} ms, p99 {1000 * p99:.1f} ms of {len(times)}"


async def measure(site: Site, waiting: int) -> None:
    """Each line is printed as it is known."""
    site.start_agents()
    site.start_broker()
    print(
        f"all agents connected after {await site.all_serve():.1f} s, with the broker's own start", flush=True
    )
    users, holds = random.Random(1), []
    served: list[float] = []
    queued: list[float] = []
    for times, count in ((served, GPUS * len(site.names)), (queued, waiting)):
        for _ in range(count):
            holds.append(await site.ask(f"u{users.randrange(USERS)}", times))
    print(f"acquire of a free GPU, over the socket: {shown(served)}")
    print(f"acquire into the queue, over the socket: {shown(queued)}", flush=True)
    print(f"refused: {site.refused}")
    before = site.cpu_seconds()
    await asyncio.sleep(REST_SECONDS)
    share = (site.cpu_seconds() - before) / REST_SECONDS
    print(f"the broker's CPU at rest, {len(holds)} requests open: {100 * share:.1f} % of a core", flush=True)
    for hold in holds:
        hold.cancel()
    await asyncio.gather(*holds, return_exceptions=True)
    assert site.process is not None
    site.process.kill()
    await asyncio.to_thread(site.process.wait)
    site.start_broker()
    print(f"after kill -9 all agents serve again within {await site.all_serve():.1f} s of the new start")


async def main() -> None:
    """Runs it, and prints the load before and after."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--waiting", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gs-") as name:
        site = Site(Path(name), asked.agents)
        print(f"{asked.agents} agents, {GPUS * asked.agents} GPUs; load {os.getloadavg()[0]:.1f}", flush=True)
        try:
            await measure(site, asked.waiting)
        finally:
            await site.end()
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    asyncio.run(main())
