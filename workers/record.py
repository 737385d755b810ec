"""Real batches of a model, recorded as they pass through the engine, and replayed through networks of other settings."""

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch

from ..jobs.task import Task, Window
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
    """What names each of its windows, in any batch: step, unit, place among the unit's windows."""


@dataclass
class Recording:
    """The batches of some units."""

    units: int
    limit: int
    """Windows in one batch at most, as `Manifest.batch` counts."""
    batches: list[Batch] = field(default_factory=list)
    failed: bool = False
    """Whether a window was in two batches: the first failed, as where it does not fit the memory, and was halved."""

    def add(self, step: int, inputs: Mapping[str, torch.Tensor], windows: list[Hashable]) -> None:
        """Keep a batch as it goes to the network."""
        self.failed = self.failed or not self._seen.isdisjoint(windows)
        self._seen.update(windows)
        self.batches.append(Batch(step, {name: value.clone() for name, value in inputs.items()}, windows))

    _seen: set[Hashable] = field(default_factory=set)

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(x.nbytes for batch in self.batches for x in batch.inputs.values())


def record(engine: Engine, units: pa.Table, limit: int) -> Recording:
    """Take units through an engine of one lane in batches of this size; what it writes goes where its lake is."""
    recording = Recording(units.num_rows, limit)
    engine.plan = replace(engine.plan, batch=limit)
    with _watched(engine.task, recording):
        for _ in score(engine, [units], f"record{limit}-{units.num_rows}"):
            pass
    return recording


@contextmanager
def _watched(task: Task, recording: Recording) -> Iterator[None]:
    """Keep what a task makes for the network, and of which windows it makes it."""
    begin, prepare, encode, encode_block = task.begin, task.prepare, task.encode, task.encode_block
    states: dict[int, tuple[int, Any]] = {}
    windows: dict[int, tuple[tuple[int, int], Any]] = {}  # objects are held, so that no other gets the id of one

    def begun(unit: Any) -> Any:
        state = begin(unit)
        states[id(state)] = (len(states), state)
        return state

    def prepared(state: Any, window: Window, raw: Any) -> Any:
        ready = prepare(state, window, raw)
        windows[id(ready)] = ((states[id(state)][0], window.index), ready)
        return ready

    def encoded(step: int, ready: Sequence[Any], device: Any) -> dict[str, Any]:
        inputs = encode(step, ready, device)
        recording.add(step, inputs, [(step, *windows[id(one)][0]) for one in ready])
        return inputs

    def encoded_block(data: Any, meta: Any, device: Any) -> dict[str, Any]:
        inputs = encode_block(data, meta, device)
        first = sum(len(batch.windows) for batch in recording.batches)
        recording.add(0, inputs, list(range(first, first + len(data))))
        recording.failed = recording.failed or first + len(data) > recording.units
        return inputs

    task.begin, task.prepare = begun, prepared  # type: ignore[method-assign]  # to see what passes
    task.encode, task.encode_block = encoded, encoded_block  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.begin, task.prepare, task.encode, task.encode_block


class Replay:
    """Networks with lanes as a worker has them, that recordings go through."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._lanes = ThreadPoolExecutor(networks.lanes, "diastole-tune", initializer=networks.enter)

    def outputs(self, recording: Recording) -> Iterator[Rows]:
        """Outputs of each window, batch by batch."""
        for batch in recording.batches:
            outputs = self._lanes.submit(self._forward, batch).result()
            yield {
                window: {name: value[place] for name, value in outputs.items()}
                for place, window in enumerate(batch.windows)
            }

    def seconds(self, recording: Recording) -> float:
        """Of all batches, side by side in the lanes."""
        begun = time.perf_counter()
        for done in [self._lanes.submit(self._forward, batch) for batch in recording.batches]:
            done.result()
        return time.perf_counter() - begun

    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with device_errors():
            return self.networks.forward(batch.step, batch.inputs)


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
