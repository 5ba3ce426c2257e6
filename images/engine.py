"""The builder's calls to Docker Engine."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tarfile
from pathlib import Path
from threading import Thread
from typing import IO, Any

import docker
from docker.errors import APIError, ImageNotFound

from setup.steps import SetupError, Step

INPUTS_LABEL = "gpuspawner.inputs"
PACKAGES_LABEL = "gpuspawner.packages"
STAGE_LABEL = "gpuspawner.stage"
STAGE_ARGUMENT = "STAGE"
"""The Dockerfiles' build argument with the value of STAGE_LABEL: a different one for each build."""
LEFT_AFTER = "1h"
"""Leftovers older than this are not from a running build: their build was killed, or they were replaced."""


def inputs_of(client: docker.DockerClient, reference: str) -> str | None:
    """The hash of what the image was built from; None if there is no such image."""
    try:
        labels = client.images.get(reference).labels
    except ImageNotFound:
        return None
    return str(labels.get(INPUTS_LABEL, ""))


def identity_of(client: docker.DockerClient, reference: str) -> str:
    """What an image on top depends on: this one's inputs and its exact Debian packages."""
    labels = client.images.get(reference).labels
    return f"{labels.get(INPUTS_LABEL, '')} {labels.get(PACKAGES_LABEL, '')}"


def build(
    client: docker.DockerClient,
    context: list[Path | tuple[str, Path | bytes]],
    tag: str,
    arguments: tuple[dict[str, str], dict[str, str]],
    step: Step,
) -> None:
    """Builds `tag` with the engine's classic builder: no command line, no plugin, and without network.

    `context` lists what the Dockerfile sees: paths under their own name, or pairs of a name and a path or
    content. `arguments` are the build arguments and the labels. Other builds may run on the same engine
    at the same time. Raises SetupError with the build's last output.
    """
    stage = secrets.token_hex(8)
    replaced = _id_of(client, tag)
    arguments = ({**arguments[0], STAGE_ARGUMENT: stage}, arguments[1])
    read_end, write_end = os.pipe()
    feeder = Thread(target=_feed, args=(write_end, context), daemon=True, name="build-context")
    feeder.start()
    said: list[str] = []
    try:
        with os.fdopen(read_end, "rb") as stream:
            _follow(client, stream, tag, arguments, (step, said))
    except APIError as error:
        raise _failed(tag, str(error.explanation)) from error
    finally:
        _clean(client, stage, replaced if replaced != _id_of(client, tag) else None)


def _id_of(client: docker.DockerClient, reference: str) -> str | None:
    """The image that has this name now."""
    try:
        return str(client.images.get(reference).id)
    except ImageNotFound:
        return None


def _clean(client: docker.DockerClient, stage: str, replaced: str | None) -> None:
    """Removes a build's intermediate images and what it replaced; what can't be removed now is removed later.

    What a container runs on stays, and so does what a build that runs at the same time has made.
    """
    if replaced is not None:
        with contextlib.suppress(APIError):  # in use, or gone already
            image = client.images.get(replaced)
            if not image.tags and not image.attrs["RepoDigests"]:
                client.images.remove(replaced)
    for filters in (
        {"label": f"{STAGE_LABEL}={stage}"},
        {"label": STAGE_LABEL, "until": LEFT_AFTER},
        {"label": INPUTS_LABEL, "until": LEFT_AFTER},
    ):
        with contextlib.suppress(APIError):  # another build is cleaning up
            client.images.prune(filters={"dangling": True, **filters})


def _follow(
    client: docker.DockerClient,
    stream: IO[bytes],
    tag: str,
    arguments: tuple[dict[str, str], dict[str, str]],
    output: tuple[Step, list[str]],
) -> None:
    step, said = output
    events = client.api.build(
        fileobj=stream,
        custom_context=True,
        tag=tag,
        buildargs=arguments[0],
        labels=arguments[1],
        network_mode="none",
        rm=True,
        forcerm=True,
        decode=True,
    )
    current = ""
    for event in events:
        line = str(event.get("stream") or event.get("status") or "").strip()
        if line:
            said.append(line)
            current = line if line.startswith("Step ") else current
            step.detail(" ".join(current.split()))
        if "error" in event:
            raise _failed(tag, f"{event['error']} (before that: {' / '.join(said[-5:])})")


def _failed(tag: str, reason: str) -> SetupError:
    if "no space left" in reason.lower():
        return SetupError(f"the disk filled up while {tag} was built", "free some space and run it again")
    return SetupError(f"{tag} could not be built: {reason}", "fix what it names and run `make images` again")


def _feed(write_end: int, context: list[Path | tuple[str, Path | bytes]]) -> None:
    """Writes the build context as a tar stream; ends without an error if the builder closes it early."""
    try:
        with os.fdopen(write_end, "wb") as out, tarfile.open(fileobj=out, mode="w|") as tar:
            for item in context:
                name, content = (item.name, item) if isinstance(item, Path) else item
                _add(tar, name, content)
    except BrokenPipeError:
        return


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    if isinstance(content, bytes):
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        tar.addfile(member, io.BytesIO(content))
    else:
        tar.add(content, arcname=name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The same owner, mode and time on every machine; caches stay out."""
    if "__pycache__" in member.name or ".ipynb_checkpoints" in member.name:
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def run(client: docker.DockerClient, image: str, command: list[str], **options: Any) -> str:
    """The output of `command` in a container of `image`, which is removed afterwards."""
    return bytes(client.containers.run(image, command, remove=True, **options)).decode()
