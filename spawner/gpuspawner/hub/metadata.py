"""Keeps labs from a cloud's metadata service, which hands the machine's own keys to whoever asks.

Two rules of iptables for each address: one for a service elsewhere (forwarded), one for a service on this
machine. Port 53 stays open: some clouds have their name server at the same address.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..core.errors import EngineFault

ADDRESSES = ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32")
"""Link-local (AWS, Google, Azure, OpenStack, Oracle: 169.254.169.254), Alibaba Cloud, Azure's WireServer."""
MARK = "gpuspawner"
"""The comment of each rule: only rules that have it are ours."""
_SECONDS = 10
_SHAPE = f"-p tcp -m tcp ! --dport 53 -m comment --comment {MARK} -j REJECT"
_LISTED = re.compile(rf"-A (\S+) -s (\S+) -d (\S+) {re.escape(_SHAPE)}( .*)?")
Run = Callable[[Sequence[str]], str]
"""Runs a program and returns what it prints. Raises OSError, subprocess.SubprocessError."""


def run_program(command: Sequence[str]) -> str:
    """Blocks for at most `_SECONDS`."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Rule:
    """From the labs' network to an address, TCP without port 53: refused at once."""

    chain: str
    subnet: str
    address: str

    def arguments(self) -> tuple[str, ...]:
        """As `iptables -I` takes them."""
        what = ("-p", "tcp", "!", "--dport", "53", "-m", "comment", "--comment", MARK, "-j", "REJECT")
        return (self.chain, "-s", self.subnet, "-d", self.address, *what)

    def is_in(self, listed: str) -> bool:
        """Whether `iptables -S` lists it (iptables 1.8)."""
        start = f"-A {self.chain} -s {self.subnet} -d {self.address} {_SHAPE}"
        return any(line == start or line.startswith(f"{start} ") for line in listed.splitlines())


class MetadataWall:
    """The rules for one labs' network. Its methods block."""

    def __init__(self, subnet: str, run: Run = run_program) -> None:
        self._subnet, self._run = subnet, run

    @property
    def subnet(self) -> str:
        """The addresses of the labs."""
        return self._subnet

    def missing(self) -> tuple[Rule, ...] | None:
        """The rules that the firewall doesn't have; None if this user can't read it, or there is no iptables.

        Docker passes what is forwarded through DOCKER-USER first (moby 20.10 to 28).
        """
        try:
            listed = self._run(("iptables", "-w", "-S"))
        except (OSError, subprocess.SubprocessError):
            return None
        forward = "DOCKER-USER" if "-N DOCKER-USER" in listed.splitlines() else "FORWARD"
        return tuple(rule for rule in self._rules(forward) if not rule.is_in(listed))

    def build(self) -> int:
        """Adds the missing rules, before all others of their chain; returns how many.

        Raises EngineFault if this user may not.
        """
        missing = self.missing()
        if missing is None:
            raise EngineFault("iptables can't be used by this user, or isn't installed")
        for rule in missing:
            try:
                self._run(("iptables", "-w", "-I", *rule.arguments()))
            except (OSError, subprocess.SubprocessError) as error:
                raise EngineFault(f"iptables did not add a rule: {error}") from error
        return len(missing)

    def remove(self) -> None:
        """Takes the rules back. Does nothing where iptables can't be used."""
        try:
            listed = self._run(("iptables", "-w", "-S"))
            for chain in ("DOCKER-USER", "FORWARD"):
                for rule in self._rules(chain):
                    if rule.is_in(listed):
                        self._run(("iptables", "-w", "-D", *rule.arguments()))
                        listed = self._run(("iptables", "-w", "-S"))
        except (OSError, subprocess.SubprocessError):
            return

    def _rules(self, forward: str) -> Iterator[Rule]:
        for chain in (forward, "INPUT"):
            for address in ADDRESSES:
                yield Rule(chain, self._subnet, address)


def sweep(exists: Callable[[str], bool], run: Run = run_program) -> tuple[str, ...]:
    """Takes back our rules for subnets that don't exist any more; returns these subnets. Blocks.

    They stay where labs outlive their hub and are removed later, with their network. `exists` says of a
    subnet whether a network has it. Does nothing where iptables can't be used.
    """
    gone: dict[str, bool] = {}
    try:
        for line in run(("iptables", "-w", "-S")).splitlines():
            found = _LISTED.fullmatch(line)
            if found is None:
                continue
            chain, subnet, address, _ = found.groups()
            if subnet not in gone:
                gone[subnet] = not exists(subnet)
            if gone[subnet]:
                run(("iptables", "-w", "-D", *Rule(chain, subnet, address).arguments()))
    except (OSError, subprocess.SubprocessError):
        pass  # somebody else takes them back at the same time, or this user may not
    return tuple(subnet for subnet, is_gone in gone.items() if is_gone)


def may_build() -> bool:
    """Whether this process can probably change the firewall: it is root, and iptables is installed."""
    return os.geteuid() == 0 and shutil.which("iptables") is not None
