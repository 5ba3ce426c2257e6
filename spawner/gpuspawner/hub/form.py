"""Renders the spawn page's form: tiers as radio buttons, with what is free now.

The HTML is in `templates/`, and Jinja escapes all values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..core.errors import Refusal
from ..core.image_reference import MAX_CHARS, AllowedImages
from ..core.model import Guarantee, Mode, Tier
from ..core.units import format_bytes
from .options import NO_IMAGES, Filled

_TEMPLATES = Path(__file__).with_name("templates")
_NOUNS = {Mode.WHOLE: "GPU", Mode.SLICE: "slice", Mode.MIG: "MIG instance", Mode.TURNS: "turn"}
_GUARANTEES = {
    Guarantee.HARD: "hard",
    Guarantee.GUARDED: "guarded; a process that exceeds it is ended within seconds",
    Guarantee.NONE: "none, it is simulated",
}

_NOTHING = Filled()


@dataclass(frozen=True, slots=True)
class TierCard:
    """One tier, as the form shows it."""

    tier: Tier
    usable: bool
    about: str


def make_cards(
    tiers: Sequence[Tier], document: Mapping[str, Any] | None, problem: str = ""
) -> list[TierCard]:
    """The tiers with the broker's `GET /tiers` document (None if the broker couldn't be reached).

    `problem` is then shown at every tier with a GPU.
    """
    listed = (document or {}).get("tiers") or ()
    known = {str(item.get("name")): item for item in listed if isinstance(item, Mapping)}
    simulated = bool((document or {}).get("simulated"))
    return [_make_card(tier, known.get(tier.name), simulated, problem) for tier in tiers]


def with_obstacle(card: TierCard, why: str, *, usable: bool) -> TierCard:
    """The card with the reason why its image can't work; it stays `usable` if another image can be chosen."""
    if not why:
        return card
    return TierCard(card.tier, card.usable and usable, _sentences(card.about, why))


def with_refusal(card: TierCard, refusal: Refusal | None) -> TierCard:
    """The card with why this user may not have the tier now: it can't be chosen."""
    if refusal is None:
        return card
    return TierCard(card.tier, False, _sentences(card.tier.description, refusal.message))


def _make_card(tier: Tier, live: Mapping[str, Any] | None, simulated: bool, problem: str) -> TierCard:
    if not tier.needs_gpu:
        return TierCard(tier, True, tier.description)
    if live is None:
        return TierCard(tier, False, _sentences(tier.description, problem or "Not available now."))
    kind = f"simulated {_NOUNS[tier.want.mode]}" if simulated else _NOUNS[tier.want.mode]
    total, free, wanted = live.get("total"), live.get("free"), tier.want.device_count
    if not isinstance(total, int) or total < wanted:
        present = total if isinstance(total, int) else 0
        missing = f"Needs {wanted} {kind}{_s(wanted)}; this machine has {present} for this tier."
        return TierCard(tier, False, _sentences(tier.description, missing))
    count = f"{free if isinstance(free, int) else 0} of {total} {kind}{_s(total)} free now."
    waiting = live.get("waiting")
    ahead = waiting if isinstance(waiting, int) and waiting > 0 else 0
    line = f"{ahead} waiting in line." if ahead else ""
    if ahead or not isinstance(free, int) or free < wanted:
        line = _sentences(line, "You will wait in line.")
    return TierCard(tier, True, _sentences(tier.description, _worth(tier, live), count, line))


def _worth(tier: Tier, live: Mapping[str, Any]) -> str:
    """How the tier's quota is enforced, as a sentence; empty if the broker didn't say."""
    guarantee, size = live.get("guarantee"), live.get("memory_bytes")
    if guarantee not in _GUARANTEES:
        return ""
    if tier.want.mode is not Mode.SLICE:
        return f"Guarantee: {_GUARANTEES[guarantee]}."
    memory = f"{format_bytes(size)} of GPU memory" if isinstance(size, int) else "GPU memory"
    percent, simulated = live.get("compute_percent"), guarantee == Guarantee.NONE
    unlimited = live.get("compute_guarantee") == Guarantee.NONE and not simulated
    if unlimited or not isinstance(percent, int | float):
        return f"{memory}, guarded. Users share the compute by time-slicing; nothing limits it."
    return f"{memory} and up to {percent:g} % of the GPU's compute. Guarantee: {_GUARANTEES[guarantee]}."


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


def render_form(
    cards: Sequence[TierCard], images: AllowedImages = NO_IMAGES, filled: Filled = _NOTHING
) -> str:
    """The form's content; JupyterHub adds `<form>` and the button.

    The values of `filled` are preselected if they can still be chosen; else the default tier, or the first
    that can start, and its own image.
    """
    usable = [card.tier.name for card in cards if card.usable]
    first = next((card.tier.name for card in cards if card.usable and card.tier.default), None)
    picked = filled.profile if filled.profile in usable else first or next(iter(usable), None)
    return _render(
        "form.html", cards=cards, picked=picked, images=image_fields(images, filled), max_chars=MAX_CHARS
    )


def render_unusable(sentence: str) -> str:
    """Shown instead of the form if the hub's settings are invalid."""
    return _render("unusable.html", sentence=sentence)


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
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
