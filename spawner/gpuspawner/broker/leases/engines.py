"""Which Docker Engine has the containers of a lease: the broker's own, or that of another machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...core.model import Lease
from ...node.engine import Engine


@dataclass(frozen=True, slots=True)
class Engines:
    """`elsewhere` returns the engine of the other machine that a lease is on; None if the own one has it.

    A lease that is on no known machine counts as on the own one: its machine may have another name since.
    `leases_with` are those whose containers an engine has; None: look at `elsewhere` instead.
    """

    own: Engine
    elsewhere: Callable[[Lease], Engine | None] = lambda lease: None
    leases_with: Callable[[Engine], tuple[Lease, ...] | None] = lambda engine: None

    def of(self, lease: Lease) -> Engine:
        """The engine that is asked about the lease's containers."""
        return self.elsewhere(lease) or self.own

    def on(self, engine: Engine, leases: Callable[[], tuple[Lease, ...]]) -> tuple[Lease, ...]:
        """Those leases whose containers this engine has; `leases` are all that live.

        A hundred machines are asked about their labs every few seconds: where leases are known by machine,
        not all of them are looked at.
        """
        found = self.leases_with(engine)
        if found is not None:
            return found
        return tuple(lease for lease in leases() if self.of(lease) is engine)
