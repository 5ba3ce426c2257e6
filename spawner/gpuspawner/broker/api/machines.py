"""GET /machines/findings on the unix socket: what doctor finds on the other machines, through their agents.

?images=NAME,NAME   the images that labs need there
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from ...core.finding import Finding
from ...protocol.history import FindingDocument, MachineFindings, MachinesChecked
from ...protocol.messages import document
from .socket import Handler, Site

Check = Callable[[Sequence[str]], Awaitable[dict[str, tuple[Finding, ...] | str]]]
"""By the name of each other machine: what was found there, or why it could not be looked at."""


class FindingsHandler(Handler):
    """GET /machines/findings"""

    check: Check

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site)
        self.check = more["check"]

    async def get(self) -> None:
        """Takes as long as the slowest machine."""
        images = tuple(filter(None, self.get_query_argument("images", "").split(",")))
        found = await self.check(images)
        machines = tuple(_of_machine(name, seen) for name, seen in found.items())
        self.answer(document(MachinesChecked(machines=machines)))


def _of_machine(name: str, seen: tuple[Finding, ...] | str) -> MachineFindings:
    if isinstance(seen, str):
        return MachineFindings(name=name, fault=seen)
    findings = tuple(FindingDocument.model_validate(asdict(each)) for each in seen)
    return MachineFindings(name=name, findings=findings)


def machine_routes(site: Site, check: Check) -> list[tuple[Any, ...]]:
    """The route, for `make_app`."""
    return [(r"/machines/findings", FindingsHandler, {"site": site, "check": check})]
