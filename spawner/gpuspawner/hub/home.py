"""Which volume is the user's home, and how it becomes the user's. Pure.

A home is the volume that has the user's name, or the one that a setting names. Every other volume is
somebody else's: shared folders and data sets are left as they are.
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
    """A folder of the container that outlasts it.

    `template` is the source as the settings have it ("{prefix}-home-{username}"), `source` what it is for
    this user: a name is a volume of Docker's, a path a folder of the host.
    """

    template: str
    source: str
    target: str
    read_only: bool = False

    @property
    def of_docker(self) -> bool:
        """Whether Docker keeps it; a folder of the host belongs to whom the site gave it."""
        return not self.source.startswith("/")


@dataclass(frozen=True, slots=True)
class Home:
    """The user's volume. `unknown` is True where the image works elsewhere, so that HOME must be set."""

    volume: Volume
    unknown: bool


def find_home(
    volumes: Sequence[Volume], names: Sequence[str], working_dir: str, setting: str = ""
) -> Home | None:
    """The home among the volumes of the user with these names (plain, escaped); None if there is none.

    An image knows a home that lies in its working directory, or the other way round. Without the rest, the
    work of who starts NVIDIA's image (`/workspace`) would be gone with the container. Raises ConfigError.
    """
    if setting:
        named = [volume for volume in volumes if _folder(volume.target) == _folder(setting)]
        if not named:
            raise ConfigError(
                f"c.GpuLab.home is {setting!r}, and no volume is mounted there: name one of "
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
    """Whether the setting has the user's name filled in: `{username}`, `{raw_username}`, …"""
    try:
        return any("user" in (name or "") for _, name, _, _ in Formatter().parse(template))
    except ValueError:
        return False


def _has_name(source: str, names: Sequence[str]) -> bool:
    """Whether a name that a hook or a callable made has the user's in it, as a word of its own."""
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
    """Whether the first entry of a tar archive that Docker made of the folder is root's.

    A volume that Docker has just made is, where the image has no such folder. One that was given to its user
    already isn't: then its rights are the user's own business.
    """
    try:
        return tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").uid == 0
    except tarfile.HeaderError:
        return False
