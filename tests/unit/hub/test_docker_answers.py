"""What Docker's answers about a container mean."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.hub.docker_answers import exit_status


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ExitCode": 3}, "exit code 3"),
        ({"ExitCode": 127, "Error": "no such file"}, "exit code 127, no such file"),
        ({"ExitCode": 137, "OOMKilled": True}, "it ran out of memory"),
    ],
)
def test_how_it_ended(state: dict[str, Any], words: str) -> None:
    assert exit_status({"State": state}) == words
