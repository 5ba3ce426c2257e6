"""Names that somebody else chose act on nothing around them."""

from __future__ import annotations

import csv
import io

import pytest
from gpuspawner.core.text import for_spreadsheet, for_terminal, isolated, plain, printable
from hypothesis import given
from hypothesis import strategies as st

CONTROLS = "".join(map(chr, (*range(32), *range(0x7F, 0xA0))))
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ada", "ada"),
        ("<script>", "<script>"),
        ("\u202egnol", "\\u202egnol"),
        ("a\u2069\u202eb", "a\\u2069\\u202eb"),
        ("two\nlines\x1b[31m\x9b1m", "two\\x0alines\\x1b[31m\\x9b1m"),
        ("שלום", "\u2068שלום\u2069"),
        ("שלום\u2069\u202e", "\u2068שלום\\u2069\\u202e\u2069"),
        ("👩🏽\u200d🏫 Müller, 李", "👩🏽\u200d🏫 Müller, 李"),
    ],
)
def test_a_name_in_a_sentence_acts_on_nothing_around_it(name: str, shown: str) -> None:
    assert isolated(name) == shown


@given(st.text(alphabet=st.one_of(st.sampled_from(CONTROLS + DIRECTIONS + "אب"), st.characters())))
def test_nothing_that_acts_is_left(name: str) -> None:
    assert not set(plain(name)) & set(CONTROLS + DIRECTIONS + "\u2028\u2029")
    assert set(isolated(name)) & set(CONTROLS + DIRECTIONS) <= {"\u2068", "\u2069"}
    assert isolated(name)[1:-1].count("\u2069") == 0
    assert not set(for_terminal(isolated(name))) & set(CONTROLS + DIRECTIONS)


def test_a_sentence_loses_its_isolates_on_a_terminal() -> None:
    assert for_terminal(f"{isolated('שלום')} waits\x07") == "שלום waits\\x07"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+49", "'+49"),
        ("-ada", "'-ada"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "\\x09=1"),
        ("2026-10-12", "2026-10-12"),
        ("a=b", "a=b"),
        ('"quoted", name', '"quoted", name'),
    ],
)
def test_a_spreadsheet_takes_no_name_for_a_formula(name: str, cell: str) -> None:
    assert for_spreadsheet(name) == cell
    text = io.StringIO()
    csv.writer(text).writerow([for_spreadsheet(name), "1"])
    assert list(csv.reader([text.getvalue()])) == [[cell, "1"]]


@pytest.mark.parametrize(
    ("name", "is_printable"),
    [
        ("ada", True),
        ("علی\u200cرضا", True),  # Persian, with a non-joiner
        ("क्\u200dष", True),  # Hindi, with a joiner
        ("👩\u200d🏫", True),  # a teacher
        ("ada\u200d", False),
        ("\u200cada", False),
        ("ad\u200ca", False),  # looks like "ada"
        ("علی\u200c\u200cرضا", False),
        ("ada\n", False),
        ("\u202eada", False),
    ],
)
def test_a_joiner_can_be_printed_where_a_script_needs_it(name: str, is_printable: bool) -> None:
    assert printable(name) is is_printable
