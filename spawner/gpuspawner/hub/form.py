"""Renders the spawn page's form: a card for each tier, the user's quota, the image.

The HTML is in `templates/`, and Jinja escapes all values. The words are those of `cards`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..core.image_reference import MAX_CHARS, AllowedImages
from ..core.text import isolated, plain
from .cards import Meter, TierCard
from .options import NO_IMAGES, Filled

_TEMPLATES = Path(__file__).with_name("templates")
_NOTHING = Filled()


@dataclass(frozen=True, slots=True)
class Offered:
    """All that the form offers: the cards, the user's quota, the images, and what is said of an image."""

    cards: Sequence[TierCard]
    quota: tuple[Meter, ...] = ()
    images: AllowedImages = NO_IMAGES
    problem: str = ""
    """Why no GPU can be chosen now; "" if that isn't so."""
    image_notes: Mapping[str, str] = field(default_factory=dict)
    """By the name in the list of images: what is said of those that aren't on this machine."""


@dataclass(frozen=True, slots=True)
class ImageFields:
    """How the form lets users choose an image: a list, and a field to type a name in; both are optional."""

    listed: tuple[str, ...] = ()
    picked: str = ""
    """The entry of the list that is selected; empty for the default image."""
    allowed: str = ""
    """Which names may be typed, as text; empty if there is no field."""
    typed: str = ""
    has_patterns: bool = False


def render_form(offered: Offered, filled: Filled = _NOTHING, server: str = "") -> str:
    """The form's content; JupyterHub adds `<form>` and the button. `server`: the name of a named server.

    The values of `filled` are preselected if they can still be chosen; else the default tier, or the first
    that can start, and its own image.
    """
    cards, said = _said_once(offered.cards)
    usable = [card.tier.name for card in cards if card.usable]
    first = next((card.tier.name for card in cards if card.usable and card.tier.default), None)
    picked = filled.profile if filled.profile in usable else first or next(iter(usable), None)
    return render(
        "form.html",
        cards=cards,
        picked=picked,
        server=server,
        said=said,
        quota=offered.quota,
        problem=offered.problem,
        images=image_fields(offered.images, filled),
        image_notes=offered.image_notes,
        max_chars=MAX_CHARS,
    )


def has_choice(offered: Offered) -> bool:
    """Whether the form asks anything: with one tier that can start, and no image to choose, it doesn't."""
    images = image_fields(offered.images, _NOTHING)
    one = len(offered.cards) == 1 and offered.cards[0].usable and not offered.problem
    return not one or bool(images.listed or images.allowed)


def _said_once(cards: Sequence[TierCard]) -> tuple[list[TierCard], list[str]]:
    """The cards without the sentences that all of them share, and these sentences.

    About GPUs, only the cards of tiers with a GPU count, and of their notes those that can be chosen.
    """
    said: list[str] = []
    shared: list[str] = []
    gpus = [card for card in cards if card.guarantee]
    if len(gpus) > 1 and len({card.guarantee for card in gpus}) == 1:
        said.append(gpus[0].guarantee)
    usable = [card for card in cards if card.usable and card.tier.needs_gpu]
    if len(usable) > 1:
        shared = [note for note in usable[0].notes if all(note in card.notes for card in usable)]
        others = [card for card in cards if not card.tier.needs_gpu]
        said += [
            note if all(note in card.notes for card in others) else f"With a GPU: {note}" for note in shared
        ]
    if len(cards) > 1 and len({card.limits for card in cards}) == 1:
        said.append(cards[0].limits)
    said = [each for each in said if each]
    return [card.without((*said, *shared)) for card in cards], said


def render_unusable(sentence: str) -> str:
    """Shown instead of the form if the hub's settings are invalid."""
    return render("unusable.html", sentence=sentence)


def image_fields(images: AllowedImages, filled: Filled) -> ImageFields:
    """A list if there is more than one image to choose, and a field if a name may be typed.

    The field overrides the list. So a name that was typed for the last start is shown in the list, if there
    is one: in the field it would override whatever the user chooses in the list now.
    """
    names, picked, typed = list(images.listed), "", filled.typed or filled.image
    if len(names) > 1 or (names and images.typed):
        if filled.image not in names and _is_allowed(filled.image, images):
            names.append(filled.image)
        picked = filled.image if filled.image in names else ""
        typed = filled.typed if picked else typed
    else:
        names = []
    if not images.typed:
        return ImageFields(tuple(names), picked)
    allowed = "any" if images.any else ", ".join(pattern.text for pattern in images.patterns)
    return ImageFields(tuple(names), picked, allowed, typed[:MAX_CHARS], has_patterns=not images.any)


def _is_allowed(option: str, images: AllowedImages) -> bool:
    try:
        images.find(option)
    except ValueError:
        return False
    return True


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {"plain": plain, "isolated": isolated}
    return made


def render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
