"""Labels of machines, and pools that name machines: what is read, and what is refused with its remedy."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.config.nodes import parse_node_labels
from gpuspawner.config.pools import parse_pools
from gpuspawner.config.site import GpuSite
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.want import Want
from traitlets.config import Config


def test_labels_pools_and_tiers_are_read() -> None:
    assert parse_node_labels({"gpu-b": ["fast-disk", "infiniband"], "c": []}) == {
        "gpu-b": frozenset({"fast-disk", "infiniband"}),
        "c": frozenset(),
    }
    (tier,) = parse_tiers([{"name": "near", "devices": 1, "node_label": "fast-disk"}])
    assert tier.want == Want(1, node_label="fast-disk")
    (pool,) = parse_pools([{"name": "here", "nodes": ["gpu-b", "c", "gpu-b"]}])
    assert pool.nodes == ("gpu-b", "c")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"../b": ["x"]}, r"'\.\./b' is no machine's name: `gpuspawner node list` shows them"),
        ({"b": "fast"}, r"b: 'fast': give a list of labels"),
        ({"b": ["Fast disk"]}, "b: label 'Fast disk' can't be used: use lower-case letters"),
        ({"b": [3]}, "b: label 3 can't be used"),
    ],
)
def test_labels_that_can_t_be_used(labels: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_node_labels(labels)


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"devices": 1, "node_label": "slow"}, r"no machine has the label 'slow': give it to one, like"),
        ({"node_label": "fast"}, r'has a node_label but no devices: add "devices": 1'),
        ({"devices": 1, "node_label": 3}, r"node_label is 3: give a label of c\.GpuSite\.node_labels"),
    ],
)
def test_tiers_whose_label_can_t_be_had(tier: dict[str, Any], said: str) -> None:
    site = GpuSite(
        config=Config(GpuSite={"node_labels": {"gpu-b": ["fast"]}, "tiers": [{"name": "t", **tier}]})
    )
    with pytest.raises(ConfigError, match=said):
        site.parsed_tiers()


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [((), ("b",), True), (("a", "b"), ("b", "c"), True), (("a",), ("b",), False)],
)
def test_two_pools_take_everything_only_of_different_machines(
    first: tuple[str, ...], second: tuple[str, ...], clash: bool
) -> None:
    raw: list[dict[str, Any]] = [{"name": "one"}, {"name": "two"}]
    for pool, nodes in zip(raw, (first, second), strict=True):
        if nodes:
            pool["nodes"] = list(nodes)
    if not clash:
        assert [pool.nodes for pool in parse_pools(raw)] == [first, second]
        return
    with pytest.raises(ConfigError, match="pools 'one' and 'two' both take all devices"):
        parse_pools(raw)


@pytest.mark.parametrize("nodes", ["gpu-b", [], [3], ["a b"]])
def test_machines_of_a_pool_that_can_t_be_read(nodes: Any) -> None:
    with pytest.raises(ConfigError, match=r"nodes is .*: give a list|is no machine's name"):
        parse_pools([{"name": "one", "nodes": nodes}])
