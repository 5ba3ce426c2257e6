"""What is refused before anything is looked up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.broker.decide import policy
from gpuspawner.core.errors import BadOption
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want

GOOD = GpuRequest("0" * 32, "hub", "ada", "", "gpu", Want(1, "H100"), ("class-a",))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"server": "a named server"},
        {"user": "Ада Лавлейс"},
        {"want": Want(1)},
        {"groups": ()},
        {"want": Want(64)},
        {"user": "a" * 255},
    ],
)
def test_well_formed(change: dict[str, Any]) -> None:
    policy.check(replace(GOOD, **change))


AGAIN = "start the server again."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lease_id": ""}, f"The lease id must be 32 hexadecimal digits: {AGAIN}"),
        ({"lease_id": "A" * 32}, f"The lease id must be 32 hexadecimal digits: {AGAIN}"),
        ({"lease_id": "0" * 32 + "\n"}, f"The lease id must be 32 hexadecimal digits: {AGAIN}"),
        ({"lease_id": 7}, f"The lease id must be 32 hexadecimal digits: {AGAIN}"),
        ({"hub": ""}, f"The hub is missing: {AGAIN}"),
        ({"user": ""}, f"The user is missing: {AGAIN}"),
        ({"tier": ""}, f"The tier is missing: {AGAIN}"),
        ({"user": None}, f"The user is not text: {AGAIN}"),
        ({"server": 3}, f"The server is not text: {AGAIN}"),
        ({"groups": (b"class",)}, f"The group is not text: {AGAIN}"),
        ({"user": "a" * 256}, "The user is longer than 255 characters: choose a shorter one."),
        ({"server": "a\nb"}, "The server 'a\\nb' has characters that can't be printed: choose another one."),
        ({"user": "\ud800"}, "The user '\\ud800' has characters that can't be printed: choose another one."),
        ({"want": Want(0)}, "The number of GPUs is 0: choose from 1 to 64."),
        ({"want": Want(-1)}, "The number of GPUs is -1: choose from 1 to 64."),
        ({"want": Want(65)}, "The number of GPUs is 65: choose from 1 to 64."),
        ({"want": Want(True)}, "The number of GPUs is True: choose from 1 to 64."),
        ({"want": Want(1.5)}, "The number of GPUs is 1.5: choose from 1 to 64."),
    ],
)
def test_malformed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption) as refusal:
        policy.check(replace(GOOD, **change))
    assert refusal.value.message == message
