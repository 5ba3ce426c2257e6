"""The homes that Docker keeps: listed, measured, archived, removed; also those of users who left.

A home is a volume of Docker's whose name is made from a user's by a setting of `volumes`. Folders of the host
that a site mounts as homes are the site's own: they aren't touched here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from traitlets.config import Config

from ..core.errors import ConfigError, EngineFault
from ..core.labels import HOME_SIZE
from ..core.text import escape_name, unescape_name
from ..hub.swarm.machines import own_machine, read_machines
from ..node.docker_homes import UNFINISHED
from ..protocol.home_places import HomePlaces, held, used_volumes

DEFAULT_VOLUMES = {"{prefix}-home-{username}": "/home/jovyan"}
DEFAULT_PREFIX = "gpuspawner"
_SHOWN_PREFIXES = 5
_MOUNTED_AT = "/home-to-archive"
_USER_FIELDS = frozenset({"username", "safe_username", "raw_username"})

Call = Callable[..., Any]
"""A method of docker-py's APIClient by name; raises EngineFault."""


@dataclass(frozen=True, slots=True)
class HomeVolume:
    """A volume that is a home. `user` is as it stands in the volume's name (escaped, lower case).

    `size_bytes` is None where Docker doesn't say; `in_use` is whether a container has it, running or not.
    `limit_bytes` is how large it may become, None without a limit. `machine` has it, of several; "" where
    there is only one. `moving_to` is the machine to which it is being moved, "" if it isn't.
    """

    name: str
    user: str
    size_bytes: int | None
    in_use: bool
    limit_bytes: int | None = None
    machine: str = ""
    moving_to: str = ""

    @property
    def login(self) -> str:
        """The name with which the user logs in, if it can be told from the volume's; else `user`."""
        name = unescape_name(self.user)
        return name if name is not None and name == name.lower() else self.user

    @property
    def shown_user(self) -> str:
        """The user for a list: as they log in, and as the volume names them where that differs."""
        return self.user if self.login == self.user else f"{self.login} ({self.user})"


def patterns_of(config: Config) -> tuple[re.Pattern[str], ...]:
    """What the names of homes look like, by the settings; the group `user` is the user's name.

    Raises ConfigError if a function of the site creates the names.
    """
    settings = _settings_of(config)
    if "format_volume_name" in settings:
        raise ConfigError("c.DockerSpawner.format_volume_name is set: homes can't be found by their names")
    return _patterns(settings, re.escape(_prefix_of(settings)))


def own_name(call: Call) -> str:
    """The name of this machine in the Swarm. Raises ConfigError if its engine is no manager, EngineFault."""
    return own_machine(call, read_machines(call("nodes"))).name


def why_none(call: Call, config: Config) -> str:
    """What to say where no home was found: the prefix that was looked for, and others that Docker has.

    Raises EngineFault.
    """
    settings = _settings_of(config)
    prefix = _prefix_of(settings)
    patterns = _patterns(settings, "(?P<prefix>.+?)")
    names = [volume["Name"] for volume in call("volumes").get("Volumes") or ()]
    hits = (each.fullmatch(name) for name in names for each in patterns if "prefix" in each.groupindex)
    others = sorted({hit["prefix"] for hit in hits if hit} - {prefix})
    if not others:
        return f"Docker has no home of the hub {prefix!r}"
    return (
        f"Docker has no home of the hub {prefix!r}, but volumes that look like homes of "
        f"{', '.join(map(repr, others[:_SHOWN_PREFIXES]))}: give the hub's file with --config, and set "
        f"GPUSPAWNER_NAME as it was when the hub was started, like GPUSPAWNER_NAME={others[0]}"
    )


def _settings_of(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for section in ("DockerSpawner", "GpuDockerSpawner"):
        if config.has_key(section):
            settings.update(config[section])
    return settings


def _prefix_of(settings: Mapping[str, Any]) -> str:
    return str(settings.get("prefix", DEFAULT_PREFIX))


def _patterns(settings: Mapping[str, Any], prefix: str) -> tuple[re.Pattern[str], ...]:
    """The patterns of the homes' names; `prefix` is the pattern of their prefix."""
    volumes, mounts = settings.get("volumes", DEFAULT_VOLUMES), settings.get("mounts", ())
    templates = list(volumes) if isinstance(volumes, Mapping) else []
    templates += [each.get("source") or "" for each in mounts if isinstance(each, Mapping)]
    found = (_pattern(str(template), prefix) for template in templates)
    return tuple(pattern for pattern in found if pattern is not None)


def _pattern(template: str, prefix: str) -> re.Pattern[str] | None:
    """The pattern of a template that names the user; None for a folder of the host or a shared volume."""
    if template.startswith("/"):
        return None
    pattern, has_user, has_prefix = "", False, False
    for text, field, _, _ in Formatter().parse(template):
        pattern += re.escape(text)
        if field in _USER_FIELDS:
            pattern += "(?P=user)" if has_user else "(?P<user>.+)"
            has_user = True
        elif field == "prefix":
            pattern += ".*" if has_prefix else prefix
            has_prefix = True
        elif field is not None:
            pattern += ".*"
    return re.compile(pattern) if has_user else None


def list_homes(call: Call, patterns: tuple[re.Pattern[str], ...]) -> tuple[HomeVolume, ...]:
    """Every home, the largest first. Docker measures them, which may take minutes. Raises EngineFault.

    Docker (20.10, 28) neither measures nor counts volumes with options, as those of limited size: their size
    stays unknown.
    """
    found = []
    for volume in (*(call("df").get("Volumes") or ()), *_with_options(call)):
        if UNFINISHED in (volume.get("Labels") or {}):
            continue
        match = next((hit for each in patterns if (hit := each.fullmatch(volume["Name"]))), None)
        if match is not None:
            usage = volume.get("UsageData") or {}
            size, count = usage.get("Size", -1), usage.get("RefCount", 0)
            measured, limit = size if size >= 0 else None, _limit_of(volume)
            found.append(HomeVolume(volume["Name"], match["user"], measured, count > 0, limit))
    return tuple(sorted(found, key=lambda home: (-(home.size_bytes or 0), home.name)))


def _with_options(call: Call) -> list[dict[str, Any]]:
    """The volumes that Docker doesn't measure, each with how many containers have it."""
    volumes = [volume for volume in call("volumes").get("Volumes") or () if volume.get("Options")]
    if not volumes:
        return []
    mounts = [mount for each in call("containers", all=True) for mount in each.get("Mounts") or ()]
    counts = Counter(str(mount.get("Name")) for mount in mounts)
    return [{**volume, "UsageData": {"RefCount": counts[volume["Name"]]}} for volume in volumes]


def _limit_of(volume: Mapping[str, Any]) -> int | None:
    """The size with which the spawner created it, from its label."""
    text = str((volume.get("Labels") or {}).get(HOME_SIZE, ""))
    return int(text) if text.isdecimal() else None


def placed(
    call: Call, found: tuple[HomeVolume, ...], patterns: tuple[re.Pattern[str], ...], own: str
) -> tuple[HomeVolume, ...]:
    """The homes of a Swarm, with the machine of each; `found` are the volumes here, on the machine `own`.

    Of a home on another machine, Docker here knows neither size nor limit. Raises EngineFault.
    """
    where, used, moving = HomePlaces(own).all(call), used_volumes(call), held(call)
    placed_here = [
        replace(home, machine=where.get(home.name, own), in_use=home.in_use or home.name in used)
        for home in found
        if where.get(home.name, own) == own
    ]
    far = []
    for name, machine in sorted(where.items()):
        match = next((hit for each in patterns if (hit := each.fullmatch(name))), None)
        if machine != own and match is not None:
            far.append(HomeVolume(name, match["user"], None, name in used, machine=machine))
    return tuple(replace(home, moving_to=moving.get(home.name, "")) for home in (*placed_here, *far))


def of_users(homes: tuple[HomeVolume, ...], users: list[str]) -> tuple[HomeVolume, ...]:
    """The homes of these users, as they log in or as the list shows them, or with these volume names.

    Raises ConfigError if one has none, or if a name stands for two users.
    """
    chosen: set[HomeVolume] = set()
    for user in users:
        theirs = [home for home in homes if home.name == user or home.user in (user, _escaped(user))]
        if not theirs:
            raise ConfigError(f"{user!r} has no home here: `gpuspawner homes` lists them")
        if len({home.user for home in theirs}) > 1:
            names = " or ".join(sorted(home.name for home in theirs))
            raise ConfigError(f"{user!r} may be two users here: give the name of the volume, {names}")
        chosen.update(theirs)
    return tuple(home for home in homes if home in chosen)


def _escaped(user: str) -> str:
    """The name of a user, as they type it, as it stands in the volume's name; the hub makes it lower case."""
    return escape_name(user.lower())


def archive(call: Call, home: HomeVolume, folder: Path, image: str) -> Path:
    """Writes the home as `<volume>.tar` into `folder`; an older file of that name stays.

    A container of `image` is made for it and never started. Raises ConfigError without the folder and where
    the file exists, EngineFault, OSError.
    """
    target = folder / f"{home.name}.tar"
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: create it, or give another one with --to=FOLDER")
    if target.exists():
        raise ConfigError(f"{target} exists and is kept: move it, or give another folder with --to=FOLDER")
    host = call(
        "create_host_config", binds={home.name: {"bind": _MOUNTED_AT, "mode": "ro"}}, network_mode="none"
    )
    made = call("create_container", image, command=["true"], host_config=host)["Id"]
    try:
        stream, _ = call("get_archive", made, f"{_MOUNTED_AT}/.")
        with closing(stream), target.open("xb") as file:
            try:
                for part in stream:
                    file.write(part)
            except BaseException:
                target.unlink()  # an incomplete archive looks like a complete one
                raise
    finally:
        call("remove_container", made, force=True)
    return target


def retire(call: Call, home: HomeVolume, folder: Path, image: str) -> Path:
    """Archives the home, and removes it only when that is done. Raises ConfigError, EngineFault, OSError."""
    if home.in_use:
        raise ConfigError(_in_use(home))
    target = archive(call, home, folder, image)
    remove(call, home)
    return target


def _in_use(home: HomeVolume) -> str:
    return f"The home {home.name} is in use: stop the user's servers first"


def remove(call: Call, home: HomeVolume) -> None:
    """Removes the home permanently. Raises ConfigError while a container has it, EngineFault."""
    if home.in_use:
        raise ConfigError(_in_use(home))
    try:
        call("remove_volume", home.name)
    except EngineFault as fault:
        if fault.status == 409:
            raise ConfigError(_in_use(home)) from fault
        if fault.status != 404:
            raise
