"""`c.GpuSite.idle`: what it becomes, and what each mistake is answered with."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.config.idle import IdleRules, parse_idle
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.session import EndAction


def test_what_is_left_out_has_its_default() -> None:
    assert parse_idle({}) == IdleRules(900.0, 3300.0, 3600.0, EndAction.STOP, True)
    assert parse_idle({"after": 7200, "action": "nothing", "only_when_waiting": False}) == IdleRules(
        900.0, 3300.0, 7200.0, EndAction.NOTHING, False
    )


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"afer": 1}, "c.GpuSite.idle has no key 'afer': use after"),
        ({"after": -1}, 'after is -1: give a number of seconds, like "after": 3600'),
        ({"after": True}, "after is True: give a number of seconds"),
        ({"after": 600}, "first_warning 900, second_warning 3300 and after 600 have to follow one another"),
        ({"action": "kill"}, 'action is \'kill\': write "action": "stop", "sleep" or "nothing"'),
        ({"only_when_waiting": 1}, "only_when_waiting is 1: write True or False"),
    ],
)
def test_a_mistake_is_named(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_idle(raw)
    assert sentence in str(caught.value)
