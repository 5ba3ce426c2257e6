"""Where MPS's files are, and which program is it: what needs no daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuspawner.node.mps.control import MpsPlace, find_program, place_of

from tests.mps import standin
from tests.unit.lease_examples import UUIDS

A, _ = UUIDS


def test_the_pipe_folder_is_outside_of_the_state_folder() -> None:
    place = place_of(A, Path("/root/course/.state"))
    assert (str(place.pipe), str(place.log)) == (
        f"/run/gpuspawner/mps-276de0a0/{A}",
        f"/root/course/.state/mps/{A}",
    )
    assert len(str(place.pipe / "control_privileged")) < 107  # the most that Linux takes as a socket's path
    assert place_of(A, Path("/srv/other")).pipe.parent != place.pipe.parent


def test_a_large_log_is_emptied_and_its_end_kept(tmp_path: Path) -> None:
    place = MpsPlace("GPU-1", tmp_path / "pipe", tmp_path / "log")
    place.pipe.mkdir()
    place.log.mkdir()
    (place.log / "control.log").write_bytes(b"x" * (16 << 20) + b"x")
    (place.log / "server.log").write_bytes(b"x")
    place.clean()
    sizes = {path.name: path.stat().st_size for path in place.log.iterdir()}
    assert sizes == {"control.log": 0, "control.log.1": 1 << 20, "server.log": 1}


def test_finding_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = standin.install(tmp_path)
    assert find_program(str(program), uid=0).path == program
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program(uid=0).path == program
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("gpuspawner.node.mps.control.KNOWN_PLACES", (str(tmp_path),))
    assert find_program(uid=0).path == program
    monkeypatch.setattr("gpuspawner.node.mps.control.KNOWN_PLACES", ())
    reasons = [
        find_program(uid=0).reason,
        find_program("/nowhere/x", uid=0).reason,
        find_program(uid=1000).reason,
    ]
    assert reasons == [
        "nvidia-cuda-mps-control was not found: install the driver's compute utilities",
        "/nowhere/x is not a program: set the path of nvidia-cuda-mps-control, or remove the setting",
        "MPS needs a broker that runs as root: containers run as other users",
    ]
