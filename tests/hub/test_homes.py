"""Homes at a site with shared folders, images of others and users who leave, in a real hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.hubprocess import NAME, HubProcess, eventually

pytestmark = pytest.mark.docker

HERE = Path(__file__).resolve().parent
NGC = "gpuspawner-hubtest/ngc"
"""As NVIDIA's images: it works in /workspace, as root."""


@pytest.fixture(scope="module", autouse=True)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Folders of the host, and the documents' hook for users who leave; this module's hub has them."""
    page = (HERE.parents[1] / "docs" / "admins.md").read_text()
    (hook,) = [text for text in page.split("```python\n")[1:] if "def delete_user" in text]
    made = Path(tempfile.mkdtemp(prefix="gh-homes-"))
    for name, mode in (("shared", 0o2775), ("data", 0o755), ("archive", 0o700)):
        (made / name).mkdir()
        shutil.chown(made / name, 0, 4242)
        (made / name).chmod(mode)
    (made / "data" / "set.csv").write_text("1,2\n")
    hook = hook.partition("```")[0].replace("/srv/archive", str(made / "archive"))
    (made / "hook.py").write_text(hook.replace("/srv/course.py", str(HERE / "hub_config.py")))
    request.module.HUB_ENVIRONMENT = {
        "GPUSPAWNER_TEST_MORE": str(HERE / "homes_config.py"),
        "GPUSPAWNER_TEST_FOLDER": str(made),
        "GPUSPAWNER_TEST_ALLOWED": f'{{"usual": "gpuspawner-hubtest/lab", "ngc": "{NGC}"}}',
    }
    yield made
    shutil.rmtree(made)


def said(hub: HubProcess, user: str, *command: str) -> str:
    """What a busybox command prints in the user's only lab."""
    made = hub.engine.exec_create(hub.inspect(user)["Id"], ["/bin/busybox", *command])
    return str(hub.engine.exec_start(made["Id"]).decode())


def rights(folder: Path) -> tuple[int, int, str]:
    """Owner, group and mode."""
    found = folder.stat()
    return found.st_uid, found.st_gid, oct(found.st_mode & 0o7777)


async def test_shared_folders_in_front_are_no_homes_and_stay_as_they_are(
    hub: HubProcess, folder: Path
) -> None:
    for user in ("ada", "ben"):
        assert (await hub.spawn(user, {"profile": "cpu", "image": "ngc"})).ready
    for user in ("ada", "ben"):
        # Each has written a line into its own HOME alone.
        assert said(hub, user, "cat", "/home/jovyan/wrote") == "mine\n"
        assert "HOME=/home/jovyan" in hub.inspect(user)["Config"]["Env"]
        assert said(hub, user, "cat", "/srv/data/set.csv") == "1,2\n"
        assert "Read-only" in said(hub, user, "touch", "/srv/data/x")
    assert rights(folder / "shared") == (0, 4242, "0o2775")
    assert rights(folder / "data") == (0, 4242, "0o755")
    for user in ("ada", "ben"):
        await hub.stop_server(user)


async def test_names_follow_server_and_image(hub: HubProcess) -> None:
    labs = {}
    for server, image in (("", "usual"), ("train", "ngc"), ("train-2", "ngc")):
        assert (await hub.spawn("carl", {"profile": "cpu", "image": image}, server=server)).ready
        (found,) = [lab for lab in hub.containers("carl") if lab["Labels"]["gpuspawner.server"] == server]
        labs[server] = hub.engine.inspect_container(found["Id"])
    assert {server: lab["Name"] for server, lab in labs.items()} == {
        "": f"/{NAME}-carl--in-gpuspawner-hubtest-lab",
        "train": f"/{NAME}-carl-train-in-gpuspawner-hubtest-ngc",
        "train-2": f"/{NAME}-carl-train-2d2-in-gpuspawner-hubtest-ngc",
    }
    for server, image in (("", "lab"), ("train", "ngc"), ("train-2", "ngc")):
        sources = {bind.split(":")[0] for bind in labs[server]["HostConfig"]["Binds"]}
        assert {f"{NAME}-home-carl", f"{NAME}-home-carl-gpuspawner-hubtest-{image}"} < sources
        await hub.stop_server("carl", server)
    assert hub.containers("carl") == []


async def test_by_the_documented_hook_who_comes_back_under_a_name_finds_an_empty_home(
    hub: HubProcess, folder: Path
) -> None:
    options = {"profile": "cpu", "image": "ngc"}
    assert (await hub.spawn("dora", options)).ready
    await hub.stop_server("dora")
    assert (await hub.call("DELETE", "/users/dora"))[0] == 204

    async def retired() -> bool:
        return bool(list((folder / "archive").iterdir())) and not volumes_of(hub, "dora")

    await eventually(retired)
    assert (await hub.spawn("dora", options)).ready
    assert said(hub, "dora", "cat", "/home/jovyan/wrote") == "mine\n"  # by this server alone
    await hub.stop_server("dora")


def volumes_of(hub: HubProcess, user: str) -> list[str]:
    """The names of the user's homes."""
    found = hub.engine.volumes(filters={"name": f"{NAME}-home-{user}"})["Volumes"] or ()
    return [volume["Name"] for volume in found if volume["Name"] == f"{NAME}-home-{user}"]
