"""Hostile input to a choice: form data, REST body and query string become a known tier, or BadOption.

Pure. Whatever comes in, and however often, nothing but `profile` (a tier's name) and, where the
site allows it, `image` decides anything. Where a site reads the form itself, what it adds comes out as it
came in, for the site's own hooks.
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
"""The form's field for an image's name, beside its list; used if it isn't empty."""
NO_IMAGES = AllowedImages()
_SHOWN_CHARS = 40
_SHOWN_IMAGE_CHARS = 100
_QUERY_PREFIX = "opt-"
_IGNORED = frozenset({"_xsrf"})


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user picked: a tier that exists, and an image if the site lets users choose one."""

    tier: Tier
    image: str | None = None
    image_option: str | None = None
    """The name under which the user chose the image; what is kept for the next start."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Options that the site added itself: nothing here looks at them."""

    def as_options(self) -> dict[str, Any]:
        """The choice as `user_options`; `profile` is always there, for the admin page."""
        options = {**self.others, PROFILE: self.tier.name}
        if self.image_option is not None:
            options[IMAGE] = self.image_option
        return options


@dataclass(frozen=True, slots=True)
class Filled:
    """What stands in the form when it is shown: what its user sent or started last. Nothing is checked."""

    profile: str = ""
    image: str = ""
    """Chosen in the list, or what was stored: then a name that was typed, too."""
    typed: str = ""


def default_tier(tiers: Sequence[Tier]) -> Tier:
    """The tier of who chose none: the one that is the default, else the first."""
    return next((tier for tier in tiers if tier.default), tiers[0])


def parse_options(
    raw: object, tiers: Sequence[Tier], images: AllowedImages = NO_IMAGES, *, others: bool = False
) -> Choice:
    """`user_options` as they arrive by REST, or as stored. Nothing chosen is the default tier.

    `others`: the site adds options of its own, which are kept. Raises BadOption, with a sentence that names
    what can be chosen, for anything else.
    """
    options = {} if raw is None else raw
    if not isinstance(options, Mapping):
        raise BadOption(f"Options must be an object with a 'profile'. {_choices(tiers)}")
    kept = {key: value for key, value in options.items() if key not in (PROFILE, IMAGE)}
    for key in kept:
        if not others or not isinstance(key, str):
            raise _no_option(key, tiers)
    tier = _parse_tier(options[PROFILE], tiers) if PROFILE in options else default_tier(tiers)
    if IMAGE not in options:
        return Choice(tier, others=kept)
    option, image = _parse_image(options[IMAGE], images)
    return Choice(tier, image, option, kept)


def parse_form(raw: object, tiers: Sequence[Tier], images: AllowedImages = NO_IMAGES) -> Choice:
    """Form data or a query: every value is a list of strings. Raises BadOption as `parse_options`.

    An empty image means none chosen; one that was typed goes before the list. A query's keys may carry
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
        options[IMAGE] = typed.strip(" ") if isinstance(typed, str) else typed  # as pasted
    return parse_options(options, tiers, images)


def parse_query(raw: object, tiers: Sequence[Tier], images: AllowedImages = NO_IMAGES) -> Choice:
    """What the address of the spawn page says. Raises BadOption as `parse_form`.

    Parameters of others (`fbclid`, `utm_source`) are none of ours and are let go; one that is spelled almost
    as ours is refused, for its user meant something.
    """
    if not isinstance(raw, Mapping):
        return parse_form(raw, tiers, images)
    ours = {}
    for name, values in _fields(raw):
        if name in (PROFILE, IMAGE, TYPED):
            ours[name] = values
        elif isinstance(name, str) and get_close_matches(name[:_SHOWN_CHARS], (PROFILE, IMAGE), 1, 0.75):
            raise _no_option(name, tiers)
    return parse_form(ours, tiers, images)


def refill(raw: object) -> Filled:
    """What of form data, or of stored options, can be shown in the form again."""
    values = {}
    for name, value in _fields(raw) if isinstance(raw, Mapping) else ():
        first = value[0] if isinstance(value, list) and value else value
        values[name] = first.strip(" ") if isinstance(first, str) else ""
    return Filled(values.get(PROFILE, ""), values.get(IMAGE, ""), values.get(TYPED, ""))


def _fields(raw: Mapping[object, object]) -> Iterator[tuple[object, object]]:
    """Form data with the names that the form's fields have."""
    for key, values in raw.items():
        yield key.removeprefix(_QUERY_PREFIX) if isinstance(key, str) else key, values


def _no_option(key: object, tiers: Sequence[Tier]) -> BadOption:
    return BadOption(
        f"There is no option {_shown(key)}. The options are {PROFILE} and {IMAGE}. {_choices(tiers)}"
    )


def _parse_tier(value: object, tiers: Sequence[Tier]) -> Tier:
    if isinstance(value, str):
        for tier in tiers:
            if tier.name == value:
                return tier
    raise BadOption(f"There is no profile {_shown(value)}. {_choices(tiers)}")


def _parse_image(value: object, images: AllowedImages) -> tuple[str, str]:
    """The name chosen and the image behind it."""
    if not images:
        raise BadOption("An image can't be chosen here: leave it out")
    try:
        return str(value), images.find(value)
    except ValueError as problem:
        if not images.typed:
            raise BadOption(f"There is no image {_shown(value)}: choose {images.offer()}") from None
        raise BadOption(
            f"The image {_shown(value, _SHOWN_IMAGE_CHARS)} {problem}. Choose {images.offer()}."
        ) from None


def _choices(tiers: Sequence[Tier]) -> str:
    return f"Available profiles: {', '.join(tier.name for tier in tiers)}."


def _shown(value: object, most: int = _SHOWN_CHARS) -> str:
    """The value for a sentence: short, printable, and never the whole of something huge."""
    if not isinstance(value, str):
        return f"of type {type(value).__name__}"
    shown = value if len(value) <= most else value[:most] + "…"
    return repr(shown)
