"""The agent keeps labs from a cloud's keys in a Swarm only, and says once what it can't do."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.node.remote import shielding
from gpuspawner.node.remote.shielding import shield_labs


class Docker:
    """What Docker says of its Swarm; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {"Swarm": {"LocalNodeState": answer}}, {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shielding, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(shielding, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


async def shield_until(condition: Callable[[], bool], docker: Any, *command: str) -> None:
    running = asyncio.create_task(shield_labs(docker, logging.getLogger("shield"), command))
    try:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_rules_are_looked_for_again_and_again_once_the_machine_is_in_a_swarm(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    docker = Docker(EngineFault("down"), "inactive", "active")
    words = (sys.executable, "-c", f"open({str(log)!r}, 'a').write('x')")
    await shield_until(lambda: log.exists() and len(log.read_text()) >= 2, docker, *words)
    assert docker.asked >= 4


async def test_what_it_can_t_do_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = f"open({str(log)!r}, 'a').write('x'); print('no iptables'); print('more'); raise SystemExit(1)"
    docker = Docker("active")
    await shield_until(
        lambda: log.exists() and len(log.read_text()) >= 3, docker, sys.executable, "-c", program
    )
    said = [record.getMessage() for record in caplog.records if record.name == "shield"]
    assert said == ["Labs may reach a cloud's metadata service: no iptables"]


async def test_outside_of_a_swarm_and_without_root_nothing_is_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Docker("inactive")
    await shield_until(lambda: outside.asked >= 3, outside, "/no/such/program")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    inside = Docker("active")
    await shield_until(lambda: inside.asked >= 3, inside, "/no/such/program")
    said = [record.getMessage() for record in caplog.records if record.name == "shield"]
    assert said == ["Labs may reach a cloud's metadata service: the agent isn't root: run it as root"]
