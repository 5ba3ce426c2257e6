"""References to images, and which of them a site allows: `quay.io/jupyter/scipy-notebook:2026-11-02`. Pure.

The grammar is the one of the distribution project (github.com/distribution/reference, v0.6: `reference.go`,
`regexp.go`, and `normalize.go` for the host that Docker adds), except for three things that it
permits and that would mislead users: a host in upper case, a tag beside a digest (Docker ignores the tag),
and names that Docker would try as the id of an image (names are always written with their host).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import ConfigError

DEFAULT_HOST = "docker.io"
MAX_CHARS = 520
"""Longer texts are refused: a name has up to 255 characters, then come a tag (128) or a sha512 digest."""
_MAX_NAME_CHARS = 255
_MOST_SHOWN = 8

_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
# The same expressions, but they also accept "*"; for patterns.
_COMPONENT_PATTERN = re.compile(r"[a-z0-9._*-]+")
_TAG_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_DIGEST_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F*]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """The parts of an image's name.

    `path` has no host. It has a tag, a digest, or neither (then `latest`).
    """

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """The full name, always with its host and its tag or digest."""
        end = f"@{self.digest}" if self.digest else f":{self.tag or 'latest'}"
        return f"{self.host}/{self.path}{end}"


def parse_reference(text: object) -> Reference:
    """The image that `text` names. Raises ValueError with a sentence that says what is wrong."""
    image = parse_pinned(text)
    if image.tag is not None and image.digest is not None:
        raise ValueError("leave out the tag or the digest: Docker ignores the tag if there is a digest")
    return image


def parse_pinned(text: object) -> Reference:
    """Like `parse_reference`, but a tag beside the digest is allowed: admins pin images this way."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_CHARS:
        raise ValueError("it is not the name of an image")
    host, path, tag, digest = _split(text)
    if not _HOST.fullmatch(host) or not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        raise ValueError("it is not the name of an image")
    if host != host.lower():
        raise ValueError(f"write {host} in lower case")
    if len(host) + len(path) >= _MAX_NAME_CHARS:
        raise ValueError("its name is too long")
    if tag is not None and not _TAG.fullmatch(tag):
        raise ValueError("a tag has only letters, digits, '_', '.' and '-', and at most 128 characters")
    if digest is not None and not _DIGEST.fullmatch(digest):
        raise ValueError("a digest is written like sha256: and 64 hexadecimal digits")
    return Reference(host, path, tag, digest)


def _split(text: str) -> tuple[str, str, str | None, str | None]:
    """Host, path, tag and digest of a reference or a pattern, not yet checked."""
    name, at, after = text.partition("@")
    digest = after if at else None
    slash = name.rfind("/")
    colon = name.find(":", slash + 1)
    tag = name[colon + 1 :] if colon >= 0 else None
    name = name[:colon] if colon >= 0 else name
    first, slashed, rest = name.partition("/")
    # Docker reads the first part as a host if it can't be part of a name on Docker's own registry.
    if slashed and (set(first) & set(".:[") or first == "localhost" or first != first.lower()):
        host, path = first, rest
    else:
        host, path = DEFAULT_HOST, name
    if host == "index.docker.io":
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and "/" not in path:
        path = f"library/{path}"
    return host, path, tag, digest


@dataclass(frozen=True, slots=True)
class Pattern:
    """An entry of `allowed_images` with `*` in it. Each `*` stands for characters within one part."""

    text: str
    host: str
    path: tuple[str, ...]
    tag: str | None
    digest: str | None

    def matches(self, image: Reference) -> bool:
        """Whether the image matches: same host, as many parts, and a tag or digest that is allowed."""
        parts = image.path.split("/")
        return (
            image.host == self.host
            and len(parts) == len(self.path)
            and all(_fits(pattern, part) for pattern, part in zip(self.path, parts, strict=True))
            and _fits(self.tag, image.tag)
            and _fits(self.digest, image.digest)
        )


def _fits(pattern: str | None, part: str | None) -> bool:
    """Whether `pattern` allows `part`; if one of them is missing, the other must be missing too."""
    if pattern is None or part is None:
        return pattern is part
    wanted = ".*".join(re.escape(piece) for piece in pattern.split("*"))
    return re.fullmatch(wanted, part) is not None


def parse_pattern(text: str) -> Pattern:
    """Parses an entry with `*`. Raises ConfigError, with the remedy, if it is incomplete."""
    where = f"c.GpuDockerSpawner.allowed_images: {text[:MAX_CHARS]!r}"
    host, path, tag, digest = _split(text)
    if "*" in host or not _HOST.fullmatch(host) or host != host.lower():
        raise ConfigError(f'{where}: write the registry out, in lower case, as in "quay.io/jupyter/*:2026-*"')
    good = all(_COMPONENT_PATTERN.fullmatch(part) for part in path.split("/"))
    if good and tag is None and digest is None:
        raise ConfigError(
            f'{where}: say which tags ("{text}:2026-*"; "{text}:*" for any) or "{text}@sha256:*"'
        )
    if tag is not None and digest is not None:
        raise ConfigError(f"{where}: leave out the tag or the digest, Docker ignores a tag beside a digest")
    good = good and (tag is None or _TAG_PATTERN.fullmatch(tag) is not None)
    if not good or (digest is not None and not _DIGEST_PATTERN.fullmatch(digest)):
        raise ConfigError(f'{where} is not a valid image pattern: write one like "quay.io/jupyter/*:2026-*"')
    return Pattern(text, host, tuple(path.split("/")), tag, digest)


@dataclass(frozen=True, slots=True)
class AllowedImages:
    """Images that users may choose besides the tier's own: a list, patterns, or (`any`) every image."""

    listed: Mapping[str, str] = field(default_factory=dict)
    patterns: tuple[Pattern, ...] = ()
    any: bool = False

    @property
    def typed(self) -> bool:
        """Whether a user may type an image's name."""
        return self.any or bool(self.patterns)

    def __bool__(self) -> bool:
        return bool(self.listed) or self.typed

    def find(self, option: object) -> str:
        """The image that a user chose, as Docker gets it.

        Raises ValueError with a sentence that says why not.
        """
        if isinstance(option, str) and option in self.listed:
            return self.listed[option]
        try:
            image = parse_reference(option)
        except ValueError as problem:
            raise ValueError(f"can't be used: {problem}") from None
        if self.any or any(pattern.matches(image) for pattern in self.patterns):
            return str(image)
        if image.tag is None and image.digest is None:
            raise ValueError("isn't allowed here: it has neither a tag nor a digest")
        raise ValueError("isn't allowed here")

    def offer(self) -> str:
        """The choices, as part of a sentence: "usual, other or one like quay.io/jupyter/*:2026-*"."""
        if self.any:
            return "any image by its name, like quay.io/jupyter/scipy-notebook:2026-11-02"
        names = [*self.listed, *(f"one like {pattern.text}" for pattern in self.patterns)]
        if len(names) > _MOST_SHOWN:
            names = [*names[:_MOST_SHOWN], "another one from the list"]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def allow_images(setting: object) -> AllowedImages:
    """DockerSpawner's `allowed_images` (a dict, a list, "*", None) as a value. Raises ConfigError.

    An entry with `*` in its image is a pattern; in a dict, its name isn't shown.
    """
    if setting == "*":
        return AllowedImages(any=True)
    if not setting:
        return AllowedImages()
    if isinstance(setting, list | tuple | set):
        setting = {item: item for item in setting}
    if not isinstance(setting, Mapping) or not all(
        isinstance(text, str) and text for pair in setting.items() for text in pair
    ):
        raise ConfigError(
            'c.GpuDockerSpawner.allowed_images: give a list of images, a dict of names to images, or "*"'
        )
    patterns = tuple(parse_pattern(image) for image in setting.values() if "*" in image)
    listed = {name: image for name, image in setting.items() if "*" not in image}
    return AllowedImages(listed, patterns)
