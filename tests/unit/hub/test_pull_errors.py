"""What a failed pull means, as a sentence."""

from __future__ import annotations

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub.pull_errors import explain
from gpuspawner.hub.pulls import SILENT


@pytest.mark.parametrize(
    ("words", "status", "reason", "sentence"),
    [
        # Engine 20.10.24 against Debian's docker-registry, as seen in tests/docker/test_pull.py
        ("manifest for 127.0.0.1:5000/lab:2 not found: manifest unknown: manifest unknown", 404,
         "image_missing", "The registry doesn't have it: check the name and the tag."),
        ("Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused", 500,
         "registry_silent", "The registry doesn't answer: "),
        ("pull access denied for lab, repository does not exist or may require 'docker login': denied: "
         "requested access to the resource is denied", 404, "registry_denied",
         "The registry refuses it: "),
        ("Get \"https://r/v2/\": no basic auth credentials", 500, "registry_denied",
         "The registry refuses it"),
        ("Get https://r/v2/: net/http: request canceled while waiting for connection (Client.Timeout "
         "exceeded while awaiting headers)", 500, "registry_silent", "The registry doesn't answer: "),
        ("Get \"https://r/v2/\": http: server gave HTTP response to HTTPS client", 500, "registry_silent",
         "The connection to the registry isn't secure. "),
        ("failed to register layer: write /x: no space left on device", 500, "disk_full",
         "This machine's disk is full"),
        ("toomanyrequests: You have reached your pull rate limit.", 500, "registry_denied",
         "The registry got too"),
        ("something new", 500, "image_missing",
         "Docker says: something new. Admin: run 'docker pull lab' to see more."),
        ("", SILENT, "pull_stalled",
         "No data came for 300 seconds: try again; the layers that have arrived are kept. "),
    ],
)  # fmt: skip
def test_what_an_error_means(words: str, status: int, reason: str, sentence: str) -> None:
    fault = explain("lab", EngineFault(words, status), silence_seconds=300)
    assert fault.reason == reason
    assert str(fault).startswith(f"The image lab isn't here and could not be pulled. {sentence}")


def test_an_older_one_and_the_projects_own_are_spoken_of() -> None:
    fault = EngineFault("connection refused", 500)
    assert str(explain("lab", fault, here=True)).startswith("The image lab could not be pulled. The registry")
    assert str(explain("lab", fault, here=True)).endswith(
        " An older one is here. Admin: pull_policy = 'ifnotpresent' starts that."
    )
    assert str(explain("gpuspawner/lab:1", fault)).endswith(" 'make images' builds the project's own.")
