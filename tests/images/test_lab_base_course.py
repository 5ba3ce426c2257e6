"""A course's own image on top of a lab: the recipe of docs/plug-in.md, built and started."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator

import docker
import pytest

from images.table import Image
from tests.recipes import adapted, blocks

from .conftest import Start, output, wait_for

pytestmark = pytest.mark.docker

HEADING = "A course image of your own"
REQUIREMENTS = "--no-index\n--find-links /wheels\nmine==1\n"
COMPILED = """
import importlib.util, pathlib, mine, jupyterlab.labapp
for module in (mine, jupyterlab.labapp):
    head = pathlib.Path(module.__cached__).read_bytes()[:8]
    print(head[:4] == importlib.util.MAGIC_NUMBER, int.from_bytes(head[4:], "little"))
"""


@pytest.fixture
def course(image: Image, engine: docker.DockerClient) -> Iterator[str]:
    """The image, with a package from a wheel beside it, because a build has no network here."""
    (text,) = blocks(HEADING, "dockerfile")
    copy = "COPY requirements.txt /tmp/requirements.txt\n"
    files = {
        "Dockerfile": adapted(text, {copy: f"COPY wheels /wheels\n{copy}"}).encode(),
        "requirements.txt": REQUIREMENTS.encode(),
        "wheels/mine-1-py3-none-any.whl": wheel(),
        "notebooks/week-1.ipynb": b"{}",
    }
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    tag = f"gpuspawner-test/course-{image.name}"
    engine.images.build(
        fileobj=context, custom_context=True, tag=tag, rm=True, buildargs={"BASE": image.reference}
    )
    yield tag
    engine.images.remove(tag, force=True)


def wheel() -> bytes:
    """A package of one module."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("mine.py", "ANSWER = 42\n")
        info = "mine-1.dist-info/"
        file.writestr(f"{info}METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
        file.writestr(f"{info}WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}RECORD", "")
    return data.getvalue()


def test_it_starts_with_its_packages_and_compiles_nothing(
    image: Image, course: str, engine: docker.DockerClient, start: Start
) -> None:
    ours = engine.images.get(image.reference).attrs["Config"]
    theirs = engine.images.get(course).attrs["Config"]
    kept = ("Entrypoint", "Cmd", "User", "WorkingDir", "Healthcheck", "Env")
    assert {key: theirs[key] for key in kept} == {key: ours[key] for key in kept}
    assert theirs["Labels"]["gpuspawner.min-driver"] == ours["Labels"]["gpuspawner.min-driver"]
    lab = start("jupyter", "lab", "--no-browser", of=course)
    wait_for(lambda: lab.exec_run(["check-lab"]).exit_code == 0)
    # Flags 0: compared with the source's date. 1: by a hash that isn't compared (PEP 552).
    assert output(lab, "python", "-c", COMPILED) == "True 0\nTrue 1\n"
    assert output(lab, "cat", "/home/jovyan/starters/course/week-1.ipynb") == "{}"
    assert lab.exec_run(["find", "/opt/lab", "-newer", "/proc/1", "-name", "*.pyc"]).output == b""
