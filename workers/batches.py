"""Windows of many units into batches, batches through the network, outputs back to their units."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..jobs.task import Task, Window
from ..lake.errors import DiastoleError, ItemError
from .models.runtime import Networks, OutOfMemory, device_errors
from .queue import nbytes_of

if TYPE_CHECKING:
    from .engine import OpenUnit

Entry = tuple["OpenUnit", Window, Any]


class Batcher:
    """Buckets of windows that may share a batch, within one shard."""

    def __init__(
        self, task: Task, networks: Networks, limit: float, prepare: "Callable[[OpenUnit, Window], Any]"
    ) -> None:
        self._task, self._networks, self._limit, self._prepare = task, networks, limit, prepare
        self._buckets: OrderedDict[Any, list[Entry]] = OrderedDict()
        self._full: deque[tuple[Any, list[Entry]]] = deque()
        self._settled: deque[OpenUnit] = deque()
        self._units: dict[int, float] = {}
        self._windows = 0.0
        self.seconds = 0.0
        """Time in the network, encoding included."""

    @property
    def nbytes(self) -> float:
        """Bytes of units that wait for a batch, and of windows in buckets."""
        return sum(self._units.values()) + self._windows

    def place(self, unit: "OpenUnit", window: Window, ready: Any) -> None:
        """Put a prepared window into its bucket."""
        if unit.error is not None:
            return
        key = (unit.step, window.bucket)
        bucket = self._buckets.setdefault(key, [])
        if bucket and sum(entry[1].weight for entry in bucket) + window.weight > self._limit:
            self._full.append((key, self._buckets.pop(key)))
            bucket = self._buckets.setdefault(key, [])
        bucket.append((unit, window, ready))
        unit.open += 1
        self._windows += nbytes_of(ready)

    def whole(self, unit: "OpenUnit") -> None:
        """All windows of the unit's step are in, or it failed before."""
        unit.whole = True
        self._units[id(unit)] = unit.nbytes
        self._go_on(unit)

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
        self._windows -= sum(nbytes_of(ready) for _, _, ready in entries)
        for unit, _, _ in entries:
            unit.open -= 1
        begun = time.perf_counter()
        self._run(step, entries)
        self.seconds += time.perf_counter() - begun
        for unit in {id(entry[0]): entry[0] for entry in entries}.values():
            self._go_on(unit)
        return True

    def _go_on(self, unit: "OpenUnit") -> None:
        """The next window of an ordered unit; or, where none is left, the end of the step."""
        if unit.open or not unit.whole:
            return
        if unit.todo and unit.error is None:
            window = unit.todo.popleft()
            try:
                self.place(unit, window, self._prepare(unit, window))
                return
            except ItemError as error:
                unit.error = error
        unit.todo.clear()
        unit.whole = False
        del self._units[id(unit)]
        self._settled.append(unit)

    def _run(self, step: int, entries: Sequence[Entry]) -> None:
        entries = [entry for entry in entries if entry[0].error is None]
        if not entries:
            return
        try:
            with blamed("model"), device_errors():
                inputs = self._task.encode(step, [ready for _, _, ready in entries], self._networks.device)
                outputs = self._networks.forward(step, inputs)
        except ItemError as error:
            if len(entries) > 1:  # a batch failed: try its halves; a window that fails alone fails its unit
                self._run(step, entries[: len(entries) // 2])
                self._run(step, entries[len(entries) // 2 :])
            else:
                entries[0][0].error = error
            return
        for place, (unit, window, _) in enumerate(entries):
            self._collect(unit, step, window, {name: value[place] for name, value in outputs.items()})

    def _collect(self, unit: "OpenUnit", step: int, window: Window, outputs: dict[str, Any]) -> None:
        if unit.error is not None:
            return
        try:
            if not self._networks.finite(outputs):
                raise ItemError("non_finite_output", "the network's output for it has NaN or infinite values")
            with blamed("task"):
                self._task.collect(unit.state, step, window, outputs)
        except ItemError as error:
            unit.error = error


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """What a model or a task raises on an item is held against the item, so that the rest of the cohort goes on."""
    try:
        yield
    except (DiastoleError, OSError):  # known already, or the environment's
        raise
    except (OutOfMemory, MemoryError) as error:
        raise ItemError("out_of_memory", "it does not fit the memory, even alone") from error
    except Exception as error:  # any class may come from a network or a task that is not ours
        lines = str(error).strip().splitlines() or [""]
        raise ItemError(
            f"{what}_error", f"the {what} failed on it: {type(error).__name__}: {lines[-1][:160]}"
        ) from error
