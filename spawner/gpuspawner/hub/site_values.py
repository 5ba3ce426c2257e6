"""Settings that may be functions of the site's: asked at each start, with their templates filled in."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from dockerspawner import DockerSpawner
from tornado.web import HTTPError

from ..core.errors import ConfigError, GpuSpawnerError


def of_site(spawner: DockerSpawner, name: str) -> Any:
    """A setting's value, or the result if it is a callable. Raises ConfigError if the callable fails."""
    setting = getattr(spawner, name)
    try:
        return setting(spawner) if callable(setting) else setting
    except (HTTPError, GpuSpawnerError):  # the site refuses on purpose
        raise
    except Exception as error:  # it is the site's code, and may raise anything
        raise _failed(name, error) from error


async def evaluate(spawner: DockerSpawner, name: str) -> dict[str, Any]:
    """The same for a callable that may be async, and with DockerSpawner's templates filled in."""
    value = of_site(spawner, name)
    try:
        if isawaitable(value):
            value = await value
        fill: Callable[[Any], dict[str, Any]] = spawner._render_templates
        return fill(value)
    except (HTTPError, GpuSpawnerError):
        raise
    except Exception as error:
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"c.GpuDockerSpawner.{name} is a callable that failed with {error!r}: correct it")
