"""JupyterLab's GPU charts (jupyterlab-nvdashboard): on for a whole GPU, off where they would be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.nvml.scripted import ENVIRONMENT, Gpu, Script, build

from .conftest import Start, output, wait_for

pytestmark = pytest.mark.docker

SERVE = (
    "jupyter",
    "lab",
    "--no-browser",
    "--ServerApp.base_url=/user/ada/",
    "--IdentityProvider.token=secret",
)
READY = """
import urllib.request
urllib.request.urlopen("http://127.0.0.1:8888/user/ada/api")
"""
CHARTS = """
import asyncio, json, urllib.request
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

site, head = "http://127.0.0.1:8888/user/ada/", {"Authorization": "token secret"}
def get(path):
    return urllib.request.urlopen(urllib.request.Request(site + path, headers=head)).read().decode()

async def main():
    page = json.loads(get("lab").split('id="jupyter-config-data" type="application/json">')[1].split("<")[0])
    shown = "jupyterlab-nvdashboard" in [each["name"] for each in page["federated_extensions"]]
    try:
        gpus = json.loads(get("nvdashboard/accelerators/check"))["ngpus"]
    except urllib.error.HTTPError as error:
        gpus = error.code
    said = None
    if gpus == 1:
        address = HTTPRequest(site.replace("http", "ws") + "nvdashboard/gpu_resource", headers=head)
        socket = await websocket_connect(address)
        await socket.read_message()
        said = json.loads(await socket.read_message())
        del said["time"]
    off = "jupyterlab-nvdashboard" in page.get("disabledExtensions", [])
    print(json.dumps([shown and not off, gpus, said]))

asyncio.run(main())
"""


@pytest.fixture
def nvml(tmp_path: Path) -> Path:
    """A folder with the scripted NVML and its script: one GPU, a quarter of it used."""
    folder = tmp_path / "nvml"
    folder.mkdir()
    shutil.copy(build(), folder)
    Script(folder / "script", [Gpu("GPU-1", memory=80 << 30, used=20 << 30, util=37)]).write()
    for each in (tmp_path, folder, *folder.iterdir()):
        each.chmod(0o755)
    return folder


def charts(start: Start, nvml: Path | None, **environment: str) -> object:
    """Whether JupyterLab shows the charts, what the server says of GPUs, and the first values."""
    volumes = {}
    if nvml is not None:
        volumes = {str(nvml): {"bind": "/nvml", "mode": "ro"}}
        environment |= {"LD_LIBRARY_PATH": "/nvml", ENVIRONMENT: "/nvml/script"}
    lab: Container = start(*SERVE, environment=environment, volumes=volumes)
    wait_for(lambda: lab.exec_run(["python", "-c", READY]).exit_code == 0)
    found = json.loads(output(lab, "python", "-c", CHARTS))
    assert "Traceback" not in lab.logs().decode()
    return found


def test_a_whole_gpu_has_its_charts(start: Start, nvml: Path) -> None:
    assert charts(start, nvml, GPUSPAWNER_MODE="whole") == [
        True,
        1,
        {
            "gpu_utilization_total": 37,
            "gpu_memory_total": 25.0,
            "rx_total": 0,
            "tx_total": 0,
            "gpu_memory_individual": [20 << 30],
            "gpu_utilization_individual": [37],
        },
    ]


def test_a_slice_has_none(start: Start, nvml: Path) -> None:
    """They would show what the neighbours use."""
    assert charts(start, nvml, GPUSPAWNER_MODE="slice") == [False, 404, None]


def test_a_mig_instance_has_none(start: Start, nvml: Path) -> None:
    """NVML reports no utilization of one."""
    assert charts(start, nvml, GPUSPAWNER_MODE="mig") == [False, 404, None]


def test_a_gpu_in_turns_has_none(start: Start, nvml: Path) -> None:
    """They would show what those compute whose turn it is."""
    assert charts(start, nvml, GPUSPAWNER_MODE="turns") == [False, 404, None]


def test_a_simulated_gpu_has_none(start: Start) -> None:
    assert charts(start, None, GPUSPAWNER_MODE="whole", GPUSPAWNER_SIMULATED="1") == [False, 404, None]


def test_a_whole_gpu_without_nvml_is_harmless(start: Start) -> None:
    """As with a driver whose libraries didn't reach the container."""
    assert charts(start, None, GPUSPAWNER_MODE="whole") == [True, 0, None]
