"""On which line of a settings file an entry of a list setting stands, so that an error can say it. Pure."""

from __future__ import annotations

import ast


def line_of(source: str, section: str, name: str, number: int) -> int | None:
    """The line of entry `number` (from 1) of `c.<section>.<name> = [...]`; None where that can't be told.

    The last assignment counts, as it does when the file runs. A list that is computed has no such line.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    found: ast.expr | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(_is(target, section, name) for target in node.targets):
            found = node.value
    if not isinstance(found, ast.List | ast.Tuple) or not 0 < number <= len(found.elts):
        return None
    entries = found.elts[:number]
    return None if any(isinstance(each, ast.Starred) for each in entries) else entries[-1].lineno


def _is(target: ast.expr, section: str, name: str) -> bool:
    return (
        isinstance(target, ast.Attribute)
        and target.attr == name
        and isinstance(target.value, ast.Attribute)
        and target.value.attr == section
    )
