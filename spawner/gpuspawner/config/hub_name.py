"""The name of the hub whose settings a config has: labels and leases carry it."""

from __future__ import annotations

from traitlets.config import Config


def hub_of(config: Config) -> str:
    """The name of this config's hub for leases: its spawner's `hub_id`.

    It searches every section, because the spawner may be a site's own subclass. The default is "hub".
    """
    named = (
        section["hub_id"]
        for section in config.values()
        if isinstance(section, Config) and "hub_id" in section
    )
    return str(next(named, "hub"))
