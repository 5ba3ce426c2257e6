"""Whatever is made from the names of a user and a server belongs to them alone."""

from __future__ import annotations

import http.cookies
import re
from types import SimpleNamespace

import pytest
from dockerspawner import DockerSpawner
from gpuspawner.core.errors import BadOption
from gpuspawner.core.labels import Owner
from gpuspawner.core.text import escape_name, unescape_name
from gpuspawner.hub.names import check_names, oauth_client_of, usable_groups
from gpuspawner.hub.spawner import GpuDockerSpawner
from hypothesis import assume, given
from hypothesis import strategies as st

# What JupyterHub (6.1) takes for a user's name, and 5.5 for a server's: no slash. Small alphabets find more.
CLOSE = st.text("ab1f-\x01\x0f\x1f%!.", min_size=1, max_size=5)
NAMES = CLOSE | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=20
)
SERVERS = st.just("") | NAMES


def names_of(user: str, server: str) -> tuple[str, str, str, str]:
    """Container, OAuth client, owner's labels, and a home that a site wants for each server."""
    row = SimpleNamespace(name=server, server=None)
    spawner = GpuDockerSpawner(user=SimpleNamespace(name=user), orm_spawner=row, oauth_client_id="hub's")
    spawner.volumes = {"{prefix}-home-{username}--{servername}": "/home/jovyan"}
    (home,) = spawner.volume_binds
    owner = str(Owner("hub", user, server, "").labels())
    return spawner.object_name, spawner.oauth_client_id, owner, home


@given(NAMES, SERVERS, NAMES, SERVERS)
def test_no_two_servers_have_one_of_anything(user: str, server: str, other: str, second: str) -> None:
    assume((user, server) != (other, second))
    shared = [a for a, b in zip(names_of(user, server), names_of(other, second), strict=True) if a == b]
    assert shared == []


@given(NAMES, NAMES)
def test_no_two_users_have_one_home(user: str, other: str) -> None:
    assume(user != other)
    homes = [
        *GpuDockerSpawner(user=SimpleNamespace(name=user)).volume_binds,
        *GpuDockerSpawner(user=SimpleNamespace(name=other)).volume_binds,
    ]
    assert len(set(homes)) == 2


@given(NAMES)
def test_docker_takes_every_name(name: str) -> None:
    """Docker's rule for the names of containers and volumes: [a-zA-Z0-9][a-zA-Z0-9_.-]+."""
    assert re.fullmatch("(?:[a-z0-9]|-[0-9a-f]{2})+", escape_name(name))


@given(NAMES)
def test_an_escaped_name_is_read_back(name: str) -> None:
    assert unescape_name(escape_name(name)) == name


@pytest.mark.parametrize("text", ["Ada", "ada_b", "-f0-9f", "-4", "-61", "\u0100"])
def test_what_no_name_becomes_is_not_read_back(text: str) -> None:
    assert unescape_name(text) is None


@given(st.text(st.characters(min_codepoint=16, exclude_categories=["Cs"]), max_size=20))
def test_a_name_without_the_first_control_characters_is_dockerspawner_s(name: str) -> None:
    assert escape_name(name) == DockerSpawner._escape(name)


@given(NAMES, SERVERS)
def test_the_client_s_id_is_the_name_of_a_cookie(user: str, server: str) -> None:
    cookie: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
    cookie[oauth_client_of(user, server)] = "token"  # CookieError for a name that isn't one


@pytest.mark.parametrize(
    ("user", "server", "client"),
    [
        ("ada", "", "jupyterhub-user-ada"),
        ("ada", "b", "jupyterhub-user-ada!b"),
        ("ada-b", "", "jupyterhub-user-ada-b"),
        ("a@b.c", "", "jupyterhub-user-a%40b.c"),
    ],
)
def test_the_client_s_id(user: str, server: str, client: str) -> None:
    assert oauth_client_of(user, server) == client


def test_a_spawner_takes_its_own_client_s_id_when_it_is_made() -> None:
    spawner = GpuDockerSpawner(user=SimpleNamespace(name="ada-b"), oauth_client_id="jupyterhub-user-ada-b")
    assert spawner.oauth_client_id == oauth_client_of("ada-b", "")


@pytest.mark.parametrize(
    ("user", "server", "start"),
    [
        ("a\x1fb", "", "The user name 'a\\x1fb' has characters"),
        ("ada", "b\n", "The server name 'b\\n' has characters"),
        (
            "u" * 256,
            "",
            "The user name has 256 characters, and no server starts under a name of",
        ),
        ("ada", "s" * 256, "The server name has 256 characters"),
    ],
)
def test_names_that_no_message_names_are_refused(user: str, server: str, start: str) -> None:
    with pytest.raises(BadOption) as refused:
        check_names(user, server)
    assert refused.value.message.startswith(start)
    check_names("ada lovelace@é", "")
    check_names("u" * 255, "s" * 255)


def test_groups_that_no_message_can_name_are_told_apart() -> None:
    usable = ("<script>", "a/../b", "ml", "x" * 255, "שלום", "👩🏽\u200d🏫")
    others = ("a\nb", "x" * 256, "\u202egnol", "ml\u200d")
    assert usable_groups((*others, *usable)) == (tuple(sorted(usable)), tuple(sorted(others)))
