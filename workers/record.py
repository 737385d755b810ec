"""Real batches of a model, recorded as they pass through the engine, and replayed through networks of other settings."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch

from .engine import Engine
from .models.runtime import Networks, device_errors
from .probe import score

Rows = dict[Hashable, dict[str, torch.Tensor]]
"""Outputs of each window, by what names it in any batch."""


@dataclass(frozen=True)
class Batch:
    """What went through a network at once."""

    step: int
    inputs: dict[str, torch.Tensor]
    windows: list[Hashable]
    """What names each of its windows, in any batch: unit, step, place among the unit's windows."""


@dataclass
class Recording:
    """The batches of some units."""

    units: int
    limit: int
    """Windows in one batch at most, as `Manifest.batch` counts."""
    batches: list[Batch] = field(default_factory=list)
    failed: bool = False
    """Whether the network failed on a batch, as where it does not fit the memory: it was tried in halves then."""

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(x.nbytes for batch in self.batches for x in batch.inputs.values())


def record(engine: Engine, units: pa.Table, limit: int) -> Recording:
    """Take units through the engine with batches of this size. What it writes goes where the engine's lake is."""
    recording = Recording(units.num_rows, limit)
    engine.plan = replace(engine.plan, batch=limit)
    with _watched(engine, recording):
        for _ in score(engine, [units], f"record{limit}-{units.num_rows}"):
            pass
    recording.batches = [_named(batch, number) for number, batch in enumerate(recording.batches)]
    return recording


@contextmanager
def _watched(engine: Engine, recording: Recording) -> Iterator[None]:
    """Keep what passes: inputs as they enter, and which windows they were, as their outputs are collected."""
    task, networks = engine.task, engine.networks
    forward, begin, collect = networks.forward, task.begin, task.collect
    states: dict[int, tuple[int, Any]] = {}

    def begun(unit: Any) -> Any:
        state = begin(unit)
        states[id(state)] = (len(states), state)  # held, so that no other state gets its id
        return state

    def forwarded(step: int, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        recording.batches.append(Batch(step, {name: value.clone() for name, value in inputs.items()}, []))
        try:
            return forward(step, inputs)
        except Exception:
            recording.failed = True
            recording.batches.pop()
            raise

    def collected(state: Any, step: int, window: Any, outputs: Mapping[str, Any]) -> None:
        recording.batches[-1].windows.append((states[id(state)][0], step, window.index))
        collect(state, step, window, outputs)

    networks.forward, task.begin, task.collect = forwarded, begun, collected  # type: ignore[method-assign]  # to see what passes
    try:
        yield
    finally:
        del networks.forward, task.begin, task.collect


def _named(batch: Batch, number: int) -> Batch:
    """A batch whose windows are all known; those of blocks, or of one that failed, are known by their place."""
    rows = len(next(iter(batch.inputs.values())))
    return batch if len(batch.windows) == rows else replace(batch, windows=[(number, row) for row in range(rows)])


def replay(networks: Networks, recording: Recording) -> Iterator[Rows]:
    """Outputs of each window, batch by batch."""
    for batch in recording.batches:
        with device_errors():
            outputs = networks.forward(batch.step, batch.inputs)
        yield {
            window: {name: value[place] for name, value in outputs.items()}
            for place, window in enumerate(batch.windows)
        }


def deviation(reference: Rows, found: Rows) -> float | None:
    """The largest difference of an output from the reference: of values beyond ±1, as part of the value.

    Windows of one may be padded further than those of the other; what both have is compared. None where the two have no
    window in common.
    """
    worst: float | None = None
    for window in reference.keys() & found.keys():
        for name, expected in reference[window].items():
            value = found[window][name]
            common = tuple(slice(0, min(a, b)) for a, b in zip(expected.shape, value.shape, strict=True))
            a, b = expected[common].double(), value[common].double()
            apart = ((a - b).abs() / a.abs().clamp(min=1.0)).nan_to_num(nan=torch.inf)
            worst = max(worst or 0.0, float(apart.max()) if apart.numel() else 0.0)
    return worst
