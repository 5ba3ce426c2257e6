"""What all tests share: how long Hypothesis searches, this machine's Docker Engine, a PostgreSQL server.

`make test-nightly` searches at length; by default a property test takes a second or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests import postgres as postgresql

EXAMPLES = Path(__file__).resolve().parents[1] / ".hypothesis/examples"

# No deadline: on a shared machine a slow example says nothing about the code. Examples that failed are kept
# and tried first in the next run (by default Hypothesis keeps none if CI is set): a file that failed runs a
# second time, and must not pass by luck.
_COMMON = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=False,
    database=DirectoryBasedExampleDatabase(EXAMPLES),
)

settings.register_profile("default", _COMMON, max_examples=60, stateful_step_count=40)
settings.register_profile("nightly", _COMMON, max_examples=5000, stateful_step_count=200)
settings.load_profile("default")


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The Docker Engine of this machine, as Docker's own tools find it."""
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker Engine answers here: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgresql.Server]:
    """A PostgreSQL server for the tests of this process."""
    if postgresql.programs() is None:
        pytest.skip("needs PostgreSQL's server: python -m setup.ready programs")
    with postgresql.running() as server:
        yield server
