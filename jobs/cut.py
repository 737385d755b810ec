"""Cutting units into shards of about equal cost."""

import numpy as np
from numpy.typing import NDArray

Cut = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(order, shards): which units come one after the other, and the number of the shard that each in that order is in."""


def cut(costs: NDArray[np.float64], target: float, neighbours: int, most: int) -> Cut:
    """Cut units into shards.

    `costs` is in the order of storage. Units are taken so, `neighbours` shards' worth at a time; within those, units of
    like cost come together, so that a batch pads little. So a shard reads from few packs, and each pack is read by few
    shards. A shard costs about `target` and has `most` units at most.
    """
    blocks = np.cumsum(costs) // (neighbours * target)
    order = np.lexsort((costs, blocks))
    sorted_costs = costs[order]
    before = np.cumsum(sorted_costs) - sorted_costs
    # A unit is in the shard that has room for its first half.
    ends = np.searchsorted(before + sorted_costs / 2, before + target, side="right")
    numbers = np.arange(len(costs))
    ends = np.clip(ends, numbers + 1, numbers + most)
    starts, at = [], 0
    while at < len(costs):
        starts.append(at)
        at = int(ends[at])
    first = np.zeros(len(costs), np.int64)
    first[starts[1:]] = 1
    return order, np.cumsum(first)


def names(count: int) -> list[str]:
    """Names of so many shards; they sort as their numbers do."""
    width = max(5, len(str(count - 1)))
    return [f"{number:0{width}d}" for number in range(count)]
