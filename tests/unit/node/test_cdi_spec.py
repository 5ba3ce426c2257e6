"""CDI specs as they lie in a folder: two formats, other vendors, broken files."""

from __future__ import annotations

import json
from pathlib import Path

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
