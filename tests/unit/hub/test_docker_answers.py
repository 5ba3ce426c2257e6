"""What Docker's answers about a container mean."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.hub.docker_answers import exit_status, unable_to_run


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


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            'OCI runtime create failed: exec: "jupyterhub-singleuser": executable file not found in $PATH',
            'exec: "jupyterhub-singleuser": executable file not found in $PATH',
        ),
        ('exec: "docker-init": executable file not found in $PATH', None),
        ("no space left on device", None),
    ],
)
def test_a_command_that_the_image_cannot_run(message: str, reason: str | None) -> None:
    assert unable_to_run(message) == reason
