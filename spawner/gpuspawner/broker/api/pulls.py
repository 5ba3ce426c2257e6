"""POST /pulls on the unix socket: a process that pulls images tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from ...core.errors import BadOption
from ...protocol.messages import sentence_of
from ...protocol.pulls import PullsMessage
from .socket import Handler, Site

Tell = Callable[[PullsMessage], None]


class PullsHandler(Handler):
    """POST /pulls"""

    tell: Tell

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site)
        self.tell = more["tell"]

    def post(self) -> None:
        """204."""
        try:
            told = PullsMessage.model_validate_json(self.request.body or b"{}")
        except ValidationError as error:
            self.refuse(BadOption(sentence_of(error, PullsMessage)))
            return
        self.tell(told)
        self.set_status(204)


def pull_routes(site: Site, tell: Tell) -> list[tuple[Any, ...]]:
    """The route, for `make_app`."""
    return [(r"/pulls", PullsHandler, {"site": site, "tell": tell})]
