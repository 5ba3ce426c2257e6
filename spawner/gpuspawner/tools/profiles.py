"""Translates KubeSpawner's `profile_list` to tiers, and says what has no counterpart here. Pure.

The keys are those of KubeSpawner 7.1 (`profile_list`, `kubespawner_override`, `profile_options`) and of
zero-to-jupyterhub 4 (`singleuser.profileList` and the defaults beside it).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..config.tiers import NAME, parse_tiers
from ..core.errors import ConfigError
from ..core.image_reference import allow_images
from ..core.units import parse_bytes

MAX_CHOICES = 16
"""A profile whose options make more combinations than this isn't split into tiers."""
_MAX_NAME_CHARS = 63
_GPU = "nvidia.com/gpu"
_MIG = "nvidia.com/mig-"
_IMAGE_KEYS = frozenset({"image", "image_spec"})
_ADVICE = {
    "mem_guarantee": "Docker reserves no memory: set mem_limit",
    "cpu_guarantee": "Docker reserves no cores: set cpu_shares of the tier",
    "default_url": "set c.GpuDockerSpawner.default_url for all tiers, or by tier in c.Spawner.pre_spawn_hook",
    "environment": "set c.GpuDockerSpawner.environment for all tiers, or by tier in c.Spawner.pre_spawn_hook",
    "cmd": "set c.GpuDockerSpawner.cmd for all tiers, or by tier in c.Spawner.pre_spawn_hook",
    "args": "set c.GpuDockerSpawner.args for all tiers, or by tier in c.Spawner.pre_spawn_hook",
    "start_timeout": "it is computed: set queue_timeout of the tier, and c.GpuDockerSpawner.http_timeout",
    "http_timeout": "set c.GpuDockerSpawner.http_timeout for all tiers",
    "lifecycle_hooks": "set c.GpuDockerSpawner.post_start_cmd for all tiers, or use nbgitpuller's links",
    "node_selector": 'there is one machine: for a type of GPU add the tier\'s model, like "H100"',
    "node_affinity_required": 'there is one machine: for a type of GPU add the tier\'s model, like "H100"',
    "tolerations": "there is one machine: remove it",
    "volumes": "set c.GpuDockerSpawner.volumes; for /dev/shm the tier's shm",
    "volume_mounts": "set c.GpuDockerSpawner.volumes; for /dev/shm the tier's shm",
    "image_pull_policy": "set c.GpuDockerSpawner.pull_policy for all tiers",
    "image_pull_secrets": "run `docker login` as the user that the hub runs as",
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies to every profile that doesn't override it; as KubeSpawner's settings."""

    image: str = ""
    mem_limit: Any = None
    cpu_limit: Any = None
    resource_limits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Untranslated:
    """Something without a counterpart: where it stands, and what to do instead."""

    where: str
    why: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.where}: {self.why}"


@dataclass(frozen=True, slots=True)
class Translation:
    """Settings that are valid here, and what they leave out."""

    tiers: tuple[dict[str, Any], ...]
    images: Mapping[str, str]
    """For `allowed_images`: shown name to image."""
    defaults: Defaults
    left: tuple[Untranslated, ...]


def translate(profiles: object, defaults: Defaults = Defaults()) -> Translation:
    """The tiers for a `profile_list`, a list or a dict. Raises ConfigError for one that can't be read."""
    work = _Work(defaults)
    listed = _listed(profiles)
    chosen = next((number for number, each in enumerate(listed) if each.get("default")), 0)
    for number, profile in enumerate(listed):
        work.add(profile, number, is_default=number == chosen)
    if len({tuple(sorted(images)) for images in work.image_lists}) > 1:
        work.leave("images", "the list of images is offered with every tier, not with one profile only")
    return Translation(tuple(work.tiers), work.images, defaults, tuple(work.left))


def render(translation: Translation, source: str) -> str:
    """The settings as Python, to be pasted into `jupyterhub_config.py`."""
    defaults, lines = translation.defaults, [f"# Translated from {source} by gpuspawner translate-profiles."]
    for name, value in (
        ("c.GpuDockerSpawner.image", defaults.image or None),
        ("c.Spawner.mem_limit", defaults.mem_limit),
        ("c.Spawner.cpu_limit", defaults.cpu_limit),
    ):
        if value is not None:
            lines.append(f"{name} = {_python(value)}")
    lines += ["c.GpuSite.tiers = [", *_entries(translation.tiers), "]"]
    if translation.images:
        pairs = (f"    {_python(name)}: {_python(image)}," for name, image in translation.images.items())
        lines += ["c.GpuDockerSpawner.allowed_images = {", *pairs, "}"]
    return "\n".join(lines) + "\n"


def _entries(tiers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for tier in tiers:
        yield "    {"
        yield from (f"        {_python(key)}: {_python(value)}," for key, value in tier.items())
        yield "    },"


def _python(value: object) -> str:
    """A literal with double quotes, as the rest of a config file has them."""
    if not isinstance(value, str):
        return repr(value)
    quoted = repr(value)
    return quoted if '"' in value or quoted.startswith('"') else f'"{quoted[1:-1]}"'


def _listed(profiles: object) -> list[Mapping[str, Any]]:
    """KubeSpawner's two forms as a list; a dict's order is that of its keys, as KubeSpawner sorts them."""
    if callable(profiles):
        raise ConfigError(
            "profile_list is a function, whose profiles differ by user: run it for one user, translate that "
            'list, and say by group who may have which tier (c.GpuSite.quotas, key "tiers")'
        )
    if isinstance(profiles, Mapping):
        profiles = [
            {"slug": slug, **each} if isinstance(each, Mapping) else each
            for slug, each in sorted(profiles.items())
        ]
    if not isinstance(profiles, list | tuple) or not profiles:
        raise ConfigError("profile_list is empty or no list: give the file in which the profiles stand")
    for number, each in enumerate(profiles, 1):
        if not isinstance(each, Mapping):
            raise ConfigError(f"profile {number} is no dictionary: give it a display_name at least")
    return list(profiles)


@dataclass(frozen=True, slots=True)
class _Choice:
    """One choice of one of a profile's options."""

    key: str
    title: str
    override: Mapping[str, Any]
    default: bool


class _Work:
    """What is collected while one profile after the other is translated."""

    def __init__(self, defaults: Defaults) -> None:
        self.tiers: list[dict[str, Any]] = []
        self.images: dict[str, str] = {}
        self.image_lists: list[frozenset[str]] = []
        self.left: list[Untranslated] = []
        self._defaults = defaults

    def leave(self, where: str, why: str) -> None:
        """Notes something that isn't translated, once."""
        note = Untranslated(where, why)
        if note not in self.left:
            self.left.append(note)

    def add(self, profile: Mapping[str, Any], number: int, *, is_default: bool) -> None:
        """Adds a profile's tier, or one for each combination of what can be chosen in it."""
        title = _plain(profile.get("display_name")) or f"Profile {number + 1}"
        where = f"profile {title!r}"
        for key in sorted(set(profile) - _PROFILE_KEYS):
            self.leave(f"{where}: {key}", "KubeSpawner has no such key in a profile")
        base = {"name": self._name(profile, title, where), "title": title}
        if description := _plain(profile.get("description")):
            base["description"] = description
        override = _mapping(profile.get("kubespawner_override"))
        splitting, override = self._options(profile, override, where)
        for choices in product(*splitting) if splitting else [()]:
            whole = dict(override)
            for choice in choices:
                whole.update(choice.override)
            tier = {**base, **self._overridden(whole, where)}
            if choices:
                tier["name"] = _shorten("-".join([tier["name"], *(each.key for each in choices)]))
                tier["title"] = ", ".join([title, *(each.title for each in choices)])
            if is_default and all(each.default for each in choices) and self.tiers:
                tier["default"] = True  # otherwise the first one is it
            self._keep(tier, where)

    def _keep(self, tier: dict[str, Any], where: str) -> None:
        """Adds the tier if our own reader accepts it beside the others."""
        try:
            parse_tiers([*self.tiers, tier])
        except ConfigError as error:
            self.leave(where, f"left out: {error}")
        else:
            self.tiers.append(tier)

    def _name(self, profile: Mapping[str, Any], title: str, where: str) -> str:
        """The slug, changed where a tier's name may not have its characters."""
        slug = str(profile.get("slug") or "")
        name = _shorten(re.sub(r"[^a-z0-9._-]+", "-", (slug or title).lower()).strip("._-") or "tier")
        if slug and slug != name:
            self.leave(f"{where}: slug", f"{slug!r} became {name!r}: change links and programs that use it")
        return name

    def _options(
        self, profile: Mapping[str, Any], override: Mapping[str, Any], where: str
    ) -> tuple[list[list[_Choice]], dict[str, Any]]:
        """The choices that make tiers, and the override with the default image of the others.

        A choice among images becomes `allowed_images`.
        """
        splitting: list[list[_Choice]] = []
        result = dict(override)
        images: dict[str, str] = {}
        for key, option in _mapping(profile.get("profile_options")).items():
            here = f"{where}: option {key!r}"
            option = _mapping(option)
            if _mapping(option.get("unlisted_choice")).get("enabled"):
                self.leave(
                    f"{here}: unlisted_choice",
                    'for images add a pattern to allowed_images, like "quay.io/jupyter/*:2026-*"; '
                    "for anything else there is no free text",
                )
            choices = _choices(option)
            if choices and all(set(each.override) <= _IMAGE_KEYS and each.override for each in choices):
                result.update(next(each.override for each in choices if each.default))
                images |= {each.title: str(_image(each.override)) for each in choices}
            elif choices:
                splitting.append(choices)
        count = 1
        for each in splitting:
            count *= len(each)
        if count > MAX_CHOICES:
            self.leave(f"{where}: profile_options", f"{count} combinations: write the tiers that you need")
            for each in splitting:
                result.update(next(choice.override for choice in each if choice.default))
            splitting = []
        self._offer(images, where)
        return splitting, result

    def _offer(self, images: Mapping[str, str], where: str) -> None:
        """Adds a profile's images to those that may be chosen."""
        self.image_lists.append(frozenset(images.values()))
        for title, image in images.items():
            try:
                allow_images({title: image})
            except ConfigError as error:
                self.leave(f"{where}: image {image!r}", str(error))
                continue
            if self.images.get(title, image) != image:
                title = image
            self.images[title] = image

    def _overridden(self, override: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What the overrides of a profile say, as keys of a tier."""
        tier: dict[str, Any] = {}
        for key, value in override.items():
            here = f"{where}: {key}"
            if value is None:
                continue
            if callable(value):
                self.leave(here, "it is a function: set the value, or use c.Spawner.pre_spawn_hook")
            elif key in _IMAGE_KEYS:
                tier["image"] = str(value)
            elif key in ("mem_limit", "cpu_limit"):
                tier |= self._limit(key, value, here)
            elif key not in ("extra_resource_limits", "extra_resource_guarantees"):
                self.leave(here, _ADVICE.get(key, "it has no counterpart in a tier"))
        limits = dict(self._defaults.resource_limits)
        limits.update(_mapping(override.get("extra_resource_guarantees")))
        limits.update(_mapping(override.get("extra_resource_limits")))
        return tier | self._devices(limits, where)

    def _limit(self, key: str, value: object, where: str) -> dict[str, Any]:
        """A limit in a form that a tier takes; KubeSpawner's are JupyterHub's."""
        try:
            if key == "mem_limit":
                parse_bytes(value if isinstance(value, int) else str(value), where)
                return {key: value}
            cores = float(str(value))
        except (ConfigError, ValueError):
            self.leave(where, f'{value!r} can\'t be used: write it like "8G", a CPU limit like 2 or 0.5')
            return {}
        return {key: int(cores) if cores.is_integer() else cores}

    def _devices(self, limits: Mapping[str, Any], where: str) -> dict[str, Any]:
        """GPUs and MIG instances among Kubernetes' resources."""
        tier: dict[str, Any] = {}
        for name, amount in limits.items():
            here = f"{where}: resource {name}"
            text = str(amount)
            if amount is None or text == "0":
                continue
            if not text.isdigit():
                self.leave(here, f"{amount!r} is no whole number")
            elif tier and (name == _GPU or name.startswith(_MIG)):
                self.leave(here, "a tier has one kind of device: make a tier for each")
            elif name == _GPU:
                tier = {"devices": int(text)}
            elif name.startswith(_MIG):
                tier = {"mode": "mig", "mig_profile": name.removeprefix(_MIG), "devices": int(text)}
            elif name == f"{_GPU}.shared":
                self.leave(here, 'for a part of a GPU use a pool and a tier with "mode": "slice"')
            else:
                self.leave(here, "it is not an NVIDIA GPU")
        return tier


_PROFILE_KEYS = frozenset(
    {"display_name", "description", "slug", "default", "kubespawner_override", "profile_options"}
)


def _choices(option: Mapping[str, Any]) -> list[_Choice]:
    """The choices of an option; without a default the first one is it, as in KubeSpawner."""
    found = [
        _Choice(
            key=_shorten(re.sub(r"[^a-z0-9._-]+", "-", str(key).lower()).strip("._-") or "choice"),
            title=_plain(_mapping(choice).get("display_name")) or str(key),
            override=_mapping(_mapping(choice).get("kubespawner_override")),
            default=bool(_mapping(choice).get("default")),
        )
        for key, choice in _mapping(option.get("choices")).items()
    ]
    first = next((number for number, each in enumerate(found) if each.default), 0)
    return [
        _Choice(each.key, each.title, each.override, number == first) for number, each in enumerate(found)
    ]


def _image(override: Mapping[str, Any]) -> Any:
    return override.get("image", override.get("image_spec"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(text: object) -> str:
    """KubeSpawner's names may be HTML; here they are text."""
    return html.unescape(re.sub(r"<[^>]*>", "", "" if text is None else str(text))).strip()


def _shorten(name: str) -> str:
    short = name[:_MAX_NAME_CHARS].rstrip("._-")
    return short if NAME.fullmatch(short) else "tier"
