"""CDI specs as they lie in a folder: two formats, other vendors, broken files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpuspawner.node.cdi_spec import read_specs

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_cdi_specs_are_read_as_the_engine_reads_them(tmp_path: Path) -> None:
    write(
        tmp_path / "a" / "nvidia.yaml", f'kind: nvidia.com/gpu\ndevices:\n- name: "0"\n- name: {A}\n- {{}}\n'
    )
    write(tmp_path / "b" / "x.json", json.dumps({"kind": "nvidia.com/gpu", "devices": [{"name": B}]}))
    write(tmp_path / "b" / "nic.json", json.dumps({"kind": "vendor.com/nic", "devices": [{"name": "1"}]}))
    write(tmp_path / "b" / "notes.txt", "not a spec")
    write(tmp_path / "b" / "bad.json", "{")
    write(tmp_path / "b" / "bad.yaml", "devices: [")
    write(tmp_path / "b" / "list.yaml", "- 1")
    specs = read_specs([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "missing")])
    assert specs.devices == ("0", A, B)
    bad_json, bad_yaml, bad_list = specs.problems
    assert bad_json.startswith(f"{tmp_path}/b/bad.json can't be read: Expecting property name")
    assert bad_yaml.startswith(f"{tmp_path}/b/bad.yaml can't be read: while parsing a flow")
    assert (
        bad_list
        == f"{tmp_path}/b/list.yaml can't be read: it is not a CDI spec: `kind` or `devices` is missing"
    )


def test_what_a_spec_takes_from_the_machine_is_looked_for(tmp_path: Path) -> None:
    """Nodes of the device and of all, mounts and hooks; a later folder's spec counts."""
    edits = {
        "deviceNodes": [{"path": "/dev/nvidia-uvm-tools", "hostPath": "/dev/real-tools"}],
        "mounts": [{"hostPath": "/usr/lib64/libcuda.so.580.1", "containerPath": "/elsewhere"}],
        "hooks": [{"path": "/usr/bin/nvidia-cdi-hook"}],
    }
    devices = [
        {"name": uuid, "containerEdits": {"deviceNodes": [{"path": f"/dev/{uuid}"}]}} for uuid in (A, B)
    ]
    spec = {"kind": "nvidia.com/gpu", "devices": devices, "containerEdits": edits}
    write(tmp_path / "etc" / "nvidia.json", json.dumps(spec))
    root = tmp_path / "root"
    for path in (f"dev/{A}", "dev/real-tools", "usr/lib64/libcuda.so.580.1"):
        write_in(root / path)
    missing = f"{tmp_path}/etc/nvidia.json needs /usr/bin/nvidia-cdi-hook, which this machine doesn't have: "
    found = read_specs([str(tmp_path / "etc")], None, root)
    assert found.devices == (A, B)
    assert found.obstacles[A].startswith(missing)
    assert found.obstacles[B].startswith(f"{tmp_path}/etc/nvidia.json needs /dev/{B}, which")
    write_in(root / "usr/bin/nvidia-cdi-hook")
    write(tmp_path / "run" / "nvidia.json", json.dumps({"kind": "nvidia.com/gpu", "devices": [{"name": B}]}))
    both = [str(tmp_path / "etc"), str(tmp_path / "run")]
    assert read_specs(both, "580.1", root).obstacles == {}
    assert list(read_specs(both, "585", root).obstacles) == [A]


def test_a_spec_with_edits_that_can_not_be_read_is_a_problem(tmp_path: Path) -> None:
    broken = {"kind": "nvidia.com/gpu", "devices": [{"name": A}], "containerEdits": {"mounts": ["/x"]}}
    write(tmp_path / "a" / "nvidia.json", json.dumps(broken))
    found = read_specs([str(tmp_path / "a")])
    assert found.devices == ()
    assert found.problems[0].startswith(f"{tmp_path}/a/nvidia.json can't be read: ")


def write_in(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_a_spec_is_parsed_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at every few seconds, and a large one takes seconds to parse."""
    spec = tmp_path / "nvidia.yaml"
    spec.write_text(f"kind: nvidia.com/gpu\ndevices:\n- name: {A}\n")
    assert read_specs([str(tmp_path)]).devices == (A,)
    with monkeypatch.context() as patch:
        patch.setattr("gpuspawner.node.cdi_spec.yaml.safe_load", lambda _: pytest.fail("parsed again"))
        assert read_specs([str(tmp_path)]).devices == (A,)
    spec.write_text(f"kind: nvidia.com/gpu\ndevices:\n- name: {A}\n- name: {B}\n")
    assert read_specs([str(tmp_path)]).devices == (A, B)
