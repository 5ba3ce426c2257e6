"""100 agents with 800 GPUs on one broker: how soon a request is answered, its CPU at rest, and a restart.

    .venv/bin/python bench/agents.py [--agents 100] [--waiting 1000] [--rest 60]

A real broker process with its door, its SQLite ledger and this machine's Docker Engine. The agents are real
(TLS, certificates, messages) and run in a process of their own (`stub_machines.py`); their GPUs and Docker
Engines are stubs. Of 5,000 users, some take all GPUs and their labs start, then others wait; this process is
their hub. The broker has a core to itself if there are two, and a quarter of them if there are more; agents
and hub, which a real site has on other machines, share the rest. Prints what was seen, with the load of the
machine and the CPU of each process; how many answers came within 10 ms is said twice, as the hub sees it and
by the broker's own clock. Agents and hub collect no garbage: in one process for all they would stop for
longer than each of them does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.node.remote.certificates import Authority, Identity, fingerprint
from gpuspawner.node.remote.members import FOLDER, membership_of
from gpuspawner.protocol.client import BrokerClient, Grant

USERS, GPUS = 5000, 8
TARGET_SECONDS = 0.01
CORES = sorted(os.sched_getaffinity(0))
OF_BROKER = CORES[: max(1, len(CORES) // 4)]
LOG = logging.getLogger("bench")
LOG.setLevel(logging.ERROR)  # a thousand requests say that their connection broke
BACK = " is back: its servers were compared"
"""Of the broker's log: the machine serves."""


def enrol(state_dir: Path, folder: Path, authority: Authority, name: str) -> None:
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


Answers = tuple[float, float]
"""How many answers the broker has given by its own clock, within 10 ms and all."""


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What the process has used so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Asked:
    """Requests of one kind: how long each took to its first answer, and what holds them."""

    seconds: list[float] = field(default_factory=list)
    holds: list[asyncio.Task[None]] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    cpu_before_seconds: float = 0.0
    answers_before: Answers = (0.0, 0.0)
    refused: int = 0
    """Requests that the broker could not serve, as when a machine was too slow to answer."""

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        found = {"p50": statistics.median(ordered), "p99": p99, "most": ordered[-1]}
        times = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in found.items())
        in_time = sum(each <= TARGET_SECONDS for each in ordered) / len(ordered)
        return f"{times} of {len(ordered)}, {100 * in_time:.1f} % within 10 ms, {self.refused} refused"

    async def end(self) -> None:
        """The holds close."""
        for hold in self.holds:
            hold.cancel()
        await asyncio.gather(*self.holds, return_exceptions=True)


class Site:
    """A broker process, and the process with the agents of the other machines."""

    def __init__(self, folder: Path, agents: int) -> None:
        self.folder, self.state_dir = folder, folder / "s"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.names = [f"m{number:03}" for number in range(agents)]
        self.client = BrokerClient(str(self.state_dir / "broker.sock"), log=LOG)
        self.broker: subprocess.Popen[bytes]
        self.machines: subprocess.Popen[bytes]
        self._log_bytes = 0

    def start_broker(self) -> None:
        """A new process, whose log begins here."""
        config, log = self.folder / "config.py", self.folder / "broker.log"
        config.write_text(
            "c.GpuSite.inventory = 'simulated'\nc.GpuSite.simulated_devices = 'a: 1 x T4 16GB'\n"
            f"c.GpuBroker.agents_address = '127.0.0.1:{self.port}'\n"
        )
        environment = {**os.environ, "GPUSPAWNER_STATE_DIR": str(self.state_dir)}
        command = (sys.executable, "-m", "gpuspawner.broker", "--config", str(config))
        self._log_bytes = log.stat().st_size if log.exists() else 0
        with log.open("ab") as written:
            self.broker = subprocess.Popen(command, env=environment, stderr=written, stdout=written)
        os.sched_setaffinity(self.broker.pid, OF_BROKER)

    def start_machines(self) -> None:
        """All have joined; their agents connect as soon as there is a broker."""
        (self.state_dir / FOLDER).mkdir(mode=0o700, parents=True)
        authority = Authority(self.state_dir / FOLDER / "keys")
        for name in self.names:
            enrol(self.state_dir, self.folder / name, authority, name)
        program = str(Path(__file__).with_name("stub_machines.py"))
        command = (sys.executable, program, str(self.folder), str(self.port), ",".join(self.names))
        self.machines = subprocess.Popen(command, stdin=subprocess.PIPE)

    async def all_serve(self) -> float:
        """Seconds until all other machines serve. By the broker's log: asking it would slow it down."""
        began = time.perf_counter()
        log = self.folder / "broker.log"
        while log.read_bytes()[self._log_bytes :].count(BACK.encode()) < len(self.names):
            await asyncio.sleep(0.1)
        took = time.perf_counter() - began
        devices = (await self.client.status())["devices"]
        assert sum(each["healthy"] for each in devices if each["node"] != "a") == GPUS * len(self.names)
        return took

    async def ask(self, user: str, asked: Asked) -> None:
        """A request that is held; returns with its first answer: a lease, or a place in the queue."""
        answered = asyncio.Event()
        request = GpuRequest(uuid.uuid4().hex, "hub", user, uuid.uuid4().hex[:8], "gpu", Want(1, "h100"))

        async def hold() -> None:
            async with self.client.acquire(request, lambda place: answered.set()) as grant:
                asked.grants.append(grant)
                answered.set()
                await asyncio.Event().wait()

        if not asked.holds:
            asked.answers_before = await self.answers()
            asked.cpu_before_seconds = cpu_seconds(self.broker)
        began = time.perf_counter()
        task = asyncio.create_task(hold())
        waiting = asyncio.create_task(answered.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done() and isinstance(task.exception(), BrokerUnavailable):
            asked.refused += 1
            return
        asked.seconds.append(time.perf_counter() - began)
        asked.holds.append(task)

    async def since_asked(self, asked: Asked) -> str:
        """By the broker: how many answers were in time, and the CPU for each of them, all else included."""
        used = cpu_seconds(self.broker) - asked.cpu_before_seconds
        pairs = zip(await self.answers(), asked.answers_before, strict=True)
        in_time, given = (now - then for now, then in pairs)
        cpu = f"{1000 * used / len(asked.seconds):.1f} ms of the broker's CPU for each"
        return f"by the broker's clock {100 * in_time / given:.1f} % within 10 ms; {cpu}"

    async def answers(self) -> Answers:
        """As its metrics say."""
        text = await self.client.text("/metrics")
        parts = (rf'bucket{{le="{TARGET_SECONDS}"}}', "count")
        found = [re.search(rf"^gpuspawner_answer_seconds_{each} (\S+)", text, re.MULTILINE) for each in parts]
        in_time, given = (float(each[1]) for each in found if each is not None)
        return in_time, given

    async def start_labs(self, grants: list[Grant]) -> None:
        """Their labs run, and as a hub does then, nobody holds the request any more."""
        assert self.machines.stdin is not None
        for grant in grants:
            lab = {"machine": grant.lease.node, "id": grant.lease.id * 2, "labels": dict(grant.patch.labels)}
            self.machines.stdin.write(json.dumps(lab).encode() + b"\n")
        self.machines.stdin.flush()
        async with asyncio.timeout(60):
            while (await self.states()).get("running", 0) < len(grants):
                await asyncio.sleep(1)

    async def states(self) -> dict[str, int]:
        """How many leases are in each state."""
        text = await self.client.text("/metrics")
        found = re.findall(r'^gpuspawner_leases\{.*state="(\w+)".*\} (\d+)', text, re.MULTILINE)
        states: Counter[str] = Counter()
        for state, count in found:
            states[state] += int(count)
        return {state: count for state, count in states.items() if count}

    async def end(self) -> None:
        """Ends both processes."""
        await self.client.close()
        for process in (self.broker, self.machines):
            process.terminate()
            await asyncio.to_thread(process.wait)


async def at_rest(site: Site, open_requests: int, seconds: float) -> None:
    """What the processes use while nobody does anything."""
    processes = {"broker": site.broker, "agents together": site.machines}
    before = {name: cpu_seconds(process) for name, process in processes.items()}
    await asyncio.sleep(seconds)
    for name, process in processes.items():
        share = (cpu_seconds(process) - before[name]) / seconds
        print(f"CPU at rest, {open_requests} requests open: {name} {100 * share:.1f} % of a core", flush=True)


async def restart(site: Site, waiting: Asked) -> None:
    """kill -9 and a new start while labs run and requests wait; all come back by themselves."""
    site.broker.kill()
    await asyncio.to_thread(site.broker.wait)
    site.start_broker()
    took = await site.all_serve()
    print(
        f"after kill -9 all agents serve again within {took:.1f} s of the new start, "
        f"of {cpu_seconds(site.broker):.1f} s CPU of the broker"
    )
    await asyncio.sleep(10)
    lost = Counter(str(hold.exception()) for hold in waiting.holds if hold.done() and not hold.cancelled())
    print(
        f"10 s later: leases {await site.states()}; "
        f"{lost.total()} of {len(waiting.holds)} requests were lost {dict(lost) or ''}",
        flush=True,
    )


async def measure(site: Site, waiting_count: int, rest_seconds: float) -> None:
    """Each line is printed as it is known."""
    site.start_machines()
    site.start_broker()
    print(f"all agents serve after {await site.all_serve():.1f} s, with the broker's own start", flush=True)
    users, served, waiting = random.Random(1), Asked(), Asked()
    for _ in range(GPUS * len(site.names)):
        await site.ask(f"u{users.randrange(USERS)}", served)
    print(f"acquire of a free GPU, over the socket: {served}; {await site.since_asked(served)}", flush=True)
    await site.start_labs(served.grants)
    await served.end()
    for _ in range(waiting_count):
        await site.ask(f"u{users.randrange(USERS)}", waiting)
    by_broker = await site.since_asked(waiting)
    print(f"acquire into the queue, over the socket: {waiting}; {by_broker}", flush=True)
    await at_rest(site, len(waiting.holds), rest_seconds)
    await restart(site, waiting)
    await waiting.end()


async def main() -> None:
    """Runs it, and prints the load before and after."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds at rest")
    asked = parser.parse_args()
    gc.disable()
    os.sched_setaffinity(0, CORES[len(OF_BROKER) :] or CORES)  # also for the agents
    with tempfile.TemporaryDirectory(prefix="gs-") as name:
        site = Site(Path(name), asked.agents)
        print(f"{asked.agents} agents, {GPUS * asked.agents} GPUs; load {os.getloadavg()[0]:.1f}", flush=True)
        try:
            await measure(site, asked.waiting, asked.rest)
        finally:
            await site.end()
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    asyncio.run(main())
