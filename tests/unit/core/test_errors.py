"""The tree drawn in errors.py is the tree there is, and each refusal comes back from its reason."""

from __future__ import annotations

import re

from gpuspawner.core import errors
from gpuspawner.core.errors import GpuSpawnerError, Refusal, all_refusals

_LINE = re.compile(r"^    (?P<indent>[│ ]*)(?:[├└]── )?(?P<name>[A-Z]\w+)(?:\s+(?P<rest>.*))?$")


def drawn() -> dict[str, tuple[str | None, str]]:
    """Each class of the drawing: its parent, and what stands beside it."""
    found: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in str(errors.__doc__).splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // 4 + (1 if "── " in line else 0)
        path = [*path[:depth], match["name"]]
        found[match["name"]] = (path[depth - 1] if depth else None, match["rest"] or "")
    return found


def there() -> dict[str, type[GpuSpawnerError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, GpuSpawnerError)
    }


def test_the_drawing_is_the_tree() -> None:
    parents = {name: kind.__base__.__name__ for name, kind in there().items() if kind is not GpuSpawnerError}
    assert {name: parent for name, (parent, _) in drawn().items() if parent} == parents
    assert drawn()["GpuSpawnerError"] == (None, "")
    assert len(drawn()) > 10


def test_the_drawing_has_each_refusal_s_status_and_reason() -> None:
    words = {name: rest.split() for name, (parent, rest) in drawn().items() if parent == "Refusal"}
    assert words == {
        kind.__name__: [str(kind.status), kind.reason]
        for kind in there().values()
        if issubclass(kind, Refusal) and kind is not Refusal
    }


def test_all_refusals_is_complete_and_reasons_are_distinct() -> None:
    refusals = [kind for kind in there().values() if issubclass(kind, Refusal)]
    assert len({kind.reason for kind in refusals}) == len(refusals)
    assert all_refusals() == {kind.reason: kind for kind in refusals}


def test_a_refusal_s_message_is_its_sentence() -> None:
    for kind in all_refusals().values():
        assert kind("Take CPU.").message == "Take CPU."
        assert 400 <= kind.status < 600


def test_the_refusal_for_which_a_lease_ended_is_found_in_its_reason() -> None:
    found = errors.refusal_in("quota_tier: Choose 'cpu': it is free.")
    assert (type(found), str(found)) == (errors.QuotaTier, "Choose 'cpu': it is free.")
    assert [errors.refusal_in(each) for each in ("stopped", "the hub: gone", "quota_tier")] == [None] * 3
