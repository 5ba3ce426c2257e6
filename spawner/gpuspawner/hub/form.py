"""The spawn page's form: tiers as radio buttons, with what is free now. Pure: values in, HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..core.image_reference import MAX_CHARS, AllowedImages
from ..core.model import Guarantee, Mode, Tier
from ..core.units import format_bytes
from .options import NO_IMAGES, Filled

_NOUNS = {Mode.WHOLE: "GPU", Mode.SLICE: "slice", Mode.MIG: "MIG instance", Mode.TURNS: "turn"}
_GUARANTEES = {
    Guarantee.HARD: "hard",
    Guarantee.GUARDED: "guarded, whatever goes over it is ended within seconds",
    Guarantee.NONE: "none, it is simulated",
}

_NOTHING = Filled()

_FORM = """\
<fieldset class="gpuspawner-tiers mb-3">
<legend>What should the server have?</legend>
{note}{tiers}
</fieldset>
{images}"""

_TIER = """\
<div class="form-check mb-2">
<input class="form-check-input" type="radio" name="profile" id="tier-{name}" value="{name}"
 aria-describedby="tier-{name}-about" required{checked}{disabled}>
<label class="form-check-label" for="tier-{name}"><strong>{title}</strong></label>
<div class="form-text" id="tier-{name}-about">{about}</div>
</div>"""

_IMAGES = """\
<div class="mb-3">
<label class="form-label" for="server-image">Image</label>
<select class="form-select" name="image" id="server-image">
{options}
</select>
</div>
"""

_TYPED = """\
<div class="mb-3">
<label class="form-label" for="server-image-typed">{label}</label>
<input class="form-control" type="text" name="image_typed" id="server-image-typed" maxlength="{most}"
 value="{value}" autocomplete="off" autocapitalize="none" spellcheck="false"
 aria-describedby="server-image-about">
<div class="form-text" id="server-image-about">{about}</div>
</div>
"""


@dataclass(frozen=True, slots=True)
class TierCard:
    """One tier as the form shows it."""

    tier: Tier
    usable: bool
    about: str


def make_cards(
    tiers: Sequence[Tier], document: Mapping[str, Any] | None, problem: str = ""
) -> list[TierCard]:
    """The tiers with the broker's `GET /tiers` document; None if the broker couldn't be asked.

    `problem` is then the sentence shown at every tier with a GPU.
    """
    listed = (document or {}).get("tiers") or ()
    known = {str(item.get("name")): item for item in listed if isinstance(item, Mapping)}
    simulated = bool((document or {}).get("simulated"))
    return [_make_card(tier, known.get(tier.name), simulated, problem) for tier in tiers]


def hinder(card: TierCard, why: str, *, usable: bool) -> TierCard:
    """The card with why its image is of no use; still `usable` where another image can be chosen."""
    if not why:
        return card
    return TierCard(card.tier, card.usable and usable, _sentences(card.about, why))


def _make_card(tier: Tier, live: Mapping[str, Any] | None, simulated: bool, problem: str) -> TierCard:
    if not tier.needs_gpu:
        return TierCard(tier, True, tier.description)
    if live is None:
        return TierCard(tier, False, _sentences(tier.description, problem or "Not available now."))
    kind = f"simulated {_NOUNS[tier.want.mode]}" if simulated else _NOUNS[tier.want.mode]
    total, free, wanted = live.get("total"), live.get("free"), tier.want.device_count
    if not isinstance(total, int) or total < wanted:
        missing = f"This machine can't give {wanted} {kind}{_s(wanted)} of that kind."
        return TierCard(tier, False, _sentences(tier.description, missing))
    count = f"{free if isinstance(free, int) else 0} of {total} {kind}{_s(total)} free now."
    waiting = live.get("waiting")
    ahead = waiting if isinstance(waiting, int) and waiting > 0 else 0
    line = f"{ahead} waiting in line." if ahead else ""
    if ahead or not isinstance(free, int) or free < wanted:
        line = _sentences(line, "You will wait in line.")
    return TierCard(tier, True, _sentences(tier.description, _worth(tier, live), count, line))


def _worth(tier: Tier, live: Mapping[str, Any]) -> str:
    """What the tier's quota is worth, in words; empty if the broker didn't say."""
    guarantee, size = live.get("guarantee"), live.get("memory_bytes")
    if guarantee not in _GUARANTEES:
        return ""
    if tier.want.mode is not Mode.SLICE:
        return f"Guarantee: {_GUARANTEES[guarantee]}."
    memory = f"{format_bytes(size)} of GPU memory" if isinstance(size, int) else "GPU memory"
    percent, simulated = live.get("compute_percent"), guarantee == Guarantee.NONE
    unlimited = live.get("compute_guarantee") == Guarantee.NONE and not simulated
    if unlimited or not isinstance(percent, int | float):
        return f"{memory}, guarded. Compute is shared in turns, nothing limits it."
    return f"{memory} and up to {percent:g} % of the GPU's compute. Guarantee: {_GUARANTEES[guarantee]}."


def render_form(
    cards: Sequence[TierCard], images: AllowedImages = NO_IMAGES, filled: Filled = _NOTHING
) -> str:
    """The form's inside; JupyterHub puts `<form>` and the button round it. Everything is escaped.

    Of `filled` is picked what can still be picked; else the default tier, or the first that can start, and its
    own image.
    """
    usable = [card.tier.name for card in cards if card.usable]
    first = next((card.tier.name for card in cards if card.usable and card.tier.default), None)
    picked = filled.profile if filled.profile in usable else first or next(iter(usable), None)
    tiers = "\n".join(_render_card(card, card.tier.name == picked) for card in cards)
    note = "" if usable else '<p class="text-danger">No choice can start now.</p>\n'
    return _FORM.format(tiers=tiers, note=note, images=_render_images(images, filled))


def _render_card(card: TierCard, checked: bool) -> str:
    return _TIER.format(
        name=escape(card.tier.name),
        title=escape(card.tier.title),
        about=escape(card.about),
        checked=" checked" if checked else "",
        disabled="" if card.usable else " disabled",
    )


def _render_images(images: AllowedImages, filled: Filled) -> str:
    """A list if there is something to choose in it, and a field where a name may be typed.

    The field goes before the list. So a name that was typed for the last start is in the list, if there is
    one: in the field it would be started again whatever is chosen in the list now.
    """
    names = list(images.listed)
    parts, typed = [], filled.typed or filled.image
    if len(names) > 1 or (names and images.typed):
        if filled.image not in names and _is_allowed(filled.image, images):
            names.append(filled.image)
        listed = filled.image if filled.image in names else ""
        typed = filled.typed if listed else typed
        choices = [("", "The usual one"), *((name, name) for name in names)]
        options = "\n".join(_render_option(*choice, listed) for choice in choices)
        parts.append(_IMAGES.format(options=options))
    if images.typed:
        label = "Or another image, by its name" if parts else "Image, by its name"
        kinds = "any" if images.any else ", ".join(pattern.text for pattern in images.patterns)
        about = f"Left empty: {'what is chosen above' if parts else 'the usual one'}. Allowed: {kinds}."
        if not images.any:
            about += " * stands for any characters but /."
        value = escape(typed[:MAX_CHARS])
        parts.append(_TYPED.format(label=label, about=escape(about), most=MAX_CHARS, value=value))
    return "".join(parts)


def _is_allowed(option: str, images: AllowedImages) -> bool:
    try:
        images.find(option)
    except ValueError:
        return False
    return True


def _render_option(value: str, label: str, picked: str) -> str:
    selected = " selected" if value == picked else ""
    return f'<option value="{escape(value)}"{selected}>{escape(label)}</option>'


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
