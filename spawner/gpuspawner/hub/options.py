"""Converts untrusted form data, REST bodies and query strings to a valid choice, or raises BadOption.

Pure. Only `profile` (a tier's name) and, if the site allows it, `image` have an effect. If a site reads
the form itself, its additional options are returned unchanged, for the site's own hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..core.errors import BadOption
from ..core.image_reference import AllowedImages
from ..core.model import Tier

PROFILE = "profile"
"""Key of the tier in `user_options`: what JupyterHub's admin page shows as "Profile"."""
IMAGE = "image"
TYPED = "image_typed"
"""The form's text field for an image's name; if it isn't empty, it overrides the list."""
NO_IMAGES = AllowedImages()
_SHOWN_CHARS = 40
_SHOWN_IMAGE_CHARS = 100
_QUERY_PREFIX = "opt-"
_IGNORED = frozenset({"_xsrf"})


@dataclass(frozen=True, slots=True)
class Choice:
    """A user's choice: an existing tier, and an image if the site lets users choose one."""

    tier: Tier
    image: str | None = None
    image_option: str | None = None
    """The name by which the user chose the image; it is stored for the next start."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Options that the site added itself; this module doesn't check them."""

    def as_options(self) -> dict[str, Any]:
        """The choice as `user_options`; `profile` is always there, for the admin page."""
        options = {**self.others, PROFILE: self.tier.name}
        if self.image_option is not None:
            options[IMAGE] = self.image_option
        return options


@dataclass(frozen=True, slots=True)
class Filled:
    """The values shown in the form: those that the user sent or started last. They are not checked."""

    profile: str = ""
    image: str = ""
    """The image chosen in the list, or stored; a stored one may have been typed."""
    typed: str = ""


def default_tier(tiers: Sequence[Tier]) -> Tier:
    """The tier if none was chosen: the default one, else the first."""
    return next((tier for tier in tiers if tier.default), tiers[0])


def parse_options(
    raw: object, tiers: Sequence[Tier], images: AllowedImages = NO_IMAGES, *, others: bool = False
) -> Choice:
    """Parses `user_options` from REST or the database. Without a choice, it returns the default tier.

    `others`: keep unknown options, because the site adds its own. Raises BadOption, with a sentence that
    names the valid choices, for anything else.
    """
    options = {} if raw is None else raw
    if not isinstance(options, Mapping):
        raise BadOption(f"Options must be an object with a 'profile'. {_choices(tiers)}")
    kept = {key: value for key, value in options.items() if key not in (PROFILE, IMAGE)}
    for key in kept:
        if not others or not isinstance(key, str):
            raise _no_option(key, tiers, images)
    tier = _parse_tier(options[PROFILE], tiers) if PROFILE in options else default_tier(tiers)
    if IMAGE not in options:
        return Choice(tier, others=kept)
    option, image = _parse_image(options[IMAGE], images)
    return Choice(tier, image, option, kept)


def parse_form(raw: object, tiers: Sequence[Tier], images: AllowedImages = NO_IMAGES) -> Choice:
    """Parses form data or a query: every value is a list of strings. Raises BadOption like `parse_options`.

    An empty image means that none was chosen; a typed one overrides the list. A query's keys may have
    the hub's `opt-` prefix.
    """
    if not isinstance(raw, Mapping):
        raise BadOption(f"The form can't be read. {_choices(tiers)}")
    options: dict[object, object] = {}
    for name, values in _fields(raw):
        if name in _IGNORED:
            continue
        if not isinstance(values, list) or len(values) != 1:
            raise BadOption(f"Give {_shown(name)} once. {_choices(tiers)}")
        if name in (IMAGE, TYPED) and values[0] == "":
            continue
        options[name] = values[0]
    if TYPED in options:
        typed = options.pop(TYPED)
        options[IMAGE] = typed.strip(" ") if isinstance(typed, str) else typed  # pasted text may have spaces
    return parse_options(options, tiers, images)


def parse_query(raw: object, tiers: Sequence[Tier], images: AllowedImages = NO_IMAGES) -> Choice:
    """Parses the query of the spawn page's address. Raises BadOption like `parse_form`.

    Unknown parameters (`fbclid`, `utm_source`) are ignored. A parameter that is spelled almost like one of
    ours is refused, because the user probably meant ours.
    """
    if not isinstance(raw, Mapping):
        return parse_form(raw, tiers, images)
    ours = {}
    for name, values in _fields(raw):
        if name in (PROFILE, IMAGE, TYPED):
            ours[name] = values
        elif isinstance(name, str) and get_close_matches(name[:_SHOWN_CHARS], (PROFILE, IMAGE), 1, 0.75):
            raise _no_option(name, tiers, images)
    return parse_form(ours, tiers, images)


def refill(raw: object) -> Filled:
    """The values of form data, or of stored options, that the form can show again."""
    values = {}
    for name, value in _fields(raw) if isinstance(raw, Mapping) else ():
        first = value[0] if isinstance(value, list) and value else value
        values[name] = first.strip(" ") if isinstance(first, str) else ""
    return Filled(values.get(PROFILE, ""), values.get(IMAGE, ""), values.get(TYPED, ""))


def _fields(raw: Mapping[object, object]) -> Iterator[tuple[object, object]]:
    """Form data, limited to the form's own fields."""
    for key, values in raw.items():
        yield key.removeprefix(_QUERY_PREFIX) if isinstance(key, str) else key, values


def _no_option(key: object, tiers: Sequence[Tier], images: AllowedImages) -> BadOption:
    options = f"The options are {PROFILE} and {IMAGE}." if images else f"The only option is {PROFILE}."
    return BadOption(f"There is no option {_shown(key)}. {options} {_choices(tiers)}")


def _parse_tier(value: object, tiers: Sequence[Tier]) -> Tier:
    if not isinstance(value, str):
        raise BadOption(f"The option {PROFILE} is a text: the name of a tier. {_choices(tiers)}")
    for tier in tiers:
        if tier.name == value:
            return tier
    raise BadOption(f"There is no tier {_shown(value)}. {_choices(tiers)}")


def _parse_image(value: object, images: AllowedImages) -> tuple[str, str]:
    """The name chosen and the image behind it."""
    if not images:
        raise BadOption("An image can't be chosen here: remove the image option")
    try:
        return str(value), images.find(value)
    except ValueError as problem:
        if not images.typed:
            raise BadOption(f"There is no image {_shown(value)}: choose {images.offer()}") from None
        raise BadOption(
            f"The image {_shown(value, _SHOWN_IMAGE_CHARS)} {problem}. Choose {images.offer()}."
        ) from None


def _choices(tiers: Sequence[Tier]) -> str:
    return f"Available tiers: {', '.join(tier.name for tier in tiers)}."


def _shown(value: object, most: int = _SHOWN_CHARS) -> str:
    """The value for a sentence: printable, and shortened if it is long."""
    if not isinstance(value, str):
        return f"of type {type(value).__name__}"
    shown = value if len(value) <= most else value[:most] + "…"
    return repr(shown)
