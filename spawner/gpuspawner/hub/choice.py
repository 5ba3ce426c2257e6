"""The hub's questions about what a user picked: the form, what comes back from it, what is stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from html import escape
from typing import Any, ClassVar

from dockerspawner import DockerSpawner
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import url_escape_path, url_path_join
from sqlalchemy.orm import object_session
from tornado.web import HTTPError
from traitlets import default

from ..config.site import GpuSite
from ..core.errors import (
    BadOption,
    ConfigError,
    EngineFault,
    GpuSpawnerError,
    ImageUnfit,
    Refusal,
    StartFault,
)
from ..core.image_needs import obstacle, read_machine, read_needs
from ..core.image_reference import AllowedImages, allow_images
from ..core.model import Tier
from ..protocol.client import BrokerClient
from .engine_words import explain
from .form import hinder, make_cards, render_form
from .options import PROFILE, Choice, parse_form, parse_options, parse_query, refill

_FORM_SECONDS = 2.0
_LABELS_SECONDS = 1.0
_CONFIG_SENTENCE = "The hub's configuration can't work, so no server can be started. Admin: "


class ChoiceSpawner(DockerSpawner):
    """DockerSpawner that offers tiers instead of images, and trusts nothing that comes back."""

    _brokers: ClassVar[dict[str, BrokerClient]] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.site = GpuSite(parent=self)
        self.lease_id = ""
        self._refused: object = None

    @default("options_form")
    def _options_form_default(self) -> Callable[..., Any]:
        return type(self)._render_options_form

    @default("options_from_form")
    def _options_from_form_default(self) -> Callable[..., Any]:
        return self._read_form

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Callable[..., None]:
        # start() reads and validates them; this only keeps the hub from warning that nobody does.
        return lambda spawner, user_options: None

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The site's tiers. Raises ConfigError."""
        return self.site.parsed_tiers()

    @property
    def broker(self) -> BrokerClient:
        """The client of the site's broker, one for the whole hub."""
        path = self.site.socket_path
        if path not in self._brokers:
            self._brokers[path] = BrokerClient(path, log=self.log)
        return self._brokers[path]

    async def _render_options_form(self) -> str:
        """The tiers with what is free now; without the broker, those with a GPU are shown as unavailable."""
        document, problem = None, ""
        if any(tier.needs_gpu for tier in self.tiers):
            try:
                async with asyncio.timeout(_FORM_SECONDS):
                    document = await self.broker.tiers()
            except Refusal as refusal:
                problem = refusal.message
            except TimeoutError:
                problem = "The GPU broker doesn't answer right now."
        images = self.offered_images()
        obstacles = await self._obstacles(document)
        cards = [
            hinder(card, obstacles.get(card.tier.name, ""), usable=bool(images))
            for card in make_cards(self.tiers, document, problem)
        ]
        # What was refused is shown once more, to be mended; else what the last start had.
        refused, self._refused = self._refused, None
        return render_form(cards, images, refill(self.user_options if refused is None else refused))

    async def _obstacles(self, document: dict[str, Any] | None) -> dict[str, str]:
        """Why a tier's own image would be of no use here, by the tier's name; what isn't known hinders none.

        Only images that are here have labels to look at. The start looks again, once it has pulled.
        """
        machine, found = read_machine(document), {}
        wanted = {tier: tier.image or self.image for tier in self.tiers}
        with suppress(EngineFault, TimeoutError):
            async with asyncio.timeout(_LABELS_SECONDS):
                distinct = list(dict.fromkeys(wanted.values()))
                seen = await asyncio.gather(*(self.find_image(image) for image in distinct))
                documents = dict(zip(distinct, seen, strict=True))
                for tier, image in wanted.items():
                    needs = read_needs(documents[image] or {})
                    if why := obstacle(image, needs, tier.needs_gpu, machine):
                        found[tier.name] = why
        return found

    async def find_image(self, image: str) -> dict[str, Any] | None:
        """Docker's document of an image; None if it isn't here. Raises EngineFault."""
        try:
            document: dict[str, Any] = await self.docker("inspect_image", image)
        except EngineFault as fault:
            if fault.status == 404:
                return None
            raise
        return document

    def _read_form(self, form: Any) -> dict[str, Any]:
        """What the form sent, as `user_options`; a refusal is shown above the form."""
        return self._read(parse_form, form)

    def _read(self, parse: Callable[..., Choice], form: Any) -> dict[str, Any]:
        try:
            return parse(form, self.tiers, self.offered_images()).as_options()
        except (BadOption, ConfigError) as problem:
            self._refused = form
            raise self._sorry(problem) from None

    def options_from_query(self, query_data: Any) -> Any:
        """What the address of the spawn page says, as `user_options`."""
        if self._site_reads_form:
            return self.options_from_form(query_data)
        return self._read(parse_query, query_data)

    @property
    def _site_reads_form(self) -> bool:
        """Whether the site has an `options_from_form` of its own, whose options then are its own business."""
        return getattr(self.options_from_form, "__func__", None) is not ChoiceSpawner._read_form

    async def check_allowed(self, image: str) -> str:
        """The image behind a name of `allowed_images`, as DockerSpawner has it. Raises HTTPError 400."""
        try:
            return self.offered_images().find(image)
        except ValueError as problem:
            offer = f": choose {self.offered_images().offer()}" if self.offered_images() else ""
            raise HTTPError(400, f"The image {image!r} {problem}{offer}") from None

    def offered_images(self) -> AllowedImages:
        """What users may choose. Raises ConfigError (of a callable; a value was checked at load)."""
        setting = self.allowed_images
        return allow_images(setting(self) if callable(setting) else setting)

    def _choose(self) -> Choice:
        """The choice in `user_options`, kept in its shortest form for the next start and the admin page.

        What can't be used isn't kept: a start without options then has the first tier. Raises BadOption.
        """
        try:
            choice = self._parse_stored()
        except BadOption:
            self._keep_options({})
            raise
        self._keep_options(choice.as_options())
        return choice

    def _parse_stored(self) -> Choice:
        images = self.offered_images()
        return parse_options(self.user_options, self.tiers, images, others=self._site_reads_form)

    def _keep_options(self, options: dict[str, Any]) -> None:
        """Stores them here and in the hub's database; committed, for a request's end rolls back the rest."""
        self.user_options = options
        stored = self.orm_spawner
        if stored is not None and stored.user_options != options:
            stored.user_options = options
            session = object_session(stored)
            if session is not None:
                session.commit()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores container and lease; forgets options whose tier or image is gone from the settings."""
        super().load_state(state)
        self.lease_id = str(state.get("lease_id") or "")
        if self.server is None and self.user_options:
            try:
                self._parse_stored()
            except (BadOption, ConfigError) as problem:
                self._note(logging.INFO, "Forgot the options of the last start: %s", problem)
                self._keep_options({})

    def _sorry(self, problem: GpuSpawnerError) -> SpawnException:
        """The exception by which JupyterHub (6.1) shows a sentence, without a traceback, and counts `reason`.

        Logs the problem: a refusal as INFO, a fault as ERROR with its cause.
        """
        message, reason, status, admin = str(problem), "fault", 500, ""
        if isinstance(problem, Refusal):
            reason, status = problem.reason, problem.status
        elif isinstance(problem, StartFault):
            reason = problem.reason
        elif isinstance(problem, EngineFault):
            said = explain(problem)
            message, reason, status, admin = said.user, said.reason, said.status, f" Admin: {said.admin}"
        elif isinstance(problem, ConfigError):
            message, reason = _CONFIG_SENTENCE + message, "config"
        level = logging.INFO if isinstance(problem, Refusal) else logging.ERROR
        cause = "" if isinstance(problem, Refusal) else f" ({problem}; cause: {problem.__cause__!r})"
        self._note(level, "Not started: %s%s%s", message, admin, cause)
        error = SpawnException(message, reason=reason, status_code=status)
        # Pages show these two (jupyterhub.utils.format_exception); without them nothing, or a class name.
        vars(error).update(
            jupyterhub_message=message, jupyterhub_html_message=escape(message) + self._offer(problem)
        )
        return error

    def _offer(self, problem: GpuSpawnerError) -> str:
        """A link that starts the server without a GPU, where that would help."""
        plain = next((tier for tier in self.tiers if not tier.needs_gpu), None)
        if plain is None or not isinstance(problem, Refusal) or isinstance(problem, BadOption | ImageUnfit):
            return ""
        url = url_path_join(
            self.hub.base_url, "spawn", self.user.escaped_name, url_escape_path(self.name)
        )  # the hub takes options of a query with this prefix
        return f' <a href="{escape(url)}?opt-{PROFILE}={plain.name}">Start with {escape(plain.title)} now</a>'

    def _note(self, level: int, message: str, *args: object) -> None:
        """Logs a line about this server, with the ending that all of them have."""
        self.log.log(
            level,
            message + " user=%s server=%s lease=%s devices=- container=%s",
            *args,
            self.user.name,
            self.name,
            self.lease_id or "-",
            (self.object_id or "")[:12] or "-",
        )
