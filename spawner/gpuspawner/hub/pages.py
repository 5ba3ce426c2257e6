"""What our versions of JupyterHub's pages show of a server: its start, how it ended, what to do now. Pure.

The pages are in `templates/pages/`; sites that have their own still get `render_failure` in JupyterHub's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from .form import render
from .progress import Progress, Step, StepView

_OPTION = "opt-"
"""The prefix of options in the query of the spawn page's address (JupyterHub 6)."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is drawn as a button. `kind` "again" is left out where the form itself is shown."""

    text: str
    url: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class SpawnLinks:
    """The addresses with which one server is started. `page` is its spawn page.

    `next_url`: where the browser is led when the server runs; "": to the server.
    """

    page: str
    next_url: str = ""

    def start(self, options: Mapping[str, str]) -> str:
        """Starts the server with these options at once."""
        return self._with_query({_OPTION + key: value for key, value in options.items()})

    @property
    def choose(self) -> str:
        """Asks how to start the server."""
        return self._with_query({})

    def _with_query(self, query: Mapping[str, str]) -> str:
        whole = {**query, "next": self.next_url} if self.next_url else query
        return f"{self.page}?{urlencode(whole)}" if whole else self.page


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """How a user who waits for a GPU can work without one.

    `keeps_place`: in another server, so that the place in the queue stays; else instead of this one.
    """

    title: str
    url: str
    keeps_place: bool


@dataclass(frozen=True, slots=True)
class StartView:
    """A start as the waiting page shows it before its script runs, or without one."""

    server: str
    """The name as the user typed it; "" for the default server."""
    tier: str
    message: str
    steps: Sequence[StepView]
    meanwhile: Meanwhile | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for a GPU now."""
        return any(step.name == Step.GPU.value and step.state == "active" for step in self.steps)


def view_start(progress: Progress, server: str, tier: str, meanwhile: Meanwhile | None) -> StartView:
    """The view of a start whose steps are in `progress`."""
    message = str(progress.last.get("message", ""))
    return StartView(server, tier, message, progress.view(), meanwhile)


def render_failure(sentence: str, log: str, links: Sequence[Link]) -> str:
    """HTML: what happened, the last log lines folded away, and buttons for what works now."""
    return render("failure.html", sentence=sentence, log=log, links=links)
