"""Which volume is the home: shared folders and data sets never are."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.hub.home import Home, Volume, belongs_to_root, find_home, own_home

NAMES = ("Ada", "-41da")
HOME = Volume("{prefix}-home-{username}", "gpuspawner-home--41da", "/home/jovyan")
SHARED = Volume("/srv/shared", "/srv/shared", "/shared")
DATA = Volume("/srv/data", "/srv/data", "/data", read_only=True)


def test_a_shared_folder_that_comes_first_is_not_the_home() -> None:
    assert find_home((SHARED, DATA, HOME), NAMES, "/workspace") == Home(HOME, unknown=True)


@pytest.mark.parametrize(
    ("place", "unknown"),
    [
        ("/home/jovyan", False),
        ("/home/jovyan/work", False),
        ("/home", False),
        ("/home/jovyanna", True),
        ("/workspace", True),
        ("/", True),
        ("", True),
    ],
)
def test_the_home_of_an_image_that_works_elsewhere(place: str, unknown: bool) -> None:
    assert find_home((HOME,), NAMES, place) == Home(HOME, unknown)


def test_a_shared_folder_in_the_working_directory_doesnt_make_the_home_known() -> None:
    inside = replace(SHARED, target="/workspace/shared")
    assert find_home((inside, HOME), NAMES, "/workspace") == Home(HOME, unknown=True)


def test_without_a_volume_of_the_users_there_is_no_home() -> None:
    assert find_home((), NAMES, "/") is None
    assert find_home((SHARED, DATA), NAMES, "/") is None
    assert find_home((replace(HOME, read_only=True),), NAMES, "/") is None


def test_of_two_volumes_of_the_users_the_one_that_the_image_knows() -> None:
    scratch = Volume("scratch-{raw_username}", "scratch-Ada", "/scratch")
    assert find_home((scratch, HOME), NAMES, "/home/jovyan") == Home(HOME, unknown=False)
    assert find_home((scratch, HOME), NAMES, "/workspace") == Home(scratch, unknown=True)


@pytest.mark.parametrize(
    ("source", "is_home"),
    [
        ("/srv/homes/Ada", True),
        ("home-Ada", True),
        ("home--41da", True),
        ("/srv/homes/Adam", False),
        ("home-Adam", False),
        ("shared", False),
    ],
)
def test_a_name_that_a_hook_made(source: str, is_home: bool) -> None:
    volume = Volume(source, source, "/home/jovyan")
    assert find_home((SHARED, volume), NAMES, "/") == (Home(volume, unknown=True) if is_home else None)


def test_a_template_goes_before_a_name_that_only_looks_like_the_users() -> None:
    course = Volume("course-home-data", "course-home-data", "/course")
    mine = Volume("lab-{username}", "lab-home", "/home/jovyan")
    assert find_home((course, mine), ("home", "home"), "/") == Home(mine, unknown=True)


def test_braces_that_are_no_template() -> None:
    odd = Volume("/srv/{", "/srv/{", "/odd")
    assert find_home((odd,), NAMES, "/") is None


def test_a_setting_names_the_home() -> None:
    assert find_home((SHARED, HOME), NAMES, "/", "/shared/") == Home(SHARED, unknown=True)
    assert find_home((SHARED, HOME), NAMES, "/home/jovyan", "/home/jovyan") == Home(HOME, unknown=False)
    with pytest.raises(ConfigError, match="no volume is mounted there: use one of /home/jovyan, /shared"):
        find_home((SHARED, HOME), NAMES, "/", "/home/ada")


def test_the_archive_that_makes_a_home_its_users() -> None:
    parent, data = own_home("/home/jovyan", "1001:100")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (entry,) = archive.getmembers()
    assert (parent, entry.name, entry.isdir(), entry.mode, entry.uid, entry.gid) == (
        "/home", "jovyan", True, 0o755, 1001, 100,
    )  # fmt: skip


@pytest.mark.parametrize(("user", "is_roots"), [("0:0", True), ("1000:100", False)])
def test_whose_a_folder_is(user: str, is_roots: bool) -> None:
    _, archive = own_home("/home/jovyan", user)
    assert belongs_to_root(archive) is is_roots
    assert belongs_to_root(archive[: tarfile.BLOCKSIZE]) is is_roots


@pytest.mark.parametrize("block", [b"", b"x" * 512, b"\0" * 512])
def test_what_cant_be_read_is_left_alone(block: bytes) -> None:
    assert not belongs_to_root(block)
