"""The seeds of random walks: others in each run, and the same ones when a file that failed runs again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

SEED = "GPUSPAWNER_TEST_SEED"
"""The environment variable with the number from which all seeds of a run come; see `tests/suite.py`."""


def seeds() -> Iterator[int]:
    """Endless; for each test the same ones, if the variable is set."""
    draw = random.Random(os.environ.get(SEED))
    while True:
        yield draw.randrange(1 << 32)
