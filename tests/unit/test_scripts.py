"""Each script of the pages can be read by a JavaScript engine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "spawner").rglob("*.js"))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js, as the hub's proxy does")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_can_be_read(script: Path) -> None:
    """A name that is declared twice ends a whole script, and with it whatever the page does by itself."""
    done = subprocess.run(["node", "--check", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
