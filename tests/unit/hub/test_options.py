"""Hostile input becomes a known tier or BadOption, and never anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gpuspawner.core.errors import BadOption
from gpuspawner.core.image_reference import allow_images
from gpuspawner.core.model import Tier
from gpuspawner.core.want import Want
from gpuspawner.hub.options import (
    NO_IMAGES,
    Choice,
    Filled,
    default_tier,
    parse_form,
    parse_options,
    parse_query,
    refill,
)
from hypothesis import given
from hypothesis import strategies as st

CPU = Tier("cpu", "CPU")
GPU = Tier("gpu", "One GPU", want=Want(1))
TIERS = (CPU, GPU)
IMAGES = allow_images({"usual": "lab:1", "other": "lab:2"})
PATTERNS = allow_images({"usual": "lab:1", "stacks": "quay.io/jupyter/*:2026-*"})
ANY = allow_images("*")

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = (
    st.sampled_from(["profile", "image", "image_typed", "opt-profile", "_xsrf", "privileged"])
    | st.text()
    | st.integers()
)
values = st.sampled_from(["cpu", "gpu", "usual", "*", "", "quay.io/jupyter/a:2026-1"]) | junk
options = junk | st.dictionaries(keys, values, max_size=4)
forms = junk | st.dictionaries(keys, st.lists(values, max_size=3) | junk, max_size=4)
images = st.sampled_from([NO_IMAGES, IMAGES, PATTERNS, ANY])


@given(options, images)
def test_options_are_a_choice_or_refused(raw: Any, allowed: Any) -> None:
    choice = outcome(parse_options, raw, allowed)
    if choice is not None:
        assert parse_options(choice.as_options(), TIERS, allowed) == choice


@given(forms, images)
def test_a_form_is_a_choice_or_refused(raw: Any, allowed: Any) -> None:
    outcome(parse_form, raw, allowed)


@given(options | forms)
def test_anything_can_be_shown_in_the_form_again(raw: Any) -> None:
    filled = refill(raw)
    assert isinstance(filled.profile, str)
    assert isinstance(filled.image, str)
    assert isinstance(filled.typed, str)


@pytest.mark.parametrize(
    ("raw", "filled"),
    [
        (None, Filled()),
        ({"profile": "gpu"}, Filled("gpu")),
        ({"profile": "gpu", "image": "usual"}, Filled("gpu", "usual")),
        (
            {"profile": ["gpu"], "image": ["usual"], "image_typed": [" lab:3 "]},
            Filled("gpu", "usual", "lab:3"),
        ),
        ({"opt-profile": ["gpu"], "opt-image": ["usual"], "opt-image_typed": [""]}, Filled("gpu", "usual")),
        ({"profile": [["gpu"]], "image": 3, "image_typed": []}, Filled()),
    ],
)
def test_what_was_sent_or_stored_is_shown_again(raw: Any, filled: Filled) -> None:
    assert refill(raw) == filled


def outcome(parse: Callable[[Any, Any, Any], Choice], raw: Any, allowed: Any) -> Choice | None:
    """Only what the site offers comes out; None if it was refused, in a sentence of a sensible length."""
    message = ""
    try:
        choice = parse(raw, TIERS, allowed)
    except BadOption as refusal:
        message = refusal.message
    if message:
        assert len(message) < 1500
        return None
    assert choice.tier in TIERS
    assert (choice.image is None) == (choice.image_option is None)
    if choice.image is not None:
        assert choice.image in allowed.listed.values() or allowed.typed
    return choice


OPTIONS = "The options are profile and image. Available tiers: cpu, gpu."


@pytest.mark.parametrize(
    ("raw", "choice"),
    [
        (None, Choice(CPU)),
        ({}, Choice(CPU)),
        ({"profile": "gpu"}, Choice(GPU)),
        ({"profile": "gpu", "image": "other"}, Choice(GPU, "lab:2", "other")),
    ],
)
def test_what_can_be_chosen(raw: Any, choice: Choice) -> None:
    assert parse_options(raw, TIERS, IMAGES) == choice


def test_one_choice_by_all_ways() -> None:
    typed = "quay.io/jupyter/scipy-notebook:2026-11-02"
    choice = Choice(CPU, typed, typed)
    assert parse_options({"image": typed}, TIERS, PATTERNS) == choice  # REST, and as stored
    assert parse_options(choice.as_options(), TIERS, PATTERNS) == choice
    for form in (
        {"image": [typed]},
        {"image": ["usual"], "image_typed": [f" {typed} "]},
        {"opt-image": [typed]},
    ):
        assert parse_form({"profile": ["cpu"], **form}, TIERS, PATTERNS) == choice
    assert parse_form({"image": ["usual"], "image_typed": [""]}, TIERS, PATTERNS).image == "lab:1"
    assert parse_options({"image": "lab:1"}, TIERS, ANY).image == "docker.io/library/lab:1"


@pytest.mark.parametrize(
    ("raw", "choice"),
    [
        ({}, Choice(CPU)),
        ({"profile": ["gpu"], "image": [""], "_xsrf": ["2|ab"]}, Choice(GPU)),
        ({"opt-profile": ["gpu"], "opt-image": ["other"]}, Choice(GPU, "lab:2", "other")),
    ],
)
def test_what_a_form_can_choose(raw: Any, choice: Choice) -> None:
    assert parse_form(raw, TIERS, IMAGES) == choice


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([], "Options must be an object with a 'profile'. Available tiers: cpu, gpu."),
        ({"profile": "tpu"}, "There is no tier 'tpu'. Available tiers: cpu, gpu."),
        ({"profile": True}, "The option profile is a text: the name of a tier. Available tiers: cpu, gpu."),
        (
            {"profile": ["gpu"]},
            "The option profile is a text: the name of a tier. Available tiers: cpu, gpu.",
        ),
        ({"profile": "y" * 10**6}, f"There is no tier '{'y' * 40}…'. Available tiers: cpu, gpu."),
        ({"profile": "a\x1b\ud800"}, "There is no tier 'a\\x1b\\ud800'. Available tiers: cpu, gpu."),
        (
            {"devices": []},
            f"There is no option 'devices'. {OPTIONS}",
        ),
        (
            {7: []},
            f"There is no option of type int. {OPTIONS}",
        ),
        ({"image": "lab:2"}, "There is no image 'lab:2': choose usual or other"),
        ({"image": {"a": 1}}, "There is no image of type dict: choose usual or other"),
    ],
)
def test_a_refusal_says_what_can_be_chosen(raw: Any, sentence: str) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_options(raw, TIERS, IMAGES)
    assert refusal.value.message == sentence


@pytest.mark.parametrize("parse", [parse_options, parse_form])
def test_where_no_image_can_be_chosen_none_is_named(parse: Callable[..., Choice]) -> None:
    with pytest.raises(BadOption) as refusal:
        parse({"tier": ["gpu"]}, TIERS)
    assert refusal.value.message == (
        "There is no option 'tier'. The only option is profile. Available tiers: cpu, gpu."
    )


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("profile=gpu", "The form can't be read. Available tiers: cpu, gpu."),
        ({"profile": "gpu"}, "Give 'profile' once. Available tiers: cpu, gpu."),
        ({"profile": ["cpu", "gpu"]}, "Give 'profile' once. Available tiers: cpu, gpu."),
        ({"profile": []}, "Give 'profile' once. Available tiers: cpu, gpu."),
        ({"profile": [""]}, "There is no tier ''. Available tiers: cpu, gpu."),
        (
            {"key_file": [{"body": b"x"}]},
            f"There is no option 'key_file'. {OPTIONS}",
        ),
    ],
)
def test_a_form_is_refused_with_the_same_sentences(raw: Any, sentence: str) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_form(raw, TIERS, IMAGES)
    assert refusal.value.message == sentence


ANY_OFFER = "Choose any image by its name, like quay.io/jupyter/scipy-notebook:2026-11-02."
OFFER = "Choose usual or one like quay.io/jupyter/*:2026-*."


@pytest.mark.parametrize(
    ("allowed", "value", "sentence"),
    [
        (NO_IMAGES, "lab:1", "An image can't be chosen here: remove the image option"),
        (
            ANY,
            ["lab:1"],
            f"The image of type list can't be used: it is not the name of an image. {ANY_OFFER}",
        ),
        (
            ANY,
            "z" * 601,
            f"The image '{'z' * 100}…' can't be used: it is not the name of an image. {ANY_OFFER}",
        ),
        (
            PATTERNS,
            "evil",
            f"The image 'evil' isn't allowed here: it has neither a tag nor a digest. {OFFER}",
        ),
        (PATTERNS, "evil:1", f"The image 'evil:1' isn't allowed here. {OFFER}"),
    ],
)
def test_images_only_where_the_site_allows_them(allowed: Any, value: Any, sentence: str) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_options({"image": value}, TIERS, allowed)
    assert refusal.value.message == sentence


@given(forms, images)
def test_a_query_is_a_choice_or_refused(raw: Any, allowed: Any) -> None:
    outcome(parse_query, raw, allowed)


@pytest.mark.parametrize(
    ("raw", "choice"),
    [
        ({"fbclid": ["1"]}, Choice(CPU)),
        ({"profile": ["gpu"], "utm_source": ["mail", "twice"], "privileged": ["true"]}, Choice(GPU)),
        ({"opt-profile": ["gpu"], "opt-image": ["other"]}, Choice(GPU, "lab:2", "other")),
    ],
)
def test_parameters_of_others_in_an_address_are_let_go(raw: Any, choice: Choice) -> None:
    assert parse_query(raw, TIERS, IMAGES) == choice


@pytest.mark.parametrize("name", ["profil", "Profile", "profiles", "images"])
def test_a_parameter_that_is_almost_ours_is_refused(name: str) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_query({name: ["gpu"]}, TIERS, IMAGES)
    assert refusal.value.message == f"There is no option {name!r}. {OPTIONS}"


def test_options_of_the_sites_own_are_kept_and_decide_nothing() -> None:
    raw = {"profile": "gpu", "course": {"id": 7}, "privileged": True}
    choice = parse_options(raw, TIERS, IMAGES, others=True)
    assert choice == Choice(GPU, others={"course": {"id": 7}, "privileged": True})
    assert choice.as_options() == raw
    with pytest.raises(BadOption):
        parse_options({7: []}, TIERS, IMAGES, others=True)


def test_a_tier_may_be_the_default() -> None:
    usual = Tier("usual", "Usual", default=True)
    assert default_tier(TIERS) == CPU
    assert default_tier((*TIERS, usual)) == usual
    assert parse_options({}, (*TIERS, usual), IMAGES) == Choice(usual)
