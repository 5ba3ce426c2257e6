"""Runs pytest, and runs once more, alone, the few files that failed beside others.

    python -m tests.suite "not slow" -n 3 --dist loadfile

On a busy machine a browser, an engine or a thread can be slower than a test waits. What fails twice fails;
what passes alone is named at the end, because it may still be a fault. A fault that random inputs found fails
again: Hypothesis keeps the example and tries it first (`tests/conftest.py`), and walks have the same seeds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.seeds import SEED

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES = 3
"""If more files failed, the cause isn't a busy machine."""
FAILED = 1
"""pytest's exit status if tests ran and some failed."""
FAILURES = ROOT / ".pytest_cache/v/cache/lastfailed"
"""Where pytest writes which tests failed."""


def worth_another_run(failed: list[str]) -> list[str]:
    """The files to run again, for the names of the tests that failed; none if that can't help."""
    files = sorted({name.partition("::")[0] for name in failed})
    return files if len(files) <= MOST_FILES else []


def main(marks: str, *arguments: str) -> int:
    """Runs the tests with these marks; returns pytest's exit status, of the second run if there was one."""
    environment = {SEED: str(random.randrange(1 << 32)), **os.environ}
    FAILURES.unlink(missing_ok=True)
    status = _pytest(environment, "-m", marks, *arguments)
    if status != FAILED or not FAILURES.exists():
        return status
    failed = list(json.loads(FAILURES.read_text()))
    files = worth_another_run(failed)
    if not files:
        return status
    print(f"\nRunning again, alone: {' '.join(files)}", flush=True)
    status = _pytest(environment, "-m", marks, *files)
    if status == 0:
        print("\nFailed beside other tests and passed alone:", *failed, sep="\n  ", flush=True)
    return status


def _pytest(environment: dict[str, str], *arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
