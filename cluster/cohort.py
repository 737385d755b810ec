"""Statistics of a whole dataset: dask over batches of items, on this process's threads or on Ray.

A task gets where its items lie and reads them itself; what comes back, and what is merged, two by two, then sixteen by
sixteen, is counts. Batches and the tree that they are merged in are a function of the items, so the result is, too.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jobs.covered import covered, cuts
from ..lake import leases, statistics
from ..lake.errors import DiastoleError, EnvironmentFailure
from ..lake.layout import Lake
from ..workers.statistics.batch import Partial, count, merged

WAIT = 60.0
"""Seconds to wait for who has the lake alone."""
TASKS = 256
"""Tasks that are handed out at a time."""
TOGETHER = 16
"""Results that are merged in one step."""
Compute = Callable[[Any], Partial]
Progress = Callable[[int, int], None]
"""Called with the items that were read, and all of them."""


@dataclass(frozen=True)
class Statistics:
    """What `diastole stats` found."""

    found: dict[str, Any]
    """As they are stored."""
    made: bool
    """Whether they were not there before."""

    @property
    def left_out(self) -> dict[str, int]:
        """Items that could not be read, by code; where there are some, nothing is stored."""
        return dict(self.found["left_out"])


def dataset_statistics(
    lake: Lake,
    dataset: str,
    by: str | None = None,
    workers: int = 0,
    progress: Progress = lambda _done, _all: None,
) -> Statistics:
    """Statistics of a dataset as it is now: those that are stored, or else made and stored.

    Raises LakeError where there is no such dataset, BusyError while a sweep or a withdrawal has the lake alone.
    """
    with leases.shared(lake, "stats", WAIT) as held, covered(lake, dataset, by) as (name, items):
        known = statistics.read(lake, dataset, name)
        if known is not None:
            return Statistics(known, made=False)
        partial = Partial()
        spans = cuts(items)
        with _computing(workers) as compute:
            for first in range(0, len(spans), TASKS):
                batches = [
                    items.take(np.arange(*span)) for span in spans[first : first + TASKS]
                ]  # copies, of these rows alone
                partial.merge(compute(_tree(lake.store.root, batches)))
                progress(spans[min(first + TASKS, len(spans)) - 1][1], items.num_rows)
        found = {
            "format": statistics.FORMAT,
            "dataset": dataset,
            "digest": name,
            "by": by,
            "parameters": dict(statistics.PARAMETERS),
            "items": partial.items,
            "not_counted": dict(sorted(partial.not_counted.items())),
            "left_out": dict(sorted(partial.left_out.items())),
            "groups": partial.told(),
        }
        held.check()
        if not partial.left_out:
            statistics.write(lake, dataset, name, found)
        return Statistics(found, made=True)


def _tree(lake_root: str, batches: list[Any]) -> Any:
    """The counts of some batches, merged in their order."""
    from dask.delayed import delayed

    level = [delayed(count, pure=False)(lake_root, batch) for batch in batches]
    while len(level) > 1:
        level = [
            delayed(merged, pure=False)(level[start : start + TOGETHER]) for start in range(0, len(level), TOGETHER)
        ]
    return level[0]


@contextmanager
def _computing(workers: int) -> Iterator[Compute]:
    """How a graph is computed: on threads, or by so many workers on Ray."""
    if workers == 0:
        yield lambda graph: graph.compute(scheduler="threads", num_workers=os.cpu_count())
        return
    from .private_ray import private_ray

    with private_ray(workers):
        import ray
        from ray.util.dask import ray_dask_get

        def compute(graph: Any) -> Partial:
            try:
                return graph.compute(scheduler=ray_dask_get)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DiastoleError):
                    raise error.cause from None
                raise EnvironmentFailure(f"a worker failed: {type(error.cause).__name__}; run again") from None
            except ray.exceptions.RayError as error:
                raise EnvironmentFailure(f"Ray failed: {type(error).__name__}; run again") from None

        yield compute
