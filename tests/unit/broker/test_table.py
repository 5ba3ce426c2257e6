"""Tables in pages: sorted, filtered and cut on the server, whatever the address says."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from gpuspawner.broker.pages.table import Column, Heading, Table, Wish, make_table, wish_of
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Row:
    name: str
    number: int | None


COLUMNS: tuple[Column[Row], ...] = (
    Column("name", "Name", lambda row: row.name),
    Column("number", "Number", lambda row: row.number),
)
ROWS = (Row("bob", 2), Row("Ada", None), Row("carl", 1), Row("dan", 3))


def table(query: str, size: int = 3) -> Table[Row]:
    wish = wish_of(dict(parse_qsl(query.removeprefix("?"))))
    return make_table(ROWS, COLUMNS, wish, words=lambda row: row.name, size=size)


def names(found: Table[Row]) -> list[str]:
    return [row.name for row in found.rows]


def test_without_a_wish_rows_stand_as_they_come() -> None:
    found = table("")
    assert names(found) == ["bob", "Ada", "carl"]
    assert (found.total, found.first, found.last, found.pages) == (4, 1, 3, 2)
    assert found.headings == (
        Heading("Name", "?sort=name", "none"), Heading("Number", "?sort=number", "none"),
    )  # fmt: skip
    assert (found.before, found.after) == ("", "?page=2")


def test_it_is_sorted_both_ways_with_unknown_values_last() -> None:
    assert names(table("sort=name", 9)) == ["Ada", "bob", "carl", "dan"]
    assert names(table("sort=number", 9)) == ["carl", "bob", "dan", "Ada"]
    assert names(table("sort=number&descending=1", 9)) == ["dan", "bob", "carl", "Ada"]
    assert table("sort=name").headings[0] == Heading("Name", "?sort=name&descending=1", "ascending")
    assert table("sort=name&descending=1").headings[0] == Heading("Name", "?sort=name", "descending")


def test_pages_and_a_search_go_together() -> None:
    found = table("sort=name&search=A&page=1", 2)
    assert (names(found), found.total, found.after) == (["Ada", "carl"], 3, "?sort=name&page=2&search=A")
    assert names(table(found.after, 2)) == ["dan"]
    assert table("search=nobody").total == 0
    assert (table("search=nobody").first, table("search=nobody").last) == (0, 0)


def test_what_can_t_be_read_is_left_out() -> None:
    assert table("sort=<script>&page=-4&descending=2") == table("")
    assert names(table("page=99")) == ["dan"]
    assert wish_of({"page": "9" * 40, "search": "x" * 500}) == Wish(page=1, search="x" * 100)
    assert wish_of({"page": "²"}) == Wish()


@given(
    st.lists(st.tuples(st.text(max_size=3), st.none() | st.integers()), max_size=30),
    st.sampled_from(["", "name", "number", "what"]), st.booleans(), st.integers(1, 6),
)  # fmt: skip
def test_pages_together_are_every_row_once(
    values: list[tuple[str, int | None]], sort: str, descending: bool, size: int
) -> None:
    rows = [Row(*each) for each in values]
    first = make_table(rows, COLUMNS, Wish(sort, descending), size=size)
    pages = [
        make_table(rows, COLUMNS, Wish(sort, descending, page), size=size)
        for page in range(1, first.pages + 1)
    ]
    shown = [row for page in pages for row in page.rows]
    assert sorted(map(repr, shown)) == sorted(map(repr, rows))
    assert all(len(page.rows) <= size for page in pages)
    if sort == "number":
        numbers = [row.number for row in shown if row.number is not None]
        assert numbers == sorted(numbers, reverse=descending)
