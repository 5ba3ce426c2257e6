"""A driver's files in a folder of the test's own: what is missing or old is said, with what helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuspawner.node.driver_files import GENERATE, DriverFiles, read_driver_files, spec_obstacle

NODES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")
CUDA = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04"
SPEC = "/etc/cdi/nvidia.yaml"


def make(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def install(root: Path, version: str, folder: str = "usr/lib/x86_64-linux-gnu") -> None:
    """The library as the driver's packages install it."""
    make(root, f"{folder}/libnvidia-ml.so.{version}")
    (root / folder / "libnvidia-ml.so.1").unlink(missing_ok=True)
    (root / folder / "libnvidia-ml.so.1").symlink_to(f"libnvidia-ml.so.{version}")


def load(root: Path, version: str) -> None:
    """The loaded kernel module."""
    make(root, "sys/module/nvidia/version")
    (root / "sys/module/nvidia/version").write_text(f"{version}\n")


@pytest.mark.parametrize("folder", ["usr/lib/x86_64-linux-gnu", "usr/lib64"])
def test_an_upgrade_under_a_loaded_module_is_seen(tmp_path: Path, folder: str) -> None:
    assert read_driver_files(tmp_path) == DriverFiles()
    load(tmp_path, "580.159.04")
    install(tmp_path, "580.159.04", folder)
    before = read_driver_files(tmp_path)
    assert (before, before.obstacle()) == (DriverFiles("580.159.04", "580.159.04"), "")
    install(tmp_path, "585.10", folder)
    assert read_driver_files(tmp_path).obstacle() == (
        "The NVIDIA kernel module has version 580.159.04, but its libraries have 585.10, as after an "
        "upgrade: restart the machine when no lab needs its GPU any more"
    )


@pytest.mark.parametrize("files", [DriverFiles(), DriverFiles("580.1"), DriverFiles(None, "580.1")])
def test_a_version_that_is_not_known_says_nothing(files: DriverFiles) -> None:
    assert files.obstacle() == ""


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ((), ""),
        (
            ("/dev/nvidia-uvm",),
            f"{SPEC} needs /dev/nvidia-uvm, which this machine doesn't have: run `nvidia-modprobe -u -c=0`",
        ),
        (
            ("/dev/nvidia0",),
            f"{SPEC} needs /dev/nvidia0, which this machine doesn't have: run `nvidia-modprobe` and "
            "`nvidia-smi -L`, and see `dmesg`",
        ),
        ((CUDA,), f"{SPEC} needs {CUDA}, which this machine doesn't have: {GENERATE}"),
    ],
)
def test_a_spec_that_no_longer_fits_the_machine(
    tmp_path: Path, missing: tuple[str, ...], sentence: str
) -> None:
    make(tmp_path, *({*NODES, CUDA} - set(missing)))
    assert spec_obstacle(SPEC, (*NODES, CUDA), "580.159.04", tmp_path) == sentence


def test_mig_device_nodes_that_a_reboot_took(tmp_path: Path) -> None:
    make(tmp_path, *NODES)
    cap = "/dev/nvidia-caps/nvidia-cap30"
    assert spec_obstacle(SPEC, (*NODES, cap), None, tmp_path) == (
        f"{SPEC} needs {cap}, which this machine doesn't have: create the MIG instances again "
        "(`nvidia-smi mig -cgi <profiles> -C`)"
    )


def test_a_spec_of_another_driver_says_so_before_its_missing_files(tmp_path: Path) -> None:
    assert spec_obstacle(SPEC, (*NODES, CUDA), "585.10", tmp_path) == (
        f"{SPEC} is for driver 580.159.04, but driver 585.10 is loaded: {GENERATE}"
    )


def test_a_spec_from_before_the_driver_was_up(tmp_path: Path) -> None:
    make(tmp_path, *NODES)
    assert spec_obstacle(SPEC, NODES[:2], None, tmp_path) == (
        f"{SPEC} doesn't name /dev/nvidia-uvm, so CUDA can't start: it was probably written before the "
        f"driver was ready. Run `nvidia-modprobe -u -c=0`, then {GENERATE}"
    )
