"""The unit of an agent: what systemd reads, and what becomes of one that can't be installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.tools.agent_unit import UNIT, AgentUnit

ODD = AgentUnit("10.0.0.1:8098", "gpu-b", Path("/var/lib/my state"), "/etc/50%/$HOME.py")


def test_odd_paths_reach_the_agent_as_they_are() -> None:
    lines = dict(line.split("=", 1) for line in ODD.text().splitlines() if "=" in line)
    assert lines["ExecStart"] == (
        f"{sys.executable} -m gpuspawner.node.remote.agent_process --broker=10.0.0.1:8098 --name=gpu-b "
        "'--config=/etc/50%%/$$HOME.py'"
    )
    assert lines["Environment"] == "'GPUSPAWNER_STATE_DIR=/var/lib/my state'"
    assert lines["KillMode"] == "process"


def test_it_is_written_and_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, told = tmp_path / "bin", tmp_path / "told"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    ODD.install(tmp_path)
    assert (tmp_path / UNIT).read_text() == ODD.text()
    assert told.read_text() == f"daemon-reload\nenable --now {UNIT}\n"
    (programs / "systemctl").write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=f"systemd did not start {UNIT}: Access denied"):
        ODD.install(tmp_path)
    with pytest.raises(ConfigError, match=r"can't be written: No such file or directory\. Run"):
        ODD.install(tmp_path / "nowhere")
