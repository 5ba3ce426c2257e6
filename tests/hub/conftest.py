"""One real hub a module: configurable-http-proxy, broker and Docker are the real ones, labs are stubs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import docker
import docker.errors
import pytest
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.metadata import MetadataWall
from gpuspawner.hub.network import ensure_network

from tests.hub.hubprocess import DOCKER_SOCKET, NAME, SUBNET, HubProcess, ProxyThread

_SERVE = """#!/bin/busybox sh
trap 'exit 0' TERM
root=/tmp/www
/bin/busybox mkdir -p "$root$JUPYTERHUB_SERVICE_PREFIX"
echo '{"version": "stub"}' > "$root${JUPYTERHUB_SERVICE_PREFIX}api"
/bin/busybox httpd -p 8888 -h "$root"
while :; do /bin/busybox sleep 600 & wait $!; done
"""
_CRASH = """#!/bin/busybox sh
echo "the token is $JUPYTERHUB_API_TOKEN" >&2
echo "ModuleNotFoundError: No module named 'jupyterhub'" >&2
exit 3
"""
_MUTE = """#!/bin/busybox sh
trap 'exit 0' TERM
echo "warming up"
while :; do /bin/busybox sleep 600 & wait $!; done
"""
# Python's words where a server can't write to its home.
_HOMELY = """#!/bin/busybox sh
home=/home/jovyan/.local
if ! /bin/busybox mkdir -p "$home"; then
  echo "PermissionError: [Errno 13] Permission denied: '$home'" >&2
  exit 1
fi
""" + _SERVE.split("\n", 1)[1]
_IMAGES = {"lab": _SERVE, "other": _SERVE, "homely": _HOMELY, "crash": _CRASH, "mute": _MUTE}

_FOREIGN = """#!/bin/busybox sh
trap 'exit 0' TERM
cd "$PWD"
{
  echo "uid=$(/bin/busybox id -u)"; echo "gid=$(/bin/busybox id -g)"; echo "HOME=$HOME"; echo "pwd=$PWD"
  echo "argument0=${0##*/}"; echo "NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES"
  echo mine >> "$HOME/wrote" && echo wrote=yes
} > /tmp/said
""" + _SERVE.split("\n", 2)[2]
_ENTRYPOINT = """#!/bin/busybox sh
exec "$@"
"""
# As images of others are made: the docker-stacks' own user, home and entrypoint; NVIDIA's, where work is
# done by root in /workspace and the command is a shell; a base image; one whose entrypoint is a shell.
_OTHERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "stacks": (
        {"usr/local/bin/start.sh": _ENTRYPOINT, "usr/local/bin/start-notebook.sh": _FOREIGN},
        [
            "ENV NVIDIA_VISIBLE_DEVICES=all", "ENV NB_USER=jovyan", "ENV HOME=/home/jovyan",
            'ENTRYPOINT ["start.sh"]', 'CMD ["start-notebook.sh"]', "USER 1000", "WORKDIR /home/jovyan",
        ],
    ),
    "ngc": (
        {"opt/nvidia/entrypoint.sh": _ENTRYPOINT, "usr/local/bin/jupyterhub-singleuser": _FOREIGN},
        [
            "ENV NVIDIA_VISIBLE_DEVICES=all", 'ENTRYPOINT ["/opt/nvidia/entrypoint.sh"]', 'CMD ["/bin/bash"]',
            "WORKDIR /workspace",
        ],
    ),
    "plain": ({}, ['CMD ["bash"]']),
    "shell": ({"entrypoint.sh": _ENTRYPOINT}, ['ENTRYPOINT ["/entrypoint.sh"]']),
    "needy": ({"lab": _SERVE}, ["LABEL gpuspawner.needs-gpu=1", 'CMD ["/lab"]']),
    "torch": ({"lab": _SERVE}, ["LABEL gpuspawner.min-driver=580", 'CMD ["/lab"]']),
}  # fmt: skip


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """The Docker Engine of this machine."""
    try:
        client = docker.APIClient(base_url=f"unix://{DOCKER_SOCKET}", version="auto")
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker Engine answers here: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(engine: docker.APIClient) -> None:
    """Labs that start in a moment: a shell script in a static busybox."""
    busybox = shutil.which("busybox")
    if busybox is None or b"statically" not in subprocess.check_output(["file", "-L", busybox]):
        pytest.skip("no static busybox for the test images: apt-get install busybox-static")
    import_images(engine)


def import_images(engine: docker.APIClient) -> None:
    """The same where there is such a busybox."""
    busybox = os.path.realpath(str(shutil.which("busybox")))
    changes = ['CMD ["/lab"]', "WORKDIR /home/jovyan"]
    made = {name: ({"lab": script}, changes) for name, script in _IMAGES.items()}
    for name, (files, changes) in {**made, **_OTHERS}.items():
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(busybox, "bin/busybox")
            for path, script in files.items():
                _add(tar, path, script.encode(), 0o755)
            _add_folder(tar, "tmp", 0o1777)
            if name not in ("ngc", "plain", "shell"):
                _add_folder(tar, "home/jovyan", 0o777)
        engine.import_image_from_data(
            data.getvalue(), repository=f"gpuspawner-hubtest/{name}", changes=changes
        )


def _add_folder(tar: tarfile.TarFile, path: str, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    if path == "home/jovyan":
        entry.uid, entry.gid = 1000, 100
    tar.addfile(entry)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def docker_proxy(engine: docker.APIClient) -> Iterator[ProxyThread]:
    """The hub's way to Docker, which can be made to fail."""
    folder = Path(tempfile.mkdtemp(prefix="gh-"))  # short: a socket's path may have 107 bytes
    proxy = ProxyThread(folder / "docker.sock")
    yield proxy
    proxy.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hub(
    images: None, engine: docker.APIClient, docker_proxy: ProxyThread, request: pytest.FixtureRequest
) -> Iterator[HubProcess]:
    """A started hub, its containers removed at the end. A module's tests share it.

    The module may set HUB_ENVIRONMENT and HUB_OPEN_FILES.
    """
    _put_proxy_on_path()
    ensure_network(calls_of(engine), NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    process = HubProcess(folder, docker_proxy.proxy.host, **getattr(request.module, "HUB_ENVIRONMENT", {}))
    process.open_files = getattr(request.module, "HUB_OPEN_FILES", 0)
    process.remove_containers()
    try:
        process.start()
        yield process
    finally:
        process.close()
        with suppress(docker.errors.APIError):
            engine.remove_network(NAME)
        MetadataWall(SUBNET).remove()  # labs were running when the hub ended, so it left its rules
        shutil.rmtree(folder, ignore_errors=True)


def _put_proxy_on_path() -> None:
    if shutil.which("configurable-http-proxy") is None and "GPUSPAWNER_PROXY" not in os.environ:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the hub's log."""
    report = yield
    hub = getattr(item, "funcargs", {}).get("hub")
    if report.when == "call" and report.failed and hub is not None:
        report.sections.append(("hub.log", hub.log[-15000:]))
    return report
