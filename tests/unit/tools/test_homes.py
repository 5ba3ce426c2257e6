"""Homes are told from other volumes by their names; what is done to them is done to them alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.core.labels import HOME_SIZE
from gpuspawner.tools import cli
from gpuspawner.tools.homes import (
    HomeVolume,
    archive,
    list_homes,
    of_users,
    own_name,
    patterns_of,
    placed,
    remove,
    retire,
    why_none,
)
from traitlets.config import Config

ADA = HomeVolume("gpuspawner-home-ada", "ada", 5 << 30, True)
BEN = HomeVolume("gpuspawner-home-ben", "ben", 1 << 20, False, 20 << 30)


class Docker:
    """Docker with volumes; remembers what was asked of it."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "create_host_config": {"made": "host"},
            "volumes": {"Volumes": None},
            **answers,
        }
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((method, *args, *kwargs.values()))
        answer = self.answers.get(method)
        if isinstance(answer, Exception):
            raise answer
        return answer


def volume(name: str, size: int, count: int) -> dict[str, Any]:
    return {"Name": name, "UsageData": {"Size": size, "RefCount": count}}


def test_homes_are_listed_the_largest_first() -> None:
    docker = Docker(
        df={
            "Volumes": [
                {**volume("gpuspawner-home-ben", 1 << 20, 0), "Labels": {HOME_SIZE: str(20 << 30)}},
                {**volume("gpuspawner-home-ada", 5 << 30, 2), "Labels": {HOME_SIZE: "much"}},
                {**volume("gpuspawner-home-", 7, 0), "Labels": None},
                volume("course-data", 9, 0),
                volume("other-gpuspawner-home-ada", 9, 0),
                volume("gpuspawner-home-cy-2d-x", -1, 0),
            ]
        }
    )
    assert list_homes(docker, patterns_of(Config())) == (
        ADA,
        BEN,
        HomeVolume("gpuspawner-home-cy-2d-x", "cy-2d-x", None, False),
    )


def test_homes_of_limited_size_are_listed_too() -> None:
    """Docker's measurement leaves volumes with options out."""
    plain = volume("gpuspawner-home-ada", 5 << 30, 2)
    limited = {
        "Name": "gpuspawner-home-ben",
        "Labels": {HOME_SIZE: str(20 << 30)},
        "Options": {"size": "20g"},
    }
    docker = Docker(
        df={"Volumes": [plain]},
        volumes={"Volumes": [{**plain, "UsageData": None, "Options": None}, limited]},
        containers=[{"Mounts": [{"Name": "gpuspawner-home-ben"}]}, {"Mounts": [{"Source": "/srv"}]}, {}],
    )
    assert list_homes(docker, patterns_of(Config())) == (ADA, replace(BEN, size_bytes=None, in_use=True))


@pytest.mark.parametrize(
    ("settings", "name", "user"),
    [
        ({"prefix": "course-a"}, "course-a-home-ada", "ada"),
        ({"volumes": {"home-{username}": "/home"}}, "home-ada", "ada"),
        ({"volumes": {"{username}-{servername}-x": "/home"}}, "ada-train-x", "ada"),
        ({"volumes": {"{username}-of-{username}": "/home"}}, "ada-of-ada", "ada"),
        ({"volumes": {"{username}-of-{username}": "/home"}}, "ada-of-ben", None),
        ({"volumes": {"/srv/{username}": "/home"}}, "/srv/ada", None),
        ({"volumes": {"shared": "/shared"}}, "shared", None),
        ({"volumes": {}, "mounts": [{"source": "nfs-{username}", "target": "/home"}]}, "nfs-ada", "ada"),
        ({"volumes": {}, "mounts": [{"type": "tmpfs", "source": None, "target": "/x"}]}, "x", None),
    ],
)
def test_names_of_homes_by_the_settings(settings: dict[str, Any], name: str, user: str | None) -> None:
    config = Config()
    config.GpuDockerSpawner.update(settings)
    found = list_homes(Docker(df={"Volumes": [volume(name, 1, 0)]}), patterns_of(config))
    assert [home.user for home in found] == ([] if user is None else [user])


def test_names_that_the_site_makes_itself() -> None:
    config = Config()
    config.DockerSpawner.format_volume_name = lambda name, spawner: name
    with pytest.raises(ConfigError, match="homes can't be found by their names"):
        patterns_of(config)


def test_homes_of_users() -> None:
    assert of_users((ADA, BEN), ["ben"]) == (BEN,)
    assert of_users((ADA, BEN), ["gpuspawner-home-ada", "ben"]) == (ADA, BEN)
    with pytest.raises(ConfigError, match="'cy' has no home here: `gpuspawner homes` lists them"):
        of_users((ADA, BEN), ["ben", "cy"])


def test_an_archive_is_made_by_a_container_that_never_starts(tmp_path: Path) -> None:
    docker = Docker(create_container={"Id": "c1"}, get_archive=((part for part in (b"ab", b"c")), {}))
    assert archive(docker, BEN, tmp_path, "lab:1") == tmp_path / "gpuspawner-home-ben.tar"
    assert (tmp_path / "gpuspawner-home-ben.tar").read_bytes() == b"abc"
    assert docker.calls == [
        ("create_host_config", {BEN.name: {"bind": "/home-to-archive", "mode": "ro"}}, "none"),
        ("create_container", "lab:1", ["true"], {"made": "host"}),
        ("get_archive", "c1", "/home-to-archive/."),
        ("remove_container", "c1", True),
    ]


def test_half_an_archive_is_no_archive_and_an_older_one_stays(tmp_path: Path) -> None:
    def broken() -> Any:
        yield b"a"
        raise EngineFault("gone")

    docker = Docker(create_container={"Id": "c1"}, get_archive=(broken(), {}))
    with pytest.raises(EngineFault):
        archive(docker, BEN, tmp_path, "lab:1")
    assert list(tmp_path.iterdir()) == []
    assert docker.calls[-1] == ("remove_container", "c1", True)
    old = tmp_path / "gpuspawner-home-ben.tar"
    old.write_bytes(b"old")
    docker = Docker(create_container={"Id": "c1"}, get_archive=((part for part in (b"new",)), {}))
    with pytest.raises(ConfigError, match=r"gpuspawner-home-ben.tar exists and is kept: move it, or give"):
        archive(docker, BEN, tmp_path, "lab:1")
    assert old.read_bytes() == b"old"
    assert docker.calls == []


def test_an_archive_needs_its_folder(tmp_path: Path) -> None:
    docker = Docker()
    with pytest.raises(ConfigError, match=r"there is no folder .*/none: create it, or give another one"):
        archive(docker, BEN, tmp_path / "none", "lab:1")
    assert docker.calls == []


def test_where_no_home_is_found_the_other_prefixes_are_named() -> None:
    volumes = {"Volumes": [{"Name": "course-a-home-ada"}, {"Name": "b-home-ben"}, {"Name": "data"}]}
    assert why_none(Docker(volumes=volumes), Config()) == (
        "Docker has no home of the hub 'gpuspawner', but volumes that look like homes of 'b', 'course-a': "
        "give the hub's file with --config, and set GPUSPAWNER_NAME as it was when the hub was started, like "
        "GPUSPAWNER_NAME=b"
    )
    config = Config({"GpuDockerSpawner": {"prefix": "x", "volumes": {"home-{username}": "/home"}}})
    for docker in (Docker(volumes=volumes), Docker(volumes={"Volumes": None})):
        assert why_none(docker, config) == "Docker has no home of the hub 'x'"


def test_users_are_named_as_they_log_in() -> None:
    lovelace = HomeVolume("gpuspawner-home-ada-20lovelace", "ada-20lovelace", 1, False)
    assert of_users((ADA, lovelace), ["Ada Lovelace"]) == (lovelace,)
    assert of_users((ADA, lovelace), ["ada-20lovelace"]) == (lovelace,)
    other = HomeVolume("gpuspawner-home-ada-2d20lovelace", "ada-2d20lovelace", 1, False)
    with pytest.raises(ConfigError, match="'ada-20lovelace' may be two users here: give the name of the"):
        of_users((lovelace, other), ["ada-20lovelace"])
    assert of_users((lovelace, other), [lovelace.name]) == (lovelace,)


@pytest.mark.parametrize(
    ("user", "login", "shown"),
    [
        ("ada", "ada", "ada"),
        ("-f0-9f-98-80", "😀", "😀 (-f0-9f-98-80)"),
        ("ada-20lovelace", "ada lovelace", "ada lovelace (ada-20lovelace)"),
        ("x-41", "x-41", "x-41"),  # the hub has no upper case: not "xA"
        ("ada_b", "ada_b", "ada_b"),
        ("-ff", "-ff", "-ff"),
    ],
)
def test_a_list_shows_the_name_with_which_a_user_logs_in(user: str, login: str, shown: str) -> None:
    home = HomeVolume(f"gpuspawner-home-{user}", user, 1, False)
    assert (home.login, home.shown_user) == (login, shown)


def test_a_home_is_removed_unless_it_is_in_use() -> None:
    docker = Docker()
    remove(docker, BEN)
    assert docker.calls == [("remove_volume", BEN.name)]
    remove(Docker(remove_volume=EngineFault("no such volume", 404)), BEN)
    for used, volume_ in ((Docker(), ADA), (Docker(remove_volume=EngineFault("in use", 409)), BEN)):
        with pytest.raises(ConfigError, match="is in use: stop the user's servers first"):
            remove(used, volume_)
    with pytest.raises(EngineFault):
        remove(Docker(remove_volume=EngineFault("down")), BEN)


def test_a_home_is_retired_by_its_archive_and_then_its_end(tmp_path: Path) -> None:
    docker = Docker(create_container={"Id": "c1"}, get_archive=((part for part in (b"abc",)), {}))
    target = retire(docker, BEN, tmp_path, "lab:1")
    assert target.read_bytes() == b"abc"
    assert docker.calls[-2:] == [("remove_container", "c1", True), ("remove_volume", BEN.name)]
    # The next one of that name: nothing is removed that isn't archived.
    again = Docker(create_container={"Id": "c1"})
    with pytest.raises(ConfigError, match="exists and is kept"):
        retire(again, BEN, tmp_path, "lab:1")
    with pytest.raises(ConfigError, match="is in use"):
        retire(again, ADA, tmp_path, "lab:1")
    broken = Docker(create_container=EngineFault("no space left"))
    with pytest.raises(EngineFault):
        retire(broken, replace(BEN, name="another"), tmp_path, "lab:1")
    assert "remove_volume" not in [call[0] for call in again.calls + broken.calls]


@pytest.mark.parametrize("name", ["ada", "--yes"])
def test_the_documented_hook_retires_the_home_of_a_deleted_user(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "admins.md").read_text()
    (hook,) = [text for text in page.split("```python\n")[1:] if "def delete_user" in text]
    begun: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", begun.append)
    settings: dict[str, Any] = {"c": Config()}
    exec(hook.partition("```")[0], settings)
    authenticator = settings["c"].JupyterHub.authenticator_class()
    authenticator.allowed_users = {name}
    authenticator.delete_user(SimpleNamespace(name=name))
    assert authenticator.allowed_users == set()
    ((_, _, module, *words),) = begun
    assert module == "gpuspawner.tools.cli"
    app = cli.Homes()
    app.initialize(words[1:])
    assert (app.to, app.config_file, app.yes) == ("/srv/archive", "/srv/course.py", False)
    assert app.extra_args == ["retire", name]


def swarm(**more: Any) -> Docker:
    """A Swarm of a and b: ada's home is on b, with a running server, and ben's is here."""
    nodes = [{"ID": each, "Spec": {"Labels": {}, "Availability": "active"}, "Status": {"State": "ready"},
              "Description": {"Hostname": each}} for each in ("a", "b")]  # fmt: skip
    mounts = [{"Source": ADA.name, "Target": "/home"}, {"Source": "/srv", "Target": "/srv"}]
    specs: list[dict[str, Any]] = [{"ContainerSpec": {"Mounts": mounts}}, {"ContainerSpec": {}}]
    config = {"Spec": {"Labels": {"gpuspawner.home": ADA.name, "gpuspawner.node": "b"}}}
    return Docker(
        nodes=nodes,
        services=[{"Spec": {"TaskTemplate": each}} for each in specs],
        configs=[config],
        inspect_config=config,
        info={"Swarm": {"NodeID": "a", "ControlAvailable": True}},
        **more,
    )


def test_in_a_swarm_each_home_has_its_machine() -> None:
    docker = swarm()
    assert own_name(docker) == "a"
    copy_of_ada = replace(ADA, in_use=False)  # from before it was moved
    assert placed(docker, (copy_of_ada, BEN), patterns_of(Config()), "a") == (
        replace(BEN, machine="a"),
        HomeVolume(ADA.name, "ada", None, True, machine="b"),
    )
