"""images/sizes.py: each layer has its size and the reason that its Dockerfile gives."""

from __future__ import annotations

from typing import Any

import pytest

from images.sizes import Instruction, Layer, as_markdown, instructions, layers_of, wanted_of
from images.table import read_table
from setup.steps import SetupError

TABLE = read_table()
BASE = TABLE.images[0]
DOCKERFILE = """# About the file.
ARG BASE
FROM $BASE AS build
# Not in the image.
RUN make
FROM $BASE
# First line,
# second line.
RUN useradd \\
    --uid 1000 ada
ENV A=1
COPY --from=build /out /opt/lab
"""


def engine(made: list[tuple[str, int]]) -> Any:
    """What an engine would say of lab-base, if its layers above the system were these, the lowest first."""
    system = [{"CreatedBy": "", "Size": 200_000_000}]
    above = [{"CreatedBy": text, "Size": size} for text, size in made]
    return lambda name: system if name == TABLE.base.reference else [*reversed(above), *system]


def as_built() -> list[tuple[str, int]]:
    """The layers as the classic builder calls them, each with its own size, and one empty."""
    made = [("/bin/sh -c #(nop)  ENV PATH=/opt/lab/bin", 0)]
    for number, one in enumerate(wanted_of(BASE, TABLE)):
        copied = f"/bin/sh -c #(nop) COPY dir:0 in {one.text} "
        made.append((copied if one.word == "COPY" else f"/bin/sh -c {one.text}", number * 1000))
    return made


def test_the_last_stage_and_its_reasons() -> None:
    assert instructions(DOCKERFILE, "lab") == [
        Instruction("RUN", "useradd --uid 1000 ada", "First line, second line.", "lab"),
        Instruction("COPY", "/opt/lab", "", "lab"),
    ]


@pytest.mark.parametrize("image", TABLE.images, ids=lambda image: str(image.name))
def test_every_layer_has_a_reason(image: Any) -> None:
    wanted = wanted_of(image, TABLE)
    assert len(wanted) > 5
    assert [one for one in wanted if not one.reason] == []


def test_sizes_meet_reasons_and_empty_layers_are_left_out() -> None:
    wanted = wanted_of(BASE, TABLE)
    system = f"The operating system with {', '.join(TABLE.base.packages)}."
    assert layers_of(BASE, TABLE, engine(as_built())) == [
        Layer(200_000_000, "base", system),
        *(Layer(number * 1000, one.source, one.reason) for number, one in enumerate(wanted) if number),
    ]


@pytest.mark.parametrize("change", ["less", "other command", "other place"])
def test_an_image_of_other_dockerfiles_has_no_table(change: str) -> None:
    made = as_built()
    if change == "less":
        del made[-1]
    elif change == "other command":
        made[1] = ("/bin/sh -c useradd eve", 1)
    else:
        made[2] = ("/bin/sh -c #(nop) COPY dir:0 in /srv ", 1)
    with pytest.raises(SetupError, match="was not built from the Dockerfiles as they are now"):
        layers_of(BASE, TABLE, engine(made))


def test_the_table() -> None:
    layers = [Layer(206_400_000, "base", "The system."), Layer(8_090, "lab-base", "The user.")]
    assert as_markdown(BASE, layers, ", CPU build") == (
        "### lab-base, CPU build: 206 MB\n\n| layer of | size | why it is there |\n|---|---|---|\n"
        "| base | 206 MB | The system. |\n| lab-base | 8.1 kB | The user. |\n"
    )
