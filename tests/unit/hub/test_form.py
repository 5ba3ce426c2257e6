"""The spawn page's form: what is free, what isn't, and nothing unescaped."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.core.image_reference import MAX_CHARS, allow_images
from gpuspawner.core.model import Mode, Tier
from gpuspawner.core.want import Want
from gpuspawner.hub.form import TierCard, make_cards, render_form, with_obstacle
from gpuspawner.hub.options import Filled

CPU = Tier("cpu", "CPU", "No GPU.")
GPU = Tier("gpu", "One GPU", "A whole GPU.", Want(1))
PAIR = Tier("pair", "Two", "", Want(2))


def document(simulated: bool = False, **gpu: Any) -> dict[str, Any]:
    return {
        "simulated": simulated,
        "tiers": [{"name": "gpu", **gpu}, {"name": "pair", "free": 1, "total": 2}],
    }


@pytest.mark.parametrize(
    ("live", "problem", "usable", "about"),
    [
        (document(free=1, total=2, waiting=0), "", True, "A whole GPU. 1 of 2 GPUs free now."),
        (document(True, free=1, total=1), "", True, "A whole GPU. 1 of 1 simulated GPU free now."),
        (
            document(free=0, total=2, waiting=3),
            "",
            True,
            "A whole GPU. 0 of 2 GPUs free now. 3 waiting in line. You will wait in line.",
        ),
        (
            document(free=0, total=0),
            "",
            False,
            "A whole GPU. Needs 1 GPU; this machine has 0 for this tier.",
        ),
        (None, "The broker is down.", False, "A whole GPU. The broker is down."),
        ({}, "", False, "A whole GPU. Not available now."),
        (
            {"tiers": ["junk", {"name": "gpu", "total": "x"}]},
            "",
            False,
            "A whole GPU. Needs 1 GPU; this machine has 0 for this tier.",
        ),
    ],
)
def test_a_gpu_tier_says_what_is_free(live: Any, problem: str, usable: bool, about: str) -> None:
    assert make_cards([CPU, GPU], live, problem) == [
        TierCard(CPU, True, "No GPU."),
        TierCard(GPU, usable, about),
    ]


SLICE = Tier("gpu", "A slice", "", Want(1, mode=Mode.SLICE))
MIG = Tier("gpu", "A MIG instance", "", Want(1, mode=Mode.MIG))
GUARDED = {
    "free": 5, "total": 10, "memory_bytes": 8 << 30, "compute_percent": 25.0, "guarantee": "guarded",
    "compute_guarantee": "guarded",
}  # fmt: skip


@pytest.mark.parametrize(
    ("tier", "live", "about"),
    [
        (
            SLICE,
            document(**GUARDED),
            "8.0 GiB of GPU memory and up to 25 % of the GPU's compute. Guarantee: guarded; a process "
            "that exceeds it is ended within seconds. 5 of 10 slices free now.",
        ),
        (
            SLICE,
            document(**{**GUARDED, "compute_guarantee": "none", "compute_percent": 100.0}),
            "8.0 GiB of GPU memory, guarded. Users share the compute by time-slicing; nothing limits it. "
            "5 of 10 slices free now.",
        ),
        (
            SLICE,
            document(True, **{**GUARDED, "guarantee": "none", "compute_guarantee": "none"}),
            "8.0 GiB of GPU memory and up to 25 % of the GPU's compute. Guarantee: none, it is simulated. "
            "5 of 10 simulated slices free now.",
        ),
        (
            MIG,
            document(free=0, total=7, guarantee="hard"),
            "Guarantee: hard. 0 of 7 MIG instances free now. You will wait in line.",
        ),
        (
            GPU,
            document(True, free=1, total=1, guarantee="none"),
            "A whole GPU. Guarantee: none, it is simulated. 1 of 1 simulated GPU free now.",
        ),
    ],
)
def test_a_tier_says_what_it_is_worth(tier: Tier, live: Any, about: str) -> None:
    assert make_cards([tier], live) == [TierCard(tier, True, about)]


def test_the_first_tier_that_can_start_is_chosen() -> None:
    page = render_form(make_cards([GPU, CPU], None, "Down."))
    assert page == (
        '<fieldset class="gpuspawner-tiers mb-3">\n'
        "<legend>Choose what your server gets</legend>\n"
        '<div class="form-check mb-2">\n'
        '<input class="form-check-input" type="radio" name="profile" id="tier-gpu" value="gpu"\n'
        ' aria-describedby="tier-gpu-about" required disabled>\n'
        '<label class="form-check-label" for="tier-gpu"><strong>One GPU</strong></label>\n'
        '<div class="form-text" id="tier-gpu-about">A whole GPU. Down.</div>\n'
        "</div>\n"
        '<div class="form-check mb-2">\n'
        '<input class="form-check-input" type="radio" name="profile" id="tier-cpu" value="cpu"\n'
        ' aria-describedby="tier-cpu-about" required checked>\n'
        '<label class="form-check-label" for="tier-cpu"><strong>CPU</strong></label>\n'
        '<div class="form-text" id="tier-cpu-about">No GPU.</div>\n'
        "</div>\n"
        "</fieldset>\n"
    )


def test_nothing_to_choose_is_said() -> None:
    assert "No tier is available now." in render_form(make_cards([GPU], None, "Down."))


def test_images_are_offered_where_there_are_several_and_all_is_escaped() -> None:
    card = TierCard(Tier("x", "<b>", ""), True, 'a "quote" & <script>')
    page = render_form([card], allow_images(["one", "<two>"]))
    assert '<option value="&lt;two&gt;">&lt;two&gt;</option>' in page
    assert '<option value="" selected>Default image</option>' in page
    assert "<strong>&lt;b&gt;</strong>" in page
    assert "a &#34;quote&#34; &amp; &lt;script&gt;" in page
    assert "image" not in render_form([card], allow_images(["one"]))


def test_where_patterns_are_allowed_a_name_may_be_typed() -> None:
    card = TierCard(CPU, True, "")
    page = render_form([card], allow_images(["one", "quay.io/jupyter/*:2026-*"]))
    assert '<option value="one">one</option>' in page
    assert 'for="server-image-typed">Or type the name of another image</label>' in page
    assert '<input class="form-control" type="text" name="image_typed"' in page
    assert "Leave empty for the image chosen above. Allowed: quay.io/jupyter/*:2026-*. " in page
    assert "* stands for any characters except /." in page
    page = render_form([card], allow_images("*"))
    assert "<select" not in page
    assert "Leave empty for the default image. Allowed: any.</div>" in page


@pytest.mark.parametrize(
    ("filled", "tier", "listed", "typed"),
    [
        (Filled(), "cpu", "", ""),
        (Filled("pair", "two"), "pair", "two", ""),
        (Filled("pair", 'quay.io/"x'), "pair", "", "quay.io/&#34;x"),
        (Filled("pair", "", 'quay.io/"x'), "pair", "", "quay.io/&#34;x"),
        (Filled("pair", "two", "quay.io/x"), "pair", "two", "quay.io/x"),
        (Filled("pair", "quay.io/lab:1"), "pair", "quay.io/lab:1", ""),  # typed for the last start
        (Filled("gpu"), "cpu", "", ""),  # not usable now
        (Filled("gone", "x" * 5000), "cpu", "", "x" * MAX_CHARS),
    ],
)
def test_what_was_picked_last_is_picked_again_where_it_can_be(
    filled: Filled, tier: str, listed: str, typed: str
) -> None:
    cards = [TierCard(CPU, True, ""), TierCard(GPU, False, ""), TierCard(PAIR, True, "")]
    page = render_form(cards, allow_images(["one", "two", "quay.io/*:*"]), filled)
    checked = re.findall(r'value="(\w+)"\n aria-describedby="[\w-]+" required checked', page)
    assert checked == [tier]
    assert re.findall(r'<option value="([^"]*)" selected', page) == [listed]
    assert re.findall(rf'maxlength="{MAX_CHARS}"\n value="([^"]*)"', page) == [typed]


def test_a_tier_whose_image_is_of_no_use_says_so_before_the_click() -> None:
    card = TierCard(GPU, True, "A whole GPU.")
    assert with_obstacle(card, "", usable=False) == card
    assert with_obstacle(card, "lab needs more.", usable=False) == TierCard(
        GPU, False, "A whole GPU. lab needs more."
    )
    assert with_obstacle(card, "lab needs more.", usable=True) == TierCard(
        GPU, True, "A whole GPU. lab needs more."
    )


def test_the_default_tier_is_picked_where_it_can_start() -> None:
    tiers = (Tier("a", "A"), Tier("b", "B", default=True))
    both = render_form(make_cards(tiers, None))
    assert both.index("checked") > both.index('value="b"')
    shut = [
        card if card.tier.name == "a" else replace(card, usable=False) for card in make_cards(tiers, None)
    ]
    page = render_form(shut)
    assert page.index('value="a"') < page.index("checked") < page.index('value="b"')
