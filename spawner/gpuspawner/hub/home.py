"""Finds the volume that is the user's home, and makes the user its owner. Pure.

A home is the volume that has the user's name, or the one that a setting names. Other volumes, such as
shared folders and data sets, are not changed.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from ..core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder of the container that remains when the container is removed.

    `template` is the source as the settings have it ("{prefix}-home-{username}"), `source` what it is for
    this user: a name means a Docker volume, a path means a folder of the host.
    """

    template: str
    source: str
    target: str
    read_only: bool = False

    @property
    def of_docker(self) -> bool:
        """Whether it is a Docker volume; the site decides who owns a folder of the host."""
        return not self.source.startswith("/")


@dataclass(frozen=True, slots=True)
class Home:
    """The user's volume. `unknown` is True if the image works in another folder, so that HOME must be set."""

    volume: Volume
    unknown: bool


def find_home(
    volumes: Sequence[Volume], names: Sequence[str], working_dir: str, setting: str = ""
) -> Home | None:
    """The home among the user's volumes; None if there is none. `names` are the user's (plain, escaped).

    An image knows a home that lies in its working directory, or the other way round. For other images, such
    as NVIDIA's (`/workspace`), files would otherwise be lost with the container. Raises ConfigError.
    """
    if setting:
        named = [volume for volume in volumes if _folder(volume.target) == _folder(setting)]
        if not named:
            raise ConfigError(
                f"c.GpuLab.home is {setting!r}, but no volume is mounted there: use one of "
                f"{', '.join(sorted(volume.target for volume in volumes)) or 'c.GpuDockerSpawner.volumes'}"
            )
        return Home(named[0], unknown=not _knows(working_dir, named[0]))
    own = [volume for volume in volumes if not volume.read_only and _names_user(volume.template)]
    if not own:
        own = [volume for volume in volumes if not volume.read_only and _has_name(volume.source, names)]
    if not own:
        return None
    known = next((volume for volume in own if _knows(working_dir, volume)), None)
    return Home(known or own[0], unknown=known is None)


def _knows(working_dir: str, volume: Volume) -> bool:
    place, folder = _folder(working_dir), _folder(volume.target)
    return place != "/" and (place.startswith(folder) or folder.startswith(place))


def _folder(path: str) -> str:
    return f"{path.rstrip('/')}/"


def _names_user(template: str) -> bool:
    """Whether the setting contains a template of the user's name: `{username}`, `{raw_username}`, …"""
    try:
        return any("user" in (name or "") for _, name, _, _ in Formatter().parse(template))
    except ValueError:
        return False


def _has_name(source: str, names: Sequence[str]) -> bool:
    """Whether a name from a hook or a callable contains the user's name, as a separate word."""
    words = re.split(r"[/_.-]", source)
    return any(name and (name in words or source.endswith((f"-{name}", f"/{name}"))) for name in names)


def own_home(home: str, user: str) -> tuple[str, bytes]:
    """The folder above `home`, and a tar archive that makes `home` the property of `user` ("uid:gid")."""
    parent, _, name = home.rpartition("/")
    uid, _, gid = user.partition(":")
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o755, int(uid), int(gid)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(entry)
    return parent or "/", data.getvalue()


def belongs_to_root(block: bytes) -> bool:
    """Whether the first entry of Docker's tar archive of the folder belongs to root.

    A new Docker volume does, if the image has no such folder. A volume that was already given to its user
    doesn't: then its permissions are not changed.
    """
    try:
        return tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").uid == 0
    except tarfile.HeaderError:
        return False
