"""How much must still be pulled of images that the site offers: asked of their registries, in the background.

A page never waits for a registry: the first look at an image begins to ask, a later one has the answer. Only
images of the settings are asked for, never names that users type.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ..core.errors import EngineFault
from ..core.image_reference import DEFAULT_HOST, Reference, parse_pinned
from .docker import DockerEngine

FRESH_SECONDS = 600.0
"""An answer, also that there is none, counts for so long."""
ASK_SECONDS = 20.0
_HUB_HOST = "registry-1.docker.io"
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?")
"""Registries that Docker asks without TLS by itself."""
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_MOST_BYTES = 4 << 20
_LOG = logging.getLogger("gpuspawner.hub.image_sizes")


@dataclass(slots=True)
class _Answer:
    asked_at: float
    task: asyncio.Task[None]
    bytes_to_pull: int | None = None


Inspected = Mapping[str, Mapping[str, Any] | None]
"""By an image's name, Docker's document of it; None: it isn't on this machine. Not named: not known."""


@dataclass(slots=True)
class ImageSizes:
    """One object for a hub. `docker` says which layers are on this machine."""

    docker: DockerEngine
    _answers: dict[str, _Answer] = field(default_factory=dict)

    def look(self, image: str) -> int | None:
        """Compressed bytes of the layers that aren't here; None while that isn't known, or can't be."""
        now = asyncio.get_running_loop().time()
        answer = self._answers.get(image)
        if answer is None or now - answer.asked_at > FRESH_SECONDS:
            before = None if answer is None else answer.bytes_to_pull
            task = asyncio.create_task(self._ask(image), name=f"size of {image}")
            answer = self._answers[image] = _Answer(now, task, before)
        return answer.bytes_to_pull

    def notes(self, images: Mapping[str, str], inspected: Inspected) -> dict[str, str]:
        """By key of `images`, what must be pulled first: "4.1 GB pulled first"; nothing of the others."""
        missing = {
            key: image for key, image in images.items() if image in inspected and inspected[image] is None
        }
        return {key: _note(self.look(image)) for key, image in missing.items()}

    async def _ask(self, image: str) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                manifest, config = await _manifest(parse_pinned(image))
                here = await self._layers_here()
        except (aiohttp.ClientError, EngineFault, OSError, TimeoutError, ValueError, LookupError) as error:
            _LOG.debug("The size of image %s isn't known: %r", image, error)
            return
        self._answers[image].bytes_to_pull = bytes_to_pull(manifest, config, here)

    async def _layers_here(self) -> list[list[str]]:
        """Of each image on this machine, the ids of its layers, the lowest first."""
        found = []
        for listed in await self.docker.call("images"):
            document = await self.docker.find_image(str(listed["Id"]))
            found.append(list(((document or {}).get("RootFS") or {}).get("Layers") or ()))
        return found


def _note(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "pulled first"
    size = f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{max(1, round(size_bytes / 1e6))} MB"
    return f"{size} pulled first"


def bytes_to_pull(
    manifest: Mapping[str, Any], config: Mapping[str, Any], here: Sequence[Sequence[str]]
) -> int:
    """The size of the layers above those that an image on this machine begins with, too.

    Docker shares layers between images that begin with the same ones. A manifest lists the compressed layers
    in the order of `rootfs.diff_ids` of its config (OCI image-spec 1.1).
    """
    ids = list(config["rootfs"]["diff_ids"])
    shared = max((_common(ids, layers) for layers in here), default=0)
    return sum(int(layer["size"]) for layer in manifest["layers"][shared:])


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


async def _manifest(image: Reference) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image's manifest for this machine's architecture, and its config, from its registry."""
    host = _HUB_HOST if image.host == DEFAULT_HOST else image.host
    scheme = "http" if _LOOPBACK.fullmatch(host) else "https"
    async with aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar()) as session:
        registry = _Registry(session, f"{scheme}://{host}/v2/{image.path}")
        manifest = await registry.get(f"/manifests/{image.digest or image.tag or 'latest'}")
        if "manifests" in manifest:
            manifest = await registry.get(f"/manifests/{_of_this_machine(manifest['manifests'])}")
        return manifest, await registry.get(f"/blobs/{manifest['config']['digest']}")


def _of_this_machine(manifests: Sequence[Mapping[str, Any]]) -> str:
    """The digest of the manifest for this architecture. Raises LookupError if there is none."""
    machine = platform.machine()
    wanted = ("linux", _ARCHITECTURES.get(machine, machine))
    for each in manifests:
        found = each.get("platform") or {}
        if (found.get("os"), found.get("architecture")) == wanted:
            return str(each["digest"])
    raise LookupError(f"no image for {wanted}")


class _Registry:
    """Reads JSON of one repository; takes the token that public registries give to everybody."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._token = ""

    async def get(self, path: str) -> dict[str, Any]:
        """The document at this path below the repository. Raises aiohttp.ClientError, ValueError."""
        for _ in range(2):
            head = {"Accept": _ACCEPT} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
            async with self._session.get(self._url + path, headers=head) as answer:
                challenge = answer.headers.get("WWW-Authenticate", "")
                if answer.status == 401 and not self._token and challenge.lower().startswith("bearer "):
                    self._token = await self._take_token(dict(_CHALLENGE.findall(challenge)))
                    continue
                answer.raise_for_status()
                return await _read(answer)
        raise ValueError("the registry wants a login")

    async def _take_token(self, challenge: Mapping[str, str]) -> str:
        query = {key: value for key, value in challenge.items() if key in ("service", "scope")}
        async with self._session.get(challenge["realm"], params=query) as answer:
            answer.raise_for_status()
            document = await _read(answer)
        return str(document.get("token") or document["access_token"])


async def _read(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The answer's JSON object, of bounded size."""
    with suppress(ValueError):
        if int(answer.headers.get("Content-Length", "0")) > _MOST_BYTES:
            raise LookupError("the document is too large")
    document = await answer.json(content_type=None)
    if not isinstance(document, dict):
        raise ValueError("the registry's answer is no object")
    return document
