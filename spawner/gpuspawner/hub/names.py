"""What is made from the names of users and servers, one for each: pure, and no two names give the same.

Container and home are named with `{username}` and `{servername}` of DockerSpawner's templates. The hub
registers an OAuth client for a server; its id is the name of the server's cookie, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from ..core.errors import BadOption
from ..core.text import printable

MAX_CHARS = 255
"""Longest name of a user or a server in our messages, and in the columns of JupyterHub's database."""


def check_names(user: str, server: str) -> None:
    """Raises BadOption for names that no message names: too long, or not printable."""
    for what, name in (("user", user), ("server", server)):
        remedy = "Choose another name." if what == "server" else "Ask the admin of this hub to rename you."
        if len(name) > MAX_CHARS:
            raise BadOption(
                f"The {what} name has {len(name)} characters, and no server starts under a name of more than "
                f"{MAX_CHARS}. {remedy}"
            )
        if not printable(name):
            raise BadOption(
                f"The {what} name {name!r} has characters that can't be printed, so no server starts "
                f"under it. {remedy}"
            )


def usable_groups(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The groups that a message can name, sorted, and the others: too long, or not printable.

    No setting can name these others either, so nobody's quota is lost with them. A user who is in one starts.
    """
    listed = sorted(names)
    usable = tuple(name for name in listed if len(name) <= MAX_CHARS and printable(name))
    return usable, tuple(name for name in listed if name not in usable)


def oauth_client_of(user: str, server: str) -> str:
    """The id of a server's OAuth client; also the name of a cookie, so all of its characters are a cookie's.

    JupyterHub's (6.1) has a hyphen before the server's name: the user "ada" with a server "b" and the user
    "ada-b" would be one client, whose secret and address are those of who started last.
    """
    client = f"jupyterhub-user-{quote(user, safe='')}"
    return f"{client}!{quote(server, safe='')}" if server else client
