"""What a user can do after an error, or while the server waits for a GPU: links that start it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import (
    BadOption,
    ConfigError,
    Fault,
    GpuSpawnerError,
    HubFull,
    ImageUnfit,
    QueueTimeout,
    Refusal,
    StartConflict,
)
from ..core.model import Tier
from ..core.text import isolated
from .options import PROFILE
from .pages import Link, Meanwhile, SpawnLinks


@dataclass(frozen=True, slots=True)
class NextSteps:
    """For one server. `page` is the spawn page of its user's default server, `escaped_server` its name as it
    stands in an address; `plain` is the first tier without a GPU. `next_url`: where its user wanted to go."""

    page: str
    server: str
    escaped_server: str
    plain: Tier | None
    next_url: str = ""

    @property
    def links(self) -> SpawnLinks:
        """The addresses that start this server."""
        page = f"{self.page}/{self.escaped_server}" if self.escaped_server else self.page
        return SpawnLinks(page, self.next_url)

    def after(self, error: GpuSpawnerError, options: Mapping[str, str]) -> list[Link]:
        """What works after an error: start without a GPU, try the same again, choose again."""
        links, again = [], Link("Choose again", self.links.choose, "again")
        if isinstance(error, BadOption | ConfigError | ImageUnfit):
            return [again]
        other_tiers_too = isinstance(error, StartConflict | HubFull)
        if isinstance(error, Refusal) and not other_tiers_too and self.plain is not None:
            start = self.links.start({PROFILE: self.plain.name})
            links.append(Link(f"Start with {isolated(self.plain.title)} now", start))
        if isinstance(error, QueueTimeout | StartConflict | HubFull | Fault) and options:
            text = "Wait again" if isinstance(error, QueueTimeout) else "Try again"
            links.append(Link(text, self.links.start(dict(options))))
        return [*links, again]

    def meanwhile(self, names: Collection[str], settings: Mapping[str, Any]) -> Meanwhile | None:
        """How to work without a GPU while this server waits for one; None if no tier is without.

        `names` are the user's named servers, `settings` the hub's, which say whether there may be another.
        """
        plain = self.plain
        if plain is None:
            return None
        options, limit = {PROFILE: plain.name}, settings.get("named_server_limit_per_user")
        may_add = plain.name in names or not isinstance(limit, int) or limit <= 0 or len(names) < limit
        if not settings.get("allow_named_servers") or not may_add or self.server == plain.name:
            return Meanwhile(plain.title, self.links.start(options), keeps_place=False)
        other = SpawnLinks(f"{self.page}/{plain.name}")
        return Meanwhile(plain.title, other.start(options), keeps_place=True)
