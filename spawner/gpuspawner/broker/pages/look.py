"""The hub's look: its templates, static files and addresses, for the pages of a service.

jupyterhub 6.1's `page.html` asks for `base_url` (the hub's), `prefix` (the site's), `static_url`, `user`
with `name` and `json_escaped_name`, `logout_url`, `services`, `parsed_scopes` and `xsrf_token`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, TemplateError
from jupyterhub._data import DATA_FILES_PATH
from jupyterhub.services.auth import HubOAuth
from markupsafe import Markup
from traitlets.config.loader import Config, LazyConfigValue

from ...core.text import isolated, plain

_HERE = Path(__file__).parent
STATIC_DIR = _HERE / "static"
HUB_STATIC_DIR = Path(DATA_FILES_PATH) / "static"
"""The hub's own files: scripts, styles, fonts."""
HUB_STATIC = "hub-static/"
"""Their address below the service's."""


@dataclass(frozen=True, slots=True)
class PageUser:
    """The user, in the form that the hub's templates need."""

    name: str

    @property
    def json_escaped_name(self) -> str:
        """The name for use between quotes in a script.

        It also escapes characters that could end the script element, because the hub's template marks this
        value as safe.
        """
        text = json.dumps(self.name)[1:-1]
        return "".join(f"\\u{ord(char):04x}" if char in "<>&'" else char for char in text)


class Look:
    """Renders templates as the hub of this site does.

    `template_paths` and `template_vars` are the hub's settings of the same names: a site's own
    `page.html`, logo or announcement then shows here as well. Variables that are functions of the
    hub's user object are not set, because this process has no such object.
    """

    def __init__(
        self, template_paths: Sequence[str] = (), template_vars: Mapping[str, Any] | None = None
    ) -> None:
        hub_templates = FileSystemLoader(str(Path(DATA_FILES_PATH) / "templates"))
        self._environment = Environment(
            autoescape=True,
            loader=ChoiceLoader(
                [
                    *(FileSystemLoader(path) for path in template_paths),
                    FileSystemLoader(str(_HERE / "templates")),
                    # As in the hub: a site's page.html extends "templates/page.html".
                    PrefixLoader({"templates": hub_templates}),
                    hub_templates,
                ]
            ),
        )
        self._environment.filters |= {"name": name_in_html, "isolated": isolated}
        self._vars = {key: value for key, value in (template_vars or {}).items() if not callable(value)}
        self._assets = {path.name: _version(path) for path in sorted(STATIC_DIR.iterdir())}

    def render(self, template: str, **namespace: Any) -> str:
        """The template's HTML."""
        return self._environment.get_template(template).render(**namespace)

    def compile(self) -> None:
        """Makes the programs of all our templates, 0.35 s of CPU time, so that no reader waits for them.

        A template that a site has broken is left: the page that needs it answers with the error.
        """
        for path in sorted((_HERE / "templates").glob("*.html")):
            with suppress(TemplateError):
                self._environment.get_template(path.name)
        for name in ("page.html", "error.html"):
            with suppress(TemplateError):
                self._environment.get_template(name)

    def part(self, template: str, macro: str, page: Any, variables: Mapping[str, Any]) -> str:
        """The HTML of one macro of a template, called with the page and the variables of its forms."""
        module = self._environment.get_template(template).module
        return str(getattr(module, macro)(page, variables))

    def hub_url(self, hub_auth: HubOAuth) -> str:
        """Address of the hub's own pages, with a slash at its end; absolute if users have subdomains."""
        return f"{hub_auth.hub_host}{hub_auth.hub_prefix.rstrip('/')}/"

    def namespace(
        self, hub_auth: HubOAuth, prefix: str, model: Mapping[str, Any] | None, xsrf_token: str
    ) -> dict[str, Any]:
        """The variables for `page.html` and our templates; `model` is the user, None without a login."""
        hub_url = self.hub_url(hub_auth)
        scopes: Collection[str] = () if model is None else model.get("scopes", ())

        def static_url(path: str, **_: Any) -> str:
            # With subdomains the hub is another origin, from which a browser takes no fonts.
            return f"{prefix}{HUB_STATIC}{path}" if hub_auth.hub_host else f"{hub_url}static/{path}"

        def asset_url(name: str) -> str:
            return f"{prefix}static/{name}?v={self._assets[name]}"

        return {
            "base_url": hub_url,
            "prefix": hub_url.removesuffix("hub/"),
            "service_url": prefix,
            "user": None if model is None else PageUser(str(model["name"])),
            "no_spawner_check": True,
            "login_url": f"{hub_url}login",
            "logout_url": f"{hub_url}logout",
            "static_url": static_url,
            "asset_url": asset_url,
            "services": [{"name": prefix.strip("/").rpartition("/")[2], "href": prefix}],
            "parsed_scopes": frozenset(scopes),
            "expanded_scopes": frozenset(scopes),
            "xsrf": xsrf_token,
            "xsrf_token": xsrf_token,
            **self._vars,
        }


def name_in_html(name: str) -> Markup:
    """The filter `name`: what somebody else chose, in an element that keeps its direction to itself."""
    return Markup("<bdi>{}</bdi>").format(plain(str(name)))


def look_of(config: Config) -> Look:
    """The look, from the hub's settings in the shared config file."""
    hub = config.get("JupyterHub", Config())
    return Look(_value(hub, "template_paths", []), _value(hub, "template_vars", {}))


def _value(section: Config, name: str, empty: Any) -> Any:
    """A setting's value, also if it was only appended to or updated: traitlets applies those later."""
    value = section.get(name, empty)
    return value.get_value(empty) if isinstance(value, LazyConfigValue) else value


def _version(path: Path) -> str:
    """A part of the address that changes with the file, so that browsers may cache it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
