"""A call of the Docker Engine as a function. Only its 404 says that something is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import EngineFault

Call = Callable[..., Any]
"""`call("inspect_network", name)`: a method of docker-py's APIClient by name; blocks, raises EngineFault."""
NOT_THERE = 404


def or_none(call: Call, method: str, name: str) -> dict[str, Any] | None:
    """Docker's document of what has this name; None only if Docker says that there is none."""
    try:
        found: dict[str, Any] = call(method, name)
    except EngineFault as fault:
        if fault.status == NOT_THERE:
            return None
        raise
    return found


def unless_gone(call: Call, method: str, name: str, **more: Any) -> None:
    """Removes what has this name; no error if it is gone."""
    try:
        call(method, name, **more)
    except EngineFault as fault:
        if fault.status != NOT_THERE:
            raise
