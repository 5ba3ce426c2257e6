"""Runs pytest, and runs once more, alone, the few files with real processes that failed beside others.

    python -m tests.suite "not slow" -n 3 --dist loadfile

On a busy machine a browser or an engine can be slower than a test waits. What fails twice fails; what passes
alone is named at the end, because it may still be a fault. Unit tests get no second run: they don't depend
on what else the machine does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITH_PROCESSES = ("docker", "hub", "browser", "swarm", "images", "builder", "notebooks", "gpu")
"""Folders of tests that wait for real processes."""
MOST_FILES = 3
"""If more files failed, the cause isn't a busy machine."""
FAILED = 1
"""pytest's exit status if tests ran and some failed."""
FAILURES = ROOT / ".pytest_cache/v/cache/lastfailed"
"""Where pytest writes which tests failed."""


def worth_another_run(failed: list[str]) -> list[str]:
    """The files to run again, for the names of the tests that failed; none if that can't help."""
    files = sorted({name.partition("::")[0] for name in failed})
    alone = all(
        Path(file).parts[:1] == ("tests",) and Path(file).parts[1] in WITH_PROCESSES for file in files
    )
    return files if alone and len(files) <= MOST_FILES else []


def main(marks: str, *arguments: str) -> int:
    """Runs the tests with these marks; returns pytest's exit status, of the second run if there was one."""
    FAILURES.unlink(missing_ok=True)
    status = _pytest("-m", marks, *arguments)
    if status != FAILED or not FAILURES.exists():
        return status
    failed = list(json.loads(FAILURES.read_text()))
    files = worth_another_run(failed)
    if not files:
        return status
    print(f"\nRunning again, alone: {' '.join(files)}", flush=True)
    status = _pytest("-m", marks, *files)
    if status == 0:
        print("\nFailed beside other tests and passed alone:", *failed, sep="\n  ", flush=True)
    return status


def _pytest(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
