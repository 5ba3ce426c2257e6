"""The table of images, its locks, and which wheels are asked for."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from traitlets.config.loader import PyFileConfigLoader

from images.table import IMAGES_DIR, Base, Image, Table, read_table
from images.wheels import Lock, Target, pin
from setup.steps import ROOT

TABLE = read_table()
LOCKS = [
    pytest.param(image, name, id=f"{image.name}/{name}")
    for image in TABLE.images
    for name in (image.lock, image.cpu_lock)
    if name
]
_PIN = re.compile(r"^[a-z0-9][a-z0-9.-]*={2,3}[0-9][0-9a-z.+]*$")


def pins(image: Image, name: str) -> dict[str, str]:
    lines = (image.folder / name).read_text().splitlines()
    assert all(_PIN.match(line) for line in lines if not line.startswith("#")), f"{image.name}/{name}"
    return {(parts := re.split("={2,3}", line))[0]: parts[1] for line in lines if not line.startswith("#")}


def test_the_table() -> None:
    assert read_table() == Table(
        base=Base(
            tag="0.1.0",
            pull="debian:bookworm-slim",
            packages=(
                "ca-certificates",
                "curl",
                "git",
                "less",
                "procps",
                "python3-minimal",
                "python3-venv",
                "tini",
                "unzip",
                "wget",
            ),
        ),
        default="lab-torch",
        images=(
            Image(
                name="lab-base", title="JupyterLab", parent="base", tag="0.1.0", cuda="", min_driver="",
                needs_gpu=False, lock="requirements.lock", cpu_lock="",
            ),
            Image(
                name="lab-torch", title="JupyterLab with PyTorch", parent="lab-base", tag="0.1.0",
                cuda="13.0", min_driver="580", needs_gpu=False, lock="requirements.lock",
                cpu_lock="requirements-cpu.lock", packages=("g++", "libpython3-dev"),
                packages_for=("the compiler of torch.compile", "Python's headers for Triton"),
            ),
            Image(
                name="lab-tensorrt", title="JupyterLab with PyTorch and TensorRT", parent="lab-torch",
                tag="0.1.0", cuda="13.0", min_driver="580", needs_gpu=True, lock="requirements.lock",
                cpu_lock="", source=("tensorrt", "tensorrt-cu13"), elsewhere=("tensorrt-cu13-libs",),
            ),
        ),
    )  # fmt: skip


def test_names_for_docker() -> None:
    torch = TABLE.images[1]
    assert (torch.reference, torch.core, torch.system) == (
        "gpuspawner/lab-torch:0.1.0", "gpuspawner/lab-torch:0.1.0-core", "gpuspawner/lab-torch:0.1.0-system",
    )  # fmt: skip
    base = Base(tag="1", pull="127.0.0.1:5000/debian:bookworm", packages=())
    assert (base.reference, base.source) == ("gpuspawner/base:1", "127.0.0.1:5000/debian:bookworm")
    assert replace(base, digest="sha256:12").source == "127.0.0.1:5000/debian@sha256:12"
    assert replace(base, pull="debian", digest="sha256:12").source == "debian@sha256:12"


def test_parents_are_built_first() -> None:
    assert [image.name for image in TABLE.with_parents(["lab-torch"])] == ["lab-base", "lab-torch"]
    assert [image.name for image in TABLE.with_parents(["lab-base"])] == ["lab-base"]
    assert TABLE.with_parents([]) == TABLE.images
    with pytest.raises(KeyError, match="lab-none"):
        TABLE.with_parents(["lab-none"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('from = "lab-base"', 'from = "lab-none"'), "'lab-torch' is from 'lab-none': name one above it"),
        (
            ('name = "lab-torch"', 'name = "lab-base"'),
            "'lab-base' is there twice: give each image its own name",
        ),
        (('default = "lab-torch"', 'default = "lab-x"'), "default is 'lab-x': name one of the images"),
    ],
)
def test_a_table_that_cannot_be_built(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "images.toml"
    path.write_text((IMAGES_DIR / "images.toml").read_text().replace(*change))
    with pytest.raises(ValueError, match=re.escape(said)):
        read_table(path)


@pytest.mark.parametrize(("image", "name"), LOCKS)
def test_a_lock_has_exact_versions_and_no_address(image: Image, name: str) -> None:
    assert pins(image, name)
    assert "://" not in (image.folder / name).read_text()


@pytest.mark.parametrize(("image", "name"), LOCKS)
def test_a_lock_brings_what_is_asked_for_and_repeats_no_parent(image: Image, name: str) -> None:
    asked = [
        line.split("#")[0].strip() for line in (image.folder / "requirements.in").read_text().splitlines()
    ]
    names = {re.split("[<>=!]", line)[0] for line in asked if line}
    own = pins(image, name)
    assert names <= set(own)
    for parent in TABLE.with_parents([image.name]):
        if parent.name != image.name:
            assert not set(own) & set(pins(parent, parent.lock))


def test_the_hub_starts_the_tables_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUSPAWNER_IMAGE", raising=False)
    loader = PyFileConfigLoader("jupyterhub_config.py", path=str(ROOT))
    assert loader.load_config().GpuDockerSpawner.image == TABLE.default_image.reference


def test_the_digest_of_the_base_is_of_what_is_pulled(tmp_path: Path) -> None:
    table, lock = tmp_path / "images.toml", tmp_path / "base.lock"
    shutil.copy(IMAGES_DIR / "images.toml", table)
    lock.write_text("# written by make lock\ndebian:bookworm-slim sha256:12\n")
    assert read_table(table).base.source == "debian@sha256:12"
    lock.write_text("debian:trixie-slim sha256:12\n")  # of another: what images.toml says counts
    assert read_table(table).base.source == "debian:bookworm-slim"


def test_tensorrt_is_the_one_of_its_pytorch() -> None:
    """torch-tensorrt X.Y needs PyTorch X.Y; all parts of TensorRT are of one version."""
    torch, tensorrt = (pins(image, image.lock) for image in TABLE.images[1:])
    assert tensorrt["torch-tensorrt"].split(".")[:2] == torch["torch"].split(".")[:2]
    names = ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs")
    assert len({tensorrt[name] for name in names}) == 1
    assert set(TABLE.images[2].source) | set(TABLE.images[2].elsewhere) <= set(names)


def test_the_cpu_build_is_one_and_brings_no_cuda() -> None:
    torch = TABLE.images[1]
    cpu, cuda = pins(torch, torch.cpu_lock), pins(torch, torch.lock)
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    cuda_s = [name for name in cpu if name.startswith(("nvidia", "cuda", "triton"))]
    assert cuda_s == ["nvidia-ml-py"]  # the charts': Python alone, and the driver's library if there is one
    # three signs: no local build answers to it, so a machine that offers both takes the one with CUDA
    assert f"\ntorch==={cuda['torch']}\n" in (torch.folder / torch.lock).read_text()


def test_only_the_named_package_gets_another_version() -> None:
    lock = "jupyterhub==6.1.1\njupyterhub-idle-culler==2.0\nnumpy==2.4.6\n"
    assert (
        pin(lock, "jupyterhub", "5.5.0") == "jupyterhub==5.5.0\njupyterhub-idle-culler==2.0\nnumpy==2.4.6\n"
    )


def test_a_line_of_a_lock() -> None:
    lock = Lock("lab", "# exact\nnumpy==2.4.6\nnumpydoc==1\ntorch===2.13.0\n")
    assert [lock.requirement(name) for name in ("numpy", "torch")] == ["numpy==2.4.6", "torch===2.13.0"]
    with pytest.raises(ValueError, match="the lock of lab has no doc: run `make lock`"):
        lock.requirement("doc")


def test_wheels_are_for_the_images_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    options = Target(python="3.11.2", glibc="2.6").pip_options()
    assert options == [
        "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11.2",
        "--platform", "manylinux_2_6_x86_64", "--platform", "manylinux_2_5_x86_64",
        "--platform", "manylinux2014_x86_64", "--platform", "manylinux2010_x86_64",
        "--platform", "manylinux1_x86_64", "--platform", "linux_x86_64",
    ]  # fmt: skip
