"""The progress of a pull, from Docker's events."""

from __future__ import annotations

from gpuspawner.hub.pull_progress import Event, Layers
from hypothesis import given
from hypothesis import strategies as st


def layer(name: str, status: str, current: int | None = None, total: int | None = None) -> Event:
    detail = {} if current is None else {"current": current, "total": total}
    return {"id": name, "status": status, "progressDetail": detail}


def test_how_far_a_pull_is() -> None:
    layers, told = Layers(), []
    for event in (
        {"id": "2026-1", "status": "Pulling from jupyter/lab"},
        layer("a", "Already exists"),
        layer("b", "Pulling fs layer"),
        layer("c", "Waiting"),
        layer("b", "Downloading", 5_000_000, 40_000_000),
        layer("c", "Downloading", 1_000_000, 60_000_000),
        layer("b", "Verifying Checksum"),
        layer("b", "Extracting", 1_000_000, 40_000_000),
        layer("b", "Pull complete"),
        {"status": "Digest: sha256:0a"},
        layer("c", "Download complete"),
        layer("c", "Pull complete"),
    ):
        layers.feed(event)
        told.append(str(layers))
    assert told == [
        "",
        "1 of 1 layers",
        "1 of 2 layers, 0.0 MB so far",
        "1 of 3 layers, 0.0 MB so far",
        "1 of 3 layers, 5.0 MB so far",
        "1 of 3 layers, 6.0 of 100 MB, 6 %",
        "1 of 3 layers, 41 of 100 MB, 41 %",
        "1 of 3 layers, 41 of 100 MB, 41 %",
        "2 of 3 layers, 41 of 100 MB, 41 %",
        "2 of 3 layers, 41 of 100 MB, 41 %",
        "2 of 3 layers, 100 of 100 MB, 100 %",
        "3 of 3 layers, 100 of 100 MB, 100 %",
    ]


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.sampled_from(["a", "b", 7, None]),
                "status": st.sampled_from(["Downloading", "Pull complete", "Waiting", "x", None]),
                "progressDetail": st.none()
                | st.dictionaries(st.sampled_from(["current", "total"]), st.integers() | st.text()),
            },
        )
    )
)
def test_odd_events_break_nothing(events: list[Event]) -> None:
    layers = Layers()
    for event in events:
        layers.feed(event)
        assert len(str(layers)) < 200
        assert layers.percent is None or 0 <= layers.percent <= 100
