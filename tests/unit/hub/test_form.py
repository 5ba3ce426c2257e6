"""The spawn page's form: one card a tier, nothing unescaped, what was chosen last is chosen again."""

from __future__ import annotations

import re

import pytest
from gpuspawner.core.image_reference import MAX_CHARS, allow_images
from gpuspawner.core.model import Tier
from gpuspawner.core.want import Want
from gpuspawner.hub.cards import Meter, State, TierCard
from gpuspawner.hub.form import Offered, has_choice, render_form
from gpuspawner.hub.options import Filled

CPU = Tier("cpu", "CPU", "No GPU.")
GPU = Tier("gpu", "One GPU", "A whole GPU.", Want(1))
PAIR = Tier("pair", "Two", "", Want(2))
METER = Meter("GPU memory", "8.0 GiB of 80 GiB", 10.0)


def now(tier: Tier) -> TierCard:
    return TierCard(tier, State.NOW, "Free now")


def off(tier: Tier) -> TierCard:
    return TierCard(tier, State.OFF, "Not available", reason="Down.")


def checked(page: str) -> list[str]:
    """The tiers that are preselected."""
    return re.findall(
        r'value="(\w+)"\n aria-labelledby="[\w-]+" aria-describedby="[\w -]+" required checked', page
    )


def test_a_card_is_a_radio_button_with_a_name_and_a_description() -> None:
    card = TierCard(
        GPU, State.WAIT, "Queue", "0 of 2 GPUs free now.", "H100", (METER,), "Hard.", ("It ends at 16:00.",),
        "Your server gets 8 GiB.",
    )  # fmt: skip
    page = render_form(Offered([card]))
    (radio,) = re.findall(r"<input[^>]*>", page)
    assert " ".join(radio.split()) == (
        '<input class="form-check-input flex-shrink-0" type="radio" name="profile" id="tier-gpu" '
        'value="gpu" aria-labelledby="tier-gpu-title" aria-describedby="tier-gpu-badge tier-gpu-about" '
        "required checked>"
    )
    assert '<label class="gpu-tier card mb-3" for="tier-gpu" id="tier-gpu-card" data-state="wait">' in page
    texts = [text.strip() for text in re.findall(r">([^<>]+)<", page) if text.strip()]
    assert texts == [
        "Choose what your server gets", "One GPU", "Queue", "A whole GPU.", "0 of 2 GPUs free now.", "Hard.",
        "It ends at 16:00.", "Your server gets 8 GiB.", "H100", "GPU memory", "8.0 GiB of 80 GiB",
    ]  # fmt: skip
    assert re.findall(r'<rect width="([^"]*)"', page) == ["100%", "10%"]


def test_the_first_tier_that_can_start_is_chosen() -> None:
    page = render_form(Offered([off(GPU), now(CPU)]))
    assert checked(page) == ["cpu"]
    assert re.findall(r'value="(\w+)"[^>]* disabled>', page) == ["gpu"]


def test_nothing_to_choose_is_said() -> None:
    said = re.compile(r'<p class="text-danger" id="gpu-no-tier" data-live( hidden)?>([^<]*)</p>')
    assert said.findall(render_form(Offered([off(GPU)]))) == [("", "No tier is available now.")]
    assert said.findall(render_form(Offered([now(GPU)]))) == [(" hidden", "")]


@pytest.mark.parametrize(
    ("offered", "asks"),
    [
        (Offered([now(GPU)]), False),
        (Offered([now(GPU)], images=allow_images(["lab:1"])), False),
        (Offered([now(GPU)], images=allow_images(["lab:1", "lab:2"])), True),
        (Offered([now(GPU)], images=allow_images(["quay.io/jupyter/*:2026-*"])), True),
        (Offered([now(GPU)], problem="The GPU broker doesn't answer right now."), True),
        (Offered([off(GPU)]), True),
        (Offered([now(GPU), off(PAIR)]), True),
    ],
)
def test_a_form_that_asks_nothing_is_known(offered: Offered, asks: bool) -> None:
    assert has_choice(offered) is asks


def test_what_all_cards_say_is_said_once() -> None:
    cards = [
        TierCard(CPU, State.NOW, "Starts at once", limits="Your server gets 8 GiB."),
        TierCard(
            GPU, State.NOW, "Free now", guarantee="Simulated.", notes=("Ends at 16:00.", "Costs 1."),
            limits="Your server gets 8 GiB.",
        ),
        TierCard(
            PAIR, State.WAIT, "Queue", guarantee="Simulated.", notes=("Ends at 16:00.", "Costs 2."),
            limits="Your server gets 8 GiB.",
        ),
    ]  # fmt: skip
    page = render_form(Offered(cards))
    counts = {text: page.count(text) for text in ("Simulated.", "Ends at", "Costs", "Your server gets")}
    assert counts == {"Simulated.": 1, "Ends at": 1, "Costs": 2, "Your server gets": 1}
    assert re.findall(r"<li>([^<]*)</li>", page) == [
        "Simulated.",
        "With a GPU: Ends at 16:00.",
        "Your server gets 8 GiB.",
    ]


def test_what_is_so_without_a_gpu_too_is_not_said_of_gpus() -> None:
    cards = [
        TierCard(tier, State.NOW, "Free now", notes=("Its image isn't here.",)) for tier in (CPU, GPU, PAIR)
    ]
    page = render_form(Offered(cards))
    assert re.findall(r"<li>([^<]*)</li>", page) == ["Its image isn&#39;t here."]
    assert page.count("Its image") == 1


def test_the_quota_and_the_server_stand_above_the_tiers() -> None:
    page = render_form(Offered([now(CPU)], (Meter("GPU-hours", "7.5 of 10 left", 75.0),)), server="<train>")
    order = ("<bdi>&lt;train&gt;</bdi>", "7.5 of 10 left", "<fieldset")
    assert sorted(order, key=page.index) == list(order)
    assert '<div id="gpu-quota" data-live hidden>' in render_form(Offered([now(CPU)]))


def test_images_are_offered_where_there_are_several_and_all_is_escaped() -> None:
    hostile = Tier("x", "<b>\u202e", "<script>")
    card = TierCard(
        hostile, State.NOW, '"quote"', "a & b", "<i>", (Meter("<u>", "<s>", 1.0),), "<g>", ("<n>",)
    )
    notes = {"<two>": "<pulled>"}
    page = render_form(
        Offered([card], (METER,), allow_images(["one", "<two>"]), "<down>", notes), server="<x>"
    )
    assert '<option value="&lt;two&gt;">&lt;two&gt; (&lt;pulled&gt;)</option>' in page
    assert '<option value="" selected>Default image</option>' in page
    ours = "div|section|span|svg|rect|fieldset|legend|p|label|input|strong|bdi|ul|li|select|option"
    known = rf"</?({ours})\b[^<>]*>"
    assert [tag for tag in re.findall(r"<[^>]*>", page) if not re.fullmatch(known, tag)] == []
    assert "server-image" not in render_form(Offered([card], images=allow_images(["one"])))


def test_where_patterns_are_allowed_a_name_may_be_typed() -> None:
    page = render_form(Offered([now(CPU)], images=allow_images(["one", "quay.io/jupyter/*:2026-*"])))
    assert '<option value="one">one</option>' in page
    assert 'for="server-image-typed">Or type the name of another image</label>' in page
    assert '<input class="form-control" type="text" name="image_typed"' in page
    assert "Leave empty for the image chosen in the list. Allowed, with any characters except / for" in page
    assert "for each *: quay.io/jupyter/*:2026-*</div>" in page
    page = render_form(Offered([now(CPU)], images=allow_images("*")))
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
    offered = Offered([now(CPU), off(GPU), now(PAIR)], images=allow_images(["one", "two", "quay.io/*:*"]))
    page = render_form(offered, filled)
    assert checked(page) == [tier]
    assert re.findall(r'<option value="([^"]*)" selected', page) == [listed]
    assert re.findall(rf'maxlength="{MAX_CHARS}"\n value="([^"]*)"', page) == [typed]


def test_the_default_tier_is_picked_where_it_can_start() -> None:
    first, second = Tier("a", "A"), Tier("b", "B", default=True)
    assert checked(render_form(Offered([now(first), now(second)]))) == ["b"]
    assert checked(render_form(Offered([now(first), off(second)]))) == ["a"]
