"""setup/demo.py: every setting of `make hub` that can't work ends in a sentence with its remedy."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from setup import demo as demo_module
from setup.demo import (
    Demo,
    check_passwords,
    check_ports,
    lock,
    prepare_state_dir,
    read_demo,
    remember,
    with_base_url,
)
from setup.steps import SetupError


def environment(state: Path, **more: str) -> dict[str, str]:
    return {"GPUSPAWNER_STATE_DIR": str(state), **more}


def problem(error: pytest.ExceptionInfo[SetupError]) -> tuple[str, str]:
    return error.value.problem, error.value.remedy


def a_demo(state: Path, port: int) -> Demo:
    return Demo(
        port=port, state_dir=state, name="n", subnet="10.213.0.0/20", image="i", password="p" * 8,
        admin_password="a" * 32,
    )  # fmt: skip


def test_defaults(tmp_path: Path) -> None:
    demo = read_demo(environment(tmp_path / "state"))
    assert demo == Demo(
        port=8000,
        state_dir=tmp_path / "state",
        name="gpuspawner",
        subnet="10.213.0.0/20",
        image="gpuspawner/lab-torch:0.1.0",
        password=demo.password,
        admin_password=demo.admin_password,
    )
    assert (len(demo.password), len(demo.admin_password)) == (12, 32)
    assert demo.url == "http://127.0.0.1:8000/"


def test_what_is_given_is_passed_on(tmp_path: Path) -> None:
    own = tmp_path / "course.py"
    own.write_text("load_subconfig('/srv/gpuspawner/jupyterhub_config.py')")
    given = {
        "GPUSPAWNER_CONFIG": str(own),
        "GPUSPAWNER_PORT": "9100",
        "GPUSPAWNER_STATE_DIR": str(tmp_path),
        "GPUSPAWNER_NAME": "course",
        "GPUSPAWNER_SUBNET": "10.99.0.0/24",
        "GPUSPAWNER_IMAGE": "mine:1",
        "GPUSPAWNER_PASSWORD": "password",
        "GPUSPAWNER_ADMIN_PASSWORD": "a" * 32,
    }
    assert read_demo(given).environment() == given
    own.unlink()
    with pytest.raises(
        SetupError, match=r"^GPUSPAWNER_CONFIG=/.*/course\.py isn't there: name a file that loads"
    ):
        read_demo(given)


def test_made_up_passwords_stay_the_same_and_private(tmp_path: Path) -> None:
    first, second = read_demo(environment(tmp_path)), read_demo(environment(tmp_path))
    assert (first.password, first.admin_password) == (second.password, second.admin_password)
    assert stat.S_IMODE((tmp_path / "passwords.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", '{"user": "short", "admin": "short"}', '{"user": 7}'])
def test_a_damaged_password_file_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "passwords.json").write_text(content)
    demo = read_demo(environment(tmp_path))
    kept = json.loads((tmp_path / "passwords.json").read_text())
    assert kept == {"user": demo.password, "admin": demo.admin_password}


@pytest.mark.parametrize("port", ["", "0", "-1", "65533", "http", "80 "])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    with pytest.raises(SetupError) as error:
        read_demo(environment(tmp_path, GPUSPAWNER_PORT=port))
    assert problem(error) == (
        f"GPUSPAWNER_PORT is {port!r}: that is not a port",
        "give a number from 1 to 65532, like GPUSPAWNER_PORT=8000",
    )


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("GPUSPAWNER_NAME", "My Course", "GPUSPAWNER_NAME is 'My Course': Docker can't name"),
        ("GPUSPAWNER_SUBNET", "10.0.0.0/33", "GPUSPAWNER_SUBNET can't be used: the network '10.0.0.0/33'"),
    ],
)
def test_names_and_addresses_that_docker_cannot_use(
    tmp_path: Path, setting: str, value: str, said: str
) -> None:
    with pytest.raises(SetupError) as error:
        read_demo(environment(tmp_path, **{setting: value}))
    assert error.value.problem.startswith(said)


@pytest.mark.parametrize(
    ("user", "admin", "said"),
    [
        ("", None, "GPUSPAWNER_PASSWORD is empty: the hub needs 8 characters or more"),
        ("1234567", None, "GPUSPAWNER_PASSWORD is 7 characters long: the hub needs 8 characters or more"),
        (None, "", "GPUSPAWNER_ADMIN_PASSWORD is empty: the hub needs 32 characters or more"),
        (
            None,
            "a" * 31,
            "GPUSPAWNER_ADMIN_PASSWORD is 31 characters long: the hub needs 32 characters or more",
        ),
        ("a" * 32, "a" * 32, "GPUSPAWNER_PASSWORD and GPUSPAWNER_ADMIN_PASSWORD are the same"),
    ],
)
def test_passwords_that_the_hub_refuses(user: str | None, admin: str | None, said: str) -> None:
    with pytest.raises(SetupError) as error:
        check_passwords(user, admin)
    assert error.value.problem == said


def test_passwords_agree_with_the_hubs_own_rule() -> None:
    from jupyterhub.authenticators.shared import SharedPasswordAuthenticator as Shared

    own = (Shared._USER_PASSWORD_MIN_LENGTH, Shared._ADMIN_PASSWORD_MIN_LENGTH)
    assert own == (demo_module.USER_LENGTH, demo_module.ADMIN_LENGTH)
    check_passwords("p" * own[0], "a" * own[1])


def test_the_state_folder_is_private_and_left_clean(tmp_path: Path) -> None:
    folder = prepare_state_dir(tmp_path / "a" / "state")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(SetupError) as error:
        prepare_state_dir(tmp_path / "state")
    assert problem(error) == (
        f"the state folder {tmp_path / 'state'} is not a folder",
        "set GPUSPAWNER_STATE_DIR to one",
    )


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk of the state folder {0} is full"),
        (errno.EROFS, "the state folder {0} can't be written: Read-only file system"),
        (errno.EACCES, "the state folder {0} can't be written: Permission denied"),
    ],
)
def test_a_state_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(SetupError) as error:
        prepare_state_dir(tmp_path)
    assert error.value.problem == said.format(tmp_path)
    assert "GPUSPAWNER_STATE_DIR" in error.value.remedy


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    with pytest.raises(SetupError) as error:
        prepare_state_dir(folder)
    assert problem(error) == (
        f"GPUSPAWNER_STATE_DIR={folder} is too long for the sockets inside it",
        "use a shorter path",
    )
    assert not folder.exists()


def test_a_damaged_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    database = tmp_path / "jupyterhub.sqlite"
    database.write_bytes(b"not a database, surely" * 100)
    before = database.read_bytes()
    with pytest.raises(SetupError) as error:
        prepare_state_dir(tmp_path)
    assert error.value.problem == f"the hub's database {database} is damaged: file is not a database"
    assert "make clean-demo" in error.value.remedy
    assert database.read_bytes() == before


def test_a_locked_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "jupyterhub.sqlite"
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("CREATE TABLE t (x)")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(demo_module, "DATABASE_SECONDS", 0.0)
    with pytest.raises(SetupError) as error:
        prepare_state_dir(tmp_path)
    holder.close()
    assert problem(error) == (
        f"the hub's database {database} can't be used: database is locked",
        "end the program that has it open",
    )


def test_a_taken_port_is_named_with_its_purpose(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SetupError) as error:
            check_ports(a_demo(tmp_path, port - 3))
    assert error.value.problem == f"port {port}, which the GPU page needs, is taken"
    for name in ("PORT", "STATE_DIR", "NAME", "SUBNET"):
        assert f"GPUSPAWNER_{name}" in error.value.remedy


def test_two_hubs_on_one_state_folder(tmp_path: Path) -> None:
    first = lock(tmp_path)
    with pytest.raises(SetupError) as error:
        lock(tmp_path)
    assert error.value.problem == f"a hub already runs on {tmp_path} (process {os.getpid()})"
    os.close(first)
    os.close(lock(tmp_path))


@pytest.mark.parametrize(
    ("lines", "url"),
    [
        ("", "http://127.0.0.1:8000/"),
        ("c.JupyterHub.bind_url = 'http://127.0.0.1:8000/faculty/'", "http://127.0.0.1:8000/faculty/"),
        ("c.JupyterHub.bind_url = 'http://127.0.0.1:8000/faculty'", "http://127.0.0.1:8000/faculty/"),
        ("c.JupyterHub.base_url = 'faculty'", "http://127.0.0.1:8000/faculty/"),
    ],
)
def test_a_base_url_of_ones_own_file_is_in_the_address(tmp_path: Path, lines: str, url: str) -> None:
    config = tmp_path / "own.py"
    config.write_text(f"c = get_config()\n{lines}\n")
    own = replace(a_demo(tmp_path, 8000), config=config)
    assert with_base_url(own).url == url


def test_a_config_file_that_fails_says_why(tmp_path: Path) -> None:
    config = tmp_path / "own.py"
    config.write_text("1 / 0\n")
    with pytest.raises(SetupError, match=r"own\.py failed in line 1: ZeroDivisionError: division by zero"):
        with_base_url(replace(a_demo(tmp_path, 8000), config=config))


def test_what_the_hub_was_started_with_is_remembered_without_the_passwords(tmp_path: Path) -> None:
    """`gpuspawner` reads it, see tests/unit/tools/test_cli.py."""
    remember(a_demo(tmp_path, 8000), {"GPUSPAWNER_SIMULATED": "1 x A100 40GB", "HOME": "/root"})
    assert json.loads((tmp_path / "environment.json").read_text()) == {
        "GPUSPAWNER_PORT": "8000",
        "GPUSPAWNER_STATE_DIR": str(tmp_path),
        "GPUSPAWNER_NAME": "n",
        "GPUSPAWNER_SUBNET": "10.213.0.0/20",
        "GPUSPAWNER_IMAGE": "i",
        "GPUSPAWNER_CONFIG": str(demo_module.CONFIG),
        "GPUSPAWNER_SIMULATED": "1 x A100 40GB",
    }
