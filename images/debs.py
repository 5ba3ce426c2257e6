"""Debian packages for an image: downloaded first, then installed without network, in a separate layer.

Both happen in containers of the image itself, so its own apt decides what is needed. The downloads are
kept like the Python packages, and a bundle has them too. Debian's mirrors keep only the newest version
of a package, so no version is pinned: the installed versions are recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException
from docker.models.containers import Container

from images.engine import PACKAGES_LABEL, run
from images.stock import Goods, Stock
from setup.steps import SetupError, Step

RECORD = "/etc/gpuspawner/debian-packages"
"""In every image: its Debian packages, a line each, name=version architecture."""

LIST = ["dpkg-query", "--show", "--showformat", "${binary:Package}=${Version} ${Architecture}\\n"]
APT = "env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0"
CLEAN = "rm -rf /debs /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log"
STATIC = "rm -f /usr/lib/python3*/config-*/libpython*.a"  # modules are linked with the shared Python
APT_KEYS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::https::CaInfo",
    "Acquire::Check-Valid-Until",
)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """`packages` and what they need on top of the image `parent`; `name` is what they are filed under."""

    name: str
    parent: str
    packages: tuple[str, ...]

    def goods(self, installed: str) -> Goods:
        """What the downloads are filed under, on a parent that has `installed`."""
        return Goods("debs", self.name, f"{installed}\n{' '.join(self.packages)}")


def installed_in(client: docker.DockerClient, reference: str) -> str:
    """The Debian packages of an image, as `RECORD` has them."""
    return run(client, reference, LIST, entrypoint=[], network_mode="none")


def packages_of(client: docker.DockerClient, layer: Layer, stock: Stock, step: Step) -> Path:
    """A folder with the .deb files of the layer, downloaded if it isn't there yet.

    Raises SetupError with apt's last output and the remedy.
    """

    def fill(folder: Path) -> None:
        arguments = f"--no-install-recommends --download-only {' '.join(layer.packages)}"
        script = f"{APT} update && {APT} -o Dir::Cache::archives=/debs install {arguments}"
        options: dict[str, Any] = {"network_mode": "host", "environment": _proxies()}
        with _container(client, layer.parent, script, options) as container:
            _put(container, _host_settings())
            _follow(container, step)
            for name, content in _read(container, "/debs"):
                if name.endswith(".deb"):
                    (folder / name).write_bytes(content)

    return stock.get(layer.goods(installed_in(client, layer.parent)), fill)


def add_packages(
    client: docker.DockerClient, layer: Layer, result: tuple[str, dict[str, str]], debs: Path, step: Step
) -> None:
    """Makes the image `result` (its name and labels): the layer's parent with `debs` installed.

    The exact packages that it then has are in `RECORD`, and their hash in `PACKAGES_LABEL`.
    """
    files = {f"/debs/{path.name}": path.read_bytes() for path in sorted(debs.glob("*.deb"))}
    install = f"{APT} --no-install-recommends install /debs/*.deb && " if files else ""
    script = f"{install}{shlex.join(LIST)} >{RECORD} && {CLEAN} && {STATIC}"
    with _container(client, layer.parent, script, {"network_mode": "none"}) as container:
        _put(container, files)
        _follow(container, step)
        listed = dict(_read(container, RECORD))[Path(RECORD).name]
        name, labels = result
        labels = {**labels, PACKAGES_LABEL: hashlib.sha256(listed).hexdigest()}
        _commit(client, container, layer.parent, (name, labels))


def apt_settings() -> list[str]:
    """This machine's own settings that apt needs inside the image too, to reach the same mirror."""
    command = ["apt-config", "dump", *APT_KEYS]
    try:
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []  # no apt on this machine: the image's own settings are used
    return [line for line in lines if line.count('"') == 2 and '""' not in line]


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in PROXY_VARIABLES if name in os.environ}


def _host_settings() -> dict[str, bytes]:
    """Files for the container that downloads: the host's settings of apt, and its certificates."""
    lines = apt_settings()
    files = {"/etc/apt/apt.conf.d/99host": "".join(f"{line}\n" for line in lines).encode()}
    named = [line.split('"')[1] for line in lines if line.startswith("Acquire::https::CaInfo")]
    for name in [CERTIFICATES, *named]:
        if Path(name).is_file():
            files[name] = Path(name).read_bytes()
    return files


@contextlib.contextmanager
def _container(
    client: docker.DockerClient, image: str, script: str, options: dict[str, Any]
) -> Iterator[Container]:
    """A container of `image` that will run `script` as root; removed afterwards."""
    command = ["sh", "-e", "-c", script]
    container = client.containers.create(image, command, entrypoint=[], user="root", **options)
    try:
        yield container
    except DockerException as error:
        raise SetupError(f"Docker Engine fails: {error}", "see its log, then run this again") from error
    finally:
        container.remove(force=True)


def _follow(container: Container, step: Step) -> None:
    """Runs the container's script and shows its output. Raises SetupError with apt's output if it fails."""
    container.start()
    said: list[str] = []
    for chunk in container.logs(stream=True, follow=True):
        said += [line for line in chunk.decode(errors="replace").splitlines() if line.strip()]
        step.detail(f"Debian packages: {said[-1] if said else ''}")
    if container.wait()["StatusCode"] != 0:
        errors = [line[3:] for line in said if line.startswith("E: ")]
        raise SetupError(
            f"the Debian packages of the image could not be installed: {'; '.join(errors[:3] or said[-3:])}",
            "check that `apt-get update` works on this machine and that the disk has space, then run "
            "the command again",
        )


def _put(container: Container, files: dict[str, bytes]) -> None:
    """Puts files into the container that hasn't started yet, and makes the folders that scripts write to."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("debs", "debs/partial", str(Path(RECORD).parent).lstrip("/")):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name.lstrip("/"))
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    container.put_archive("/", packed.getvalue())


def _read(container: Container, path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of a file of the container, or of each file in a folder of it."""
    chunks, _ = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        for member in tar:
            if (content := tar.extractfile(member)) is not None:
                yield Path(member.name).name, content.read()


def _commit(
    client: docker.DockerClient, container: Container, parent: str, result: tuple[str, dict[str, str]]
) -> None:
    """Keeps the container as an image that is set up as its parent was, with these labels more."""
    tag, labels = result
    config = client.images.get(parent).attrs["Config"]
    changes = [f"USER {config['User']}"] if config.get("User") else ["USER root"]
    changes += [f"ENTRYPOINT {json.dumps(config.get('Entrypoint') or [])}"]
    changes += [f"CMD {json.dumps(config.get('Cmd') or ['/bin/sh'])}"]
    changes += [f"LABEL {name}={json.dumps(value)}" for name, value in labels.items()]
    repository, _, version = tag.rpartition(":")
    client.api.commit(str(container.id), repository=repository, tag=version, changes="\n".join(changes))
