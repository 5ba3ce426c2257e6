"""The base image of all labs (the operating system): pulled if a registry answers, else bootstrapped."""

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

from images.debs import RECORD, Layer, add_packages, apt_settings, installed_in, packages_of
from images.engine import INPUTS_LABEL, inputs_of
from images.stock import Stock
from images.table import Base
from setup.steps import SetupError, Step

PULL_SECONDS = 20.0  # a registry that has sent nothing by then does not answer
SOURCE_LABEL = "gpuspawner.base"  # what was pulled, by digest; or the bootstrapped image's name
DISTRIBUTIONS = {"Debian", "Ubuntu"}


def ensure_base(client: docker.DockerClient, base: Base, stock: Stock, step: Step) -> None:
    """Makes sure that `base.reference` exists and is up to date.

    Raises SetupError if it can be neither pulled nor bootstrapped.
    """
    wanted = os.environ.get("BASE_IMAGE", "")
    # With the record's name: a base that was built before there was a record is built again.
    what = json.dumps([wanted or base.source, base.packages, RECORD])
    inputs = hashlib.sha256(what.encode()).hexdigest()
    if inputs_of(client, base.reference) == inputs:
        step.note = f"{base.reference} is there"
        return
    source = wanted or base.source
    if has(client, source) or pull(client, source, step):
        digests = client.images.get(source).attrs["RepoDigests"] or [source]
        step.note = f"from {source}"
        origin = digests[0]
    elif wanted:
        raise SetupError(
            f"the base image {wanted} could not be pulled",
            "check BASE_IMAGE and the registry, or unset it: then the base is built from this machine's "
            "own package mirror",
        )
    else:
        source = origin = base.bootstrapped
        _bootstrap(client, source, stock.folder / "base.tar", step)
        step.note = "bootstrapped from this machine's package mirror"
    layer = Layer(name="base", parent=source, packages=base.packages)
    labels = {INPUTS_LABEL: inputs, SOURCE_LABEL: origin}
    add_packages(client, layer, (base.reference, labels), packages_of(client, layer, stock, step), step)
    step.note += f", {len(installed_in(client, base.reference).splitlines())} Debian packages"


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


def _bootstrap(client: docker.DockerClient, reference: str, tar: Path, step: Step) -> None:
    """Builds the image `reference`: the minimum that apt needs, from this machine's own mirror."""
    if shutil.which("mmdebstrap") is None:
        _install_mmdebstrap(step)
    sources = apt_sources()
    suite = _suite()
    if not sources or not suite:
        raise SetupError(
            "no registry answers, and apt has no mirror of Debian or Ubuntu to build the base image from",
            "run `apt-get update`, name an image that can be pulled in BASE_IMAGE, or a bundle in BUNDLE",
        )
    tar.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    command += [*(f"--aptopt={line}" for line in apt_settings()), suite, str(tar), "-"]
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n".join(sources) + "\n")
        process.stdin.close()
        for line in process.stdout:
            said.append(line.strip())
            step.detail(f"bootstrapping {suite}: {line.strip()}")
    try:
        if process.returncode != 0:
            raise SetupError(
                f"the base image could not be bootstrapped: {' / '.join(said[-3:])}",
                "check that `apt-get update` works and that the disk has space, then run it again",
            )
        step.detail("importing")
        _import(client, reference, tar)
    finally:
        tar.unlink(missing_ok=True)


def _import(client: docker.DockerClient, reference: str, tar: Path) -> None:
    repository, tag = reference.rsplit(":", 1)
    changes = ['CMD ["/bin/sh"]']
    try:
        answer = client.api.import_image_from_file(str(tar), repository=repository, tag=tag, changes=changes)
    except APIError as error:
        raise SetupError(
            f"Docker could not import the base image: {error.explanation}", "see that its disk is not full"
        ) from error
    if '"error"' in answer:
        raise SetupError(f"Docker could not import the base image: {answer}", "see that its disk is not full")


def _install_mmdebstrap(step: Step) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(
            "no registry answers, and mmdebstrap, which would build the base image, is not installed",
            "install mmdebstrap, or name an image that can be pulled in BASE_IMAGE",
        )
    step.detail("installing mmdebstrap")
    subprocess.run(["apt-get", "update", "-q"], stdin=subprocess.DEVNULL, capture_output=True)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "mmdebstrap"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(
            f"mmdebstrap could not be installed: {done.stderr.strip()[-300:]}",
            "check that `apt-get update` works",
        )
