"""The operating system below all labs: pulled where a registry answers, otherwise bootstrapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from images.engine import build, inputs_of
from images.table import IMAGES_DIR, Base
from setup.steps import SetupError, Step

PULL_SECONDS = 20.0  # a registry that has not said a word by then does not answer
DISTRIBUTIONS = {"Debian", "Ubuntu"}


def ensure_base(client: docker.DockerClient, base: Base, cache: Path, step: Step) -> None:
    """Makes sure that `base.reference` is there and up to date.

    Raises SetupError if it can be neither pulled nor bootstrapped.
    """
    wanted = os.environ.get("BASE_IMAGE", "")
    inputs = hashlib.sha256(json.dumps([wanted or base.pull, base.packages]).encode()).hexdigest()
    if inputs_of(client, base.reference) == inputs:
        step.note = f"{base.reference} is there"
        return
    source = wanted or base.pull
    if has(client, source) or pull(client, source, step):
        args = {"BASE_IMAGE": source, "PACKAGES": " ".join(base.packages)}
        labels = {"gpuspawner.inputs": inputs}
        build(client, [IMAGES_DIR / "base" / "Dockerfile"], base.reference, (args, labels), step)
        step.note = f"from {source}"
    elif wanted:
        raise SetupError(
            f"the base image {wanted} could not be pulled",
            "check BASE_IMAGE and the registry, or unset it: then the base is made from this machine's "
            "own package mirror",
        )
    else:
        _bootstrap(client, base, cache / "base.tar", inputs, step)
        step.note = "bootstrapped from this machine's package mirror"


def has(client: docker.DockerClient, reference: str) -> bool:
    """Whether the engine has the image."""
    try:
        client.images.get(reference)
    except ImageNotFound:
        return False
    return True


def pull(client: docker.DockerClient, reference: str, step: Step) -> bool:
    """True once `reference` is there; False if its registry does not answer or has no such image."""
    step.detail(f"pulling {reference}")
    repository, _, tag = reference.partition("@")
    if not tag and ":" in repository.rsplit("/", 1)[-1]:
        repository, tag = repository.rsplit(":", 1)
    events: Queue[dict[str, Any] | None] = Queue()

    def read() -> None:
        try:
            for event in client.api.pull(repository, tag or "latest", stream=True, decode=True):
                events.put(event)
        except DockerException:
            pass
        events.put(None)

    Thread(target=read, daemon=True, name="pull").start()
    limit: float | None = PULL_SECONDS
    try:
        while (event := events.get(timeout=limit)) is not None:
            limit = 120.0
            if "error" in event:
                return False
            step.detail(f"pulling {reference}: {event.get('status', '')} {event.get('progress', '')}")
    except Empty:
        return False
    return has(client, reference)


def apt_sources() -> list[str]:
    """This machine's own sources of its distribution, as lines of a sources.list."""
    form = "$(ORIGIN)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)|$(CREATED_BY)"
    command = ["apt-get", "indextargets", "--format", form]
    lines: list[str] = []
    for target in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        origin, uri, codename, component, signed_by, created_by = target.split("|")
        if origin in DISTRIBUTIONS and created_by == "Packages":
            signed = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            lines.append(f"deb {signed}{uri} {codename} {component}")
    return sorted(set(lines))


def _suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.split("=", 1)[1].strip('"')
    return ""


def _bootstrap(client: docker.DockerClient, base: Base, tar: Path, inputs: str, step: Step) -> None:
    if shutil.which("mmdebstrap") is None:
        _install_mmdebstrap(step)
    sources = apt_sources()
    suite = _suite()
    if not sources or not suite:
        raise SetupError(
            "no registry answers, and apt knows no mirror of Debian or Ubuntu to make the base image from",
            "run `apt-get update`, or name an image that can be pulled in BASE_IMAGE",
        )
    tar.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(base.packages)}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    command += [*_apt_options(), suite, str(tar), "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n".join(sources) + "\n")
    process.stdin.close()
    said: list[str] = []
    for line in process.stdout:
        said.append(line.strip())
        step.detail(f"bootstrapping {suite}: {line.strip()}")
    try:
        if process.wait() != 0:
            raise SetupError(
                f"the base image could not be bootstrapped: {' / '.join(said[-3:])}",
                "see that `apt-get update` works and that there is room on the disk, then run it again",
            )
        step.detail("importing")
        _import(client, base, tar, inputs)
    finally:
        tar.unlink(missing_ok=True)


def _import(client: docker.DockerClient, base: Base, tar: Path, inputs: str) -> None:
    repository, tag = base.reference.rsplit(":", 1)
    changes = [f"LABEL gpuspawner.inputs={inputs}", 'CMD ["/bin/sh"]']
    try:
        answer = client.api.import_image_from_file(str(tar), repository=repository, tag=tag, changes=changes)
    except APIError as error:
        raise SetupError(
            f"Docker could not import the base image: {error.explanation}", "see that its disk is not full"
        ) from error
    if '"error"' in answer:
        raise SetupError(f"Docker could not import the base image: {answer}", "see that its disk is not full")


def _apt_options() -> list[str]:
    """This machine's own settings that apt needs inside the image too, to reach the same mirror."""
    keys = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until")
    command = ["apt-config", "dump", *keys]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return [f"--aptopt={line}" for line in lines if line.count('"') == 2 and '""' not in line]


def _install_mmdebstrap(step: Step) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(
            "no registry answers, and mmdebstrap, which would make the base image, is not installed",
            "install mmdebstrap, or name an image that can be pulled in BASE_IMAGE",
        )
    step.detail("installing mmdebstrap")
    subprocess.run(["apt-get", "update", "-q"], stdin=subprocess.DEVNULL, capture_output=True)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "mmdebstrap"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(
            f"mmdebstrap could not be installed: {done.stderr.strip()[-300:]}",
            "see that `apt-get update` works",
        )
