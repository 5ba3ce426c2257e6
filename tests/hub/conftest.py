"""One real hub a module: configurable-http-proxy, broker and Docker are the real ones, labs are stubs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import docker.errors
import pytest
from gpuspawner.spawner import ensure_network

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
_IMAGES = {"lab": _SERVE, "other": _SERVE, "crash": _CRASH, "mute": _MUTE}


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
    for name, script in _IMAGES.items():
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(os.path.realpath(busybox), "bin/busybox")
            _add(tar, "lab", script.encode(), 0o755)
            for folder, mode in (("tmp", 0o1777), ("home/jovyan", 0o777)):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, mode
                tar.addfile(entry)
        engine.import_image_from_data(
            data.getvalue(), repository=f"gpuspawner-hubtest/{name}", changes=['CMD ["/lab"]']
        )


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

    The module may set HUB_ENVIRONMENT.
    """
    _put_proxy_on_path()
    ensure_network(engine, NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    process = HubProcess(folder, docker_proxy.proxy.host, **getattr(request.module, "HUB_ENVIRONMENT", {}))
    process.remove_containers()
    try:
        process.start()
        yield process
    finally:
        process.close()
        with suppress(docker.errors.APIError):
            engine.remove_network(NAME)
        shutil.rmtree(folder, ignore_errors=True)


def _put_proxy_on_path() -> None:
    if shutil.which("configurable-http-proxy") is None and "GPUSPAWNER_PROXY" not in os.environ:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the hub's log."""
    report = yield
    hub = getattr(item, "funcargs", {}).get("hub")
    if report.when == "call" and report.failed and hub is not None:
        report.sections.append(("hub.log", hub.log[-15000:]))
    return report
