"""A full lecture hall: 500 users wait with their pages open at the usual limit of 1,024 open files."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import pytest

from tests.hub.hubprocess import HubProcess, eventually
from tests.hub.lecture import Lecture, Process, held

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(
        "GPUSPAWNER_LECTURE" not in os.environ, reason="a full lecture hall takes long: make test-lecture"
    ),
]

USERS = int(os.environ.get("GPUSPAWNER_LECTURE_USERS") or 500)
ROUNDS = int(os.environ.get("GPUSPAWNER_LECTURE") or 10)
CALLBACKS = Path(tempfile.gettempdir()) / f"gpuspawner-callbacks-{os.getpid()}"
HUB_ENVIRONMENT = {
    "GPUSPAWNER_TEST_QUEUE_TIMEOUT": "3600",
    "GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("lecture_config.py")),
    "GPUSPAWNER_TEST_CALLBACKS": str(CALLBACKS),
}
HUB_OPEN_FILES = 1024
"""The hub starts with this soft limit, as under systemd or from a shell."""
FEW_FILES = 40
"""More open files than before are within this: idle connections to Docker (at most 32) and to the proxy."""
FEW_BYTES = 64 << 20
STALL_SECONDS = 0.25
"""Nothing else happens in the hub during one callback of its loop (processor time)."""


@pytest.fixture(autouse=True)
def many_files() -> None:
    """This process plays 500 browsers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"the hard limit of open files here is {hard}: 500 users need 4,096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))


@pytest.mark.parametrize("way", ["api", "page"])
async def test_500_wait_and_leave_nothing_behind(hub: HubProcess, way: str) -> None:
    """By the hub's API with a token; or each in a browser of their own, with all that their pages ask for."""
    lecture = Lecture(hub, [f"student{number}" for number in range(USERS)])
    await lecture.add_users()
    if way == "page":
        await lecture.log_in()
    for user in ("one", "two"):
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    CALLBACKS.unlink(missing_ok=True)
    try:
        await rounds(hub, lecture)
    finally:
        await lecture.close()
    assert long_callbacks() == []
    assert "Too many open files" not in hub.log
    assert await hub.leases() == [("one", "", "running"), ("two", "", "running")]
    for user in ("one", "two"):
        await hub.stop_server(user)


def long_callbacks() -> list[str]:
    """Those that held the hub's loop up for too long; prints the longest: seconds, those collecting."""
    lines = CALLBACKS.read_text().splitlines() if CALLBACKS.exists() else []
    longest = sorted(lines, key=lambda line: -float(line.split()[0]))
    print("longest callbacks:", longest[:3])
    return [line for line in longest if float(line.split()[0]) > STALL_SECONDS]


async def rounds(hub: HubProcess, lecture: Lecture) -> None:
    """The same again and again; at the end, hub and broker hold what they held after the first."""
    before: dict[str, Process] = {}
    for number in range(ROUNDS):
        seen = await lecture.round()
        print(f"round {number + 1}: {seen.seconds:.0f} s, held {seen.held}")
        assert seen.failures == []
        assert len(seen.in_line) == USERS
        assert seen.held["hub"].files <= 2 * USERS + 100
        assert seen.held["broker"].files <= USERS + 100
        if number == 0:  # the first round fills pools and caches
            before = held(hub)

    async def back_at_the_start() -> bool:
        after = held(hub)
        assert set(after) == {"hub", "broker"}
        for name, process in after.items():
            assert process.files <= before[name].files + FEW_FILES, (name, process, before[name])
            assert process.threads <= before[name].threads + 2, (name, process, before[name])
            assert process.memory_bytes <= before[name].memory_bytes + FEW_BYTES, (name, process)
        return True

    await eventually(back_at_the_start)
