"""Windows of many units into batches, batches through the network, outputs back to their units."""

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..jobs.task import Task, Window
from ..lake.errors import ItemError
from .models.runtime import Networks, OutOfMemory

if TYPE_CHECKING:
    from .engine import OpenUnit

Entry = tuple["OpenUnit", Window, Any]


class Batcher:
    """Buckets of windows that may share a batch, within one shard."""

    def __init__(self, task: Task, networks: Networks, limit: float) -> None:
        self._task, self._networks, self._limit = task, networks, limit
        self._buckets: OrderedDict[Any, list[Entry]] = OrderedDict()
        self._full: deque[tuple[Any, list[Entry]]] = deque()
        self._settled: deque[OpenUnit] = deque()
        self._held: dict[int, float] = {}
        self.seconds = 0.0
        """Time in the network, encoding included."""

    @property
    def nbytes(self) -> float:
        """Bytes of units that are not settled."""
        return sum(self._held.values())

    @property
    def waiting(self) -> bool:
        """Whether windows wait for a batch."""
        return bool(self._full or self._buckets)

    def add(self, unit: "OpenUnit") -> None:
        """Put a unit's prepared windows into buckets; of an ordered task only the next one."""
        self._held[id(unit)] = unit.nbytes
        if unit.error is not None or not unit.todo:
            self._settle(unit)
            return
        take = 1 if self._task.ordered else len(unit.todo)
        for window, ready in unit.todo[:take]:
            self._place(unit, window, ready)
        del unit.todo[:take]

    def settled(self) -> list["OpenUnit"]:
        """Units whose step is over since the last call."""
        over = list(self._settled)
        self._settled.clear()
        return over

    def compute(self, *, partly: bool) -> bool:
        """Compute one batch: a full one, or if `partly` the oldest that is not. False where there is nothing to do."""
        if self._full:
            (step, _), entries = self._full.popleft()
        elif partly and self._buckets:
            (step, _), entries = self._buckets.popitem(last=False)
        else:
            return bool(self._settled)
        begun = time.perf_counter()
        self._run(step, entries)
        self.seconds += time.perf_counter() - begun
        return True

    def _place(self, unit: "OpenUnit", window: Window, ready: Any) -> None:
        key = (unit.step, window.bucket)
        bucket = self._buckets.setdefault(key, [])
        if bucket and sum(entry[1].weight for entry in bucket) + window.weight > self._limit:
            self._full.append((key, self._buckets.pop(key)))
            bucket = self._buckets.setdefault(key, [])
        bucket.append((unit, window, ready))

    def _run(self, step: int, entries: Sequence[Entry]) -> None:
        entries = [entry for entry in entries if entry[0].error is None]
        if not entries:
            return
        try:
            inputs = self._task.encode(step, [ready for _, _, ready in entries], self._networks.device)
            outputs = self._networks.forward(step, inputs)
        except (OutOfMemory, ItemError, RuntimeError, ValueError) as error:
            self._apart(step, entries, error)
            return
        for place, (unit, window, _) in enumerate(entries):
            self._collect(unit, step, window, {name: value[place] for name, value in outputs.items()})

    def _apart(self, step: int, entries: Sequence[Entry], error: Exception) -> None:
        """A batch failed: try its halves; a window that fails alone fails its unit."""
        if len(entries) > 1:
            half = len(entries) // 2
            self._run(step, entries[:half])
            self._run(step, entries[half:])
            return
        unit = entries[0][0]
        if isinstance(error, ItemError):
            unit.error = error
        elif isinstance(error, OutOfMemory):
            unit.error = ItemError("out_of_memory", "its window alone does not fit the device's memory")
        else:
            first = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
            unit.error = ItemError("model_error", f"the network failed on it: {type(error).__name__}: {first}")
        self._settle(unit)

    def _collect(self, unit: "OpenUnit", step: int, window: Window, outputs: dict[str, Any]) -> None:
        if unit.error is not None:
            return
        try:
            if not self._networks.finite(outputs):
                raise ItemError("non_finite_output", "the network's output for it has NaN or infinite values")
            self._task.collect(unit.state, step, window, outputs)
        except ItemError as error:
            unit.error = error
            self._settle(unit)
            return
        unit.open -= 1
        if unit.open == 0:
            self._settle(unit)
        elif self._task.ordered:
            window, ready = unit.todo.pop(0)
            self._place(unit, window, ready)

    def _settle(self, unit: "OpenUnit") -> None:
        unit.todo.clear()
        self._held.pop(id(unit), None)
        self._settled.append(unit)
