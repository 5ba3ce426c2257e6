"""Homes move between real machines with all that is in them; whatever is killed, each is on one machine."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.swarm.cluster import Machine
from tests.swarm.site import Site, site
from tests.swarm.swarm_hub import NAME, uuid_of
from tests.swarm.test_services import container_of

__all__ = ["site"]

pytestmark = pytest.mark.docker
HOME = "/home/jovyan"
BIG_BYTES = 30 << 20
SIZE = 300 << 20
"""Of the home that is moved and doesn't arrive. Nearly all of it is a hole."""


def odd_files() -> bytes:
    """A tar of what a home may have: modes, owners, names, links, an empty folder, a large file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", **more: Any) -> None:
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.size = 1_700_000_000, len(data)
            for key, value in {"mode": 0o644, "uid": 1000, "gid": 100, **more}.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(data))

        add("work", type=tarfile.DIRTYPE, mode=0o2775)
        add("work/secret.txt", b"mine\n", mode=0o600)
        add("work/run.sh", b"#!/bin/sh\n", mode=0o4711, uid=0, gid=0)
        add("work/nobody.txt", b"theirs\n", mode=0o000, uid=65534, gid=65534)
        add("work/same.txt", type=tarfile.LNKTYPE, linkname="work/secret.txt")
        add("work/link", type=tarfile.SYMTYPE, linkname="secret.txt", mode=0o777)
        add("work/broken", type=tarfile.SYMTYPE, linkname="/none/ü", mode=0o777)
        add("work/pipe", type=tarfile.FIFOTYPE)
        add("empty", type=tarfile.DIRTYPE, mode=0o1777)
        add(".wh.not-a-whiteout", b"kept\n")
        add(f"{'long-' * 40}ü \n.txt", b"named\n")
        add("data.bin", bytes(range(256)) * (BIG_BYTES // 256))
    return stream.getvalue()


def files_in(machine: Machine, container: str) -> dict[str, tuple[Any, ...]]:
    """What a container has in its home: by name, all that a tar says of it, and what is in it."""
    stream, _ = machine.client.get_archive(container, f"{HOME}/.")
    found: dict[str, tuple[Any, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        for each in tar:
            file = tar.extractfile(each) if each.isreg() else None
            data = file.read() if file is not None else b""
            found[each.name.strip("./")] = (
                each.type, each.mode, each.uid, each.gid, each.mtime, each.linkname, data,
            )  # fmt: skip
    return found


def volumes(machine: Machine, user: str = "ben") -> list[str]:
    """The user's home on a machine, and marks of homes that are unfinished there."""
    found = machine.client.volumes()["Volumes"] or []
    names = [str(each["Name"]) for each in found]
    return sorted(name for name in names if name == f"{NAME}-home-{user}" or "unfinished" in name)


def lab_of(site: Site, user: str, machine: str) -> str:
    """The container of the user's lab."""
    return str(container_of(site.machines, machine, user)["Id"])


def test_a_home_with_all_kinds_of_files_moves_and_its_user_starts_there(site: Site) -> None:
    hub, b, c = site.hub, site.machines["b"], site.machines["c"]
    hub.spawn("ada", "on-b")
    volume, lab = site.home("ada", "b"), lab_of(site, "ada", "b")
    b.client.put_archive(lab, HOME, odd_files())
    before = files_in(b, lab)
    assert len(before) > 10
    refused = hub.homes("move", "ada", "c")
    assert (refused.returncode, refused.stderr) == (
        1, "gpuspawner homes: A server of ada is running: stop it first, then move the home.\n"
    )  # fmt: skip
    hub.stop("ada")

    moved = hub.homes("move", "ada", "c")
    assert moved.returncode == 0, moved.stderr
    assert moved.stdout.splitlines()[-1] == (
        f"The home {volume} is on c now. The old copy stays on b until you remove it there: "
        f"`docker volume rm {volume}`."
    )
    assert volume in hub.homes().stdout
    hub.spawn("ada", "any")
    assert site.environment("ada", "c")["NVIDIA_VISIBLE_DEVICES"] == uuid_of("c")
    assert site.home("ada", "c") == volume
    assert files_in(c, lab_of(site, "ada", "c")) == before
    hub.stop("ada")

    assert [volumes(each, "ada") for each in (b, c)] == [[volume], [volume]]
    back = hub.homes("move", "ada", "b")
    assert (back.returncode, back.stderr) == (
        1,
        f"gpuspawner homes: b has an older volume {volume}, as of an earlier move. If nobody needs it, "
        f"remove it with `docker volume rm {volume}` on b, and try again.\n",
    )
    b.client.remove_volume(volume)
    assert hub.homes("move", "ada", "a").returncode == 0  # the hub's machine has no agent
    hub.spawn("ada", "cpu")
    assert files_in(site.machines["a"], lab_of(site, "ada", "a")) == before
    hub.stop("ada")


def folder_of(machine: Machine, volume: str) -> Path:
    """Where Docker has the files of a volume."""
    return machine.folder / "data" / "volumes" / volume / "_data"


def moves(site: Site) -> list[dict[str, Any]]:
    """The moves that the broker tells of; none while it doesn't answer."""
    command = ["curl", "-s", "--unix-socket", str(site.hub.folder / "broker.sock"), "http://b/homes/moves"]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout
    found: list[dict[str, Any]] = json.loads(said)["moves"] if said else []
    return found


@contextmanager
def moving(site: Site, user: str, machine: str) -> Iterator[Future[subprocess.CompletedProcess[str]]]:
    """A move that has begun to copy, and gets no further: the Docker that it writes to hangs meanwhile."""
    engine = site.machines[machine]
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(site.hub.homes, "move", user, machine)
        site.hub.until(
            lambda: any(each["state"] == "copying" and each["size_bytes"] > 1 << 20 for each in moves(site))
        )
        engine.freeze()
        try:
            yield command
        finally:
            engine.thaw()


@pytest.fixture
def home(site: Site) -> Iterator[str]:
    """The home of ben, on b, large enough that its copy takes some seconds; nothing of it is on c."""
    hub, b, c = site.hub, site.machines["b"], site.machines["c"]
    hub.spawn("ben", "on-b")
    volume = site.home("ben", "b")
    hub.stop("ben")
    large = folder_of(b, volume) / "large"
    with large.open("wb") as file:
        file.truncate(SIZE)
    yield volume
    large.unlink()
    assert volumes(c) == []


def starts_on_b(site: Site, volume: str) -> None:
    """Ben's home is on b, and nobody holds it."""
    site.hub.spawn("ben", "any")
    assert site.home("ben", "b") == volume
    assert (folder_of(site.machines["b"], volume) / "large").stat().st_size == SIZE
    site.hub.stop("ben")


def no_copy_on_c(site: Site) -> None:
    site.hub.until(lambda: volumes(site.machines["c"]) == [], 90)


def test_nothing_starts_while_a_home_moves_and_a_killed_broker_undoes_the_move(site: Site, home: str) -> None:
    hub = site.hub
    with moving(site, "ben", "c") as command:
        for tier in ("any", "cpu"):
            assert hub.refusal("ben", tier) == (
                "Your files are being moved to the machine c. Start your server again in some minutes."
            )
        again = hub.homes("move", "ben", "c")
        assert again.stderr == (
            f"gpuspawner homes: The home {home} is being moved: `gpuspawner homes` shows it.\n"
        )
        assert "b, moving to c" in hub.homes().stdout
        hub.kill_broker()
    assert command.result().returncode == 1
    hub.until(lambda: hub.serving() == site.all, 90)
    hub.until(lambda: "moving to" not in hub.homes().stdout, 90)
    no_copy_on_c(site)
    starts_on_b(site, home)


def test_an_agent_that_is_killed_or_hangs_ends_the_move_and_its_copy_is_removed(
    site: Site, home: str
) -> None:
    hub, agent = site.hub, site.agents["c"]
    with moving(site, "ben", "c") as command:
        agent.kill()
        done = command.result()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] in (  # the second if a step of the move was just to begin
        f"The home {home} was not moved, and is still on b: the connection was closed.",
        f"The home {home} was not moved, and is still on b: the machine c can't be reached: "
        "the connection was closed.",
    )
    starts_on_b(site, home)
    assert volumes(site.machines["c"]) != []  # nobody can reach it
    assert uuid_of("c") not in hub.serving()
    agent.start()
    no_copy_on_c(site)
    hub.until(lambda: hub.serving() == site.all)

    with moving(site, "ben", "c") as command:
        site.agents["b"].kill()
    assert command.result().returncode == 1
    site.agents["b"].start()
    hub.until(lambda: hub.serving() == site.all)
    no_copy_on_c(site)
    starts_on_b(site, home)


def test_a_full_disk_ends_the_move_and_the_home_stays(site: Site, home: str) -> None:
    c = site.machines["c"]
    place = folder_of(c, home).parent
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(place)], check=True)
    try:
        done = site.hub.homes("move", "ben", "c")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert done.stdout.splitlines()[-1] == (
        f"The home {home} was not moved, and is still on b: the disk of Docker on c is full: free space "
        "there, and move it again."
    )
    starts_on_b(site, home)
    no_copy_on_c(site)
