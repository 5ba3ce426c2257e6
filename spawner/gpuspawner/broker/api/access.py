"""Who asks, and how far their scopes reach: everybody, the members of some groups, or themselves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

READ_SCOPE = "custom:gpu:read"
"""Shows who holds what and who waits."""
RESERVE_SCOPE = "custom:gpu:reserve"
"""Keeps GPUs for lab sessions, extends and stops servers, writes notices; includes `custom:gpu:read`."""
ADMIN_SCOPE = "custom:gpu:admin"
"""Changes quotas and GPU-hours, takes devices out of service; includes `custom:gpu:reserve`."""
STOP_SCOPE = "delete:servers"
"""JupyterHub's own scope to stop servers: the service asks for it and uses the sender's own token."""

_GROUP = "!group="


@dataclass(frozen=True, slots=True)
class Reach:
    """Whom a scope covers: everybody, or the members of `groups`. Empty without the scope."""

    everybody: bool = False
    groups: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.everybody or bool(self.groups)

    def __or__(self, other: Reach) -> Reach:
        return Reach(self.everybody or other.everybody, self.groups | other.groups)

    def covers(self, groups: Iterable[str]) -> bool:
        """Whether it covers a member of these groups."""
        return self.everybody or not self.groups.isdisjoint(groups)

    def covers_each(self, groups: Collection[str]) -> bool:
        """Whether it covers each of these groups as a whole. What concerns no group needs everybody."""
        return self.everybody or (bool(groups) and self.groups.issuperset(groups))


NOBODY = Reach()
EVERYBODY = Reach(everybody=True)


def reach_of(scopes: Iterable[str], scope: str) -> Reach:
    """Whom `scope` covers in these expanded scopes. Filters other than `!group=` add nobody."""
    held = set(scopes)
    prefix = f"{scope}{_GROUP}"
    groups = frozenset(each.removeprefix(prefix) for each in held if each.startswith(prefix))
    return Reach(scope in held, groups)


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person or service that asks: a name confirmed by the hub, and what it may see and do.

    `owns` is False for a service's token: a service called "anna" is not the user "anna". `hub`
    distinguishes two hubs of one broker, whose users may have equal names; None if there is one hub.
    `stops` says whether the hub lets the sender's token stop the sender's own servers. `servers` names those
    that run, with a GPU or without, and when each was started; None if the hub doesn't say. `local`: an
    account of this machine, on the broker's unix socket, which only its admins reach.
    """

    name: str
    read: Reach = NOBODY
    reserve: Reach = NOBODY
    admin: Reach = NOBODY
    owns: bool = True
    hub: str | None = None
    groups: tuple[str, ...] = ()
    stops: bool = False
    servers: Mapping[str, datetime | None] | None = field(default=None, hash=False)
    local: bool = False

    @property
    def sees_all(self) -> bool:
        """Whether everything may be seen."""
        return self.read.everybody

    @property
    def author(self) -> str:
        """The name for ledger and audit log."""
        return self.name if self.owns or self.local else f"service {self.name}"

    @property
    def via(self) -> str:
        """The way by which a program's request came, for the audit log."""
        return "socket" if self.local else "api"

    def is_mine(self, entry: Mapping[str, Any]) -> bool:
        """Whether a lease or queue entry belongs to this viewer."""
        return self.owns and entry["user"] == self.name and self._is_here(entry)

    def sees(self, entry: Mapping[str, Any]) -> bool:
        """Whether a lease, queue entry or record may be shown with its names."""
        return self.is_mine(entry) or self.may(self.read, entry)

    def changes(self, entry: Mapping[str, Any]) -> bool:
        """Whether this viewer may change a lease: their own, or one of somebody they look after."""
        return self.is_mine(entry) or self.may(self.reserve, entry)

    def may(self, reach: Reach, entry: Mapping[str, Any]) -> bool:
        """Whether `reach` covers the entry's user. Groups are those of the viewer's own hub."""
        if reach.everybody:
            return True
        return self._is_here(entry) and reach.covers(entry.get("groups", ()))

    def _is_here(self, entry: Mapping[str, Any]) -> bool:
        return self.hub is None or entry.get("hub", self.hub) == self.hub


def viewer_of(model: Mapping[str, Any], hub: str | None = None) -> Viewer:
    """The viewer for a user model from the hub's `GET /api/user`."""
    scopes: Collection[str] = model.get("scopes", ())
    name, owns = str(model["name"]), model.get("kind", "user") == "user"
    admin = reach_of(scopes, ADMIN_SCOPE)
    reserve = reach_of(scopes, RESERVE_SCOPE) | admin
    return Viewer(
        name=name,
        read=reach_of(scopes, READ_SCOPE) | reserve,
        reserve=reserve,
        admin=admin,
        owns=owns,
        hub=hub,
        groups=tuple(sorted(model.get("groups", ()))) if owns else (),
        stops=owns and (STOP_SCOPE in scopes or f"{STOP_SCOPE}!user={name}" in scopes),
        servers=_servers(model.get("servers")) if owns else None,
    )


def _servers(listed: object) -> Mapping[str, datetime | None] | None:
    """Those of the hub's `servers` (with the scope `read:servers`) that run, with the time of their start."""
    if not isinstance(listed, Mapping):
        return None
    return {
        str(name): datetime.fromisoformat(str(server["started"])) if server.get("started") else None
        for name, server in listed.items()
        if server.get("pending") != "stop" and server.get("ready")
    }
