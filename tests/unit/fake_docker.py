"""Docker's answers as the test wants them, behind the hub's own `DockerEngine`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.hub.docker import DockerEngine
from gpuspawner.hub.pulls import Pulls
from gpuspawner.hub.readiness import Slots
from gpuspawner.hub.shared import HubShared

T = TypeVar("T")
Call = Callable[..., Any]


class ScriptedDocker(DockerEngine):
    """Gives for each method its answers in turn, the last one again and again; an error is raised."""

    def __init__(self, answers: Mapping[str, list[Any]]) -> None:
        self.answers = {"info": [{}], **{method: list(planned) for method, planned in answers.items()}}
        self.calls: list[str] = []

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.call_here(method, *args, **kwargs)
        finally:
            await asyncio.sleep(0)

    async def run(self, work: Callable[[Call], T]) -> T:
        try:
            return work(self.call_here)
        finally:
            await asyncio.sleep(0)

    def call_here(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(method)
        planned = self.answers[method]
        answer = planned.pop(0) if len(planned) > 1 else planned[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class SilentBroker:
    """A broker that gives nothing out, and remembers what was released."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.exit_codes: dict[str, int] = {}

    async def tiers(self) -> dict[str, Any]:
        raise BrokerUnavailable("GPUs can't be given out right now.")

    async def ask(self, *_: Any) -> Any:
        raise BrokerUnavailable("GPUs can't be given out right now.")

    async def may_end(self, lease_id: str) -> bool:
        return True

    async def exit_code(self, lease_id: str) -> int | None:
        return self.exit_codes.get(lease_id)

    async def release(self, lease_id: str) -> None:
        self.released.append(lease_id)


def make_shared(docker: Any, broker: Any = None, log: logging.Logger | None = None) -> HubShared:
    """What a hub's spawners share, around this Docker and this broker."""
    log = log or logging.getLogger("test")
    return HubShared(docker, broker or SilentBroker(), Pulls(log), Slots(1), log)
