"""Windows of many units into batches, batches into the lanes, outputs back to their units."""

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..jobs.task import Task, Window
from ..lake.errors import ItemError
from .faults import blamed
from .lanes import Lanes, Ran
from .queue import nbytes_of

if TYPE_CHECKING:
    from .blocks import Block
    from .engine import OpenUnit

Entry = tuple["OpenUnit", Window, Any]

DEPTH = 4
"""Batches of a shard that are on their way at most. Fixed, since with it goes what later batches are made of."""


@dataclass
class _Bucket:
    entries: list[Entry] = field(default_factory=list)
    weight: float = 0.0


@dataclass
class _Sent:
    """A batch in a lane, or waiting for one."""

    step: int
    entries: list[Entry]
    block: "Block | None"
    future: "Future[Ran]"


class Batcher:
    """Buckets of windows that may share a batch, within one shard.

    Results are taken in in the order in which batches were sent, at moments that do not depend on how fast a lane is.
    """

    def __init__(self, task: Task, lanes: Lanes, limit: float, prepare: "Callable[[OpenUnit, Window], Any]") -> None:
        self._task, self._lanes, self._limit, self._prepare = task, lanes, limit, prepare
        self._buckets: OrderedDict[Any, _Bucket] = OrderedDict()
        self._full: deque[tuple[int, list[Entry], Block | None]] = deque()
        self._sent: deque[_Sent] = deque()
        self._settled: deque[OpenUnit] = deque()
        self._scored: deque[tuple[Block, list[Any]]] = deque()
        self._units: dict[int, float] = {}
        self.nbytes = 0.0
        """Bytes of units that wait for a batch, and of windows in buckets and lanes."""
        self.seconds = 0.0
        """Time in the lanes."""

    def place(self, unit: "OpenUnit", window: Window, ready: Any) -> None:
        """Put a prepared window into its bucket."""
        if unit.error is not None:
            return
        key = (unit.step, window.bucket)
        bucket = self._buckets.get(key)
        if bucket is not None and bucket.weight + window.weight > self._limit:
            self._full.append((unit.step, self._buckets.pop(key).entries, None))
            bucket = None
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
        bucket.entries.append((unit, window, ready))
        bucket.weight += window.weight
        unit.open += 1
        self.nbytes += nbytes_of(ready)

    def block(self, block: "Block") -> None:
        """Cut a block into batches."""
        size = max(int(self._limit), 1)
        for start in range(0, len(block), size):
            self._full.append((0, [], block.cut(start, start + size)))
        self.nbytes += block.nbytes

    def whole(self, unit: "OpenUnit") -> None:
        """All windows of the unit's step are in, or it failed before."""
        unit.whole = True
        if id(unit) not in self._units:
            self._units[id(unit)] = unit.nbytes
            self.nbytes += unit.nbytes
        self._go_on(unit)

    def settled(self) -> "list[OpenUnit]":
        """Units whose step is over since the last call."""
        over = list(self._settled)
        self._settled.clear()
        return over

    def scored(self) -> "list[tuple[Block, list[Any]]]":
        """Blocks that are done since the last call, with what became of their items."""
        done = list(self._scored)
        self._scored.clear()
        return done

    def step(self, below: float) -> bool:
        """Get on by one batch, so that what waits holds no more than `below` bytes; with 0, until nothing waits.

        False where there is nothing to do.
        """
        last = below == 0.0
        if self._can_send(last=last):
            return self._send(*self._full.popleft()) if self._full else self._flush()
        over = last or self.nbytes > below
        if self._sent and (self._full or over):
            return self._take_in()
        if self._buckets and over:
            return self._flush()
        return bool(self._settled or self._scored)

    def waits(self, below: float) -> bool:
        """Whether `step` would wait for a batch that is in a lane."""
        last = below == 0.0
        if self._settled or self._scored or self._can_send(last=last):
            return False
        wanted = bool(self._sent) and (bool(self._full) or last or self.nbytes > below)
        return wanted and not self._sent[0].future.done()

    def _can_send(self, *, last: bool) -> bool:
        """Whether a batch can go at once: a full one; of the last ones also one that nothing on its way can fill up."""
        if len(self._sent) >= DEPTH:
            return False
        ripe = last and bool(self._buckets) and all(sent.step >= self._earliest()[0] for sent in self._sent)
        return bool(self._full) or ripe

    def _earliest(self) -> Any:
        return min(self._buckets, key=lambda key: int(key[0]))

    def _flush(self) -> bool:
        """The oldest bucket of the earliest step goes partly full."""
        key = self._earliest()
        return self._send(key[0], self._buckets.pop(key).entries, None)

    def _send(self, step: int, entries: list[Entry], block: "Block | None") -> bool:
        entries = [entry for entry in entries if entry[0].error is None or self._leave(entry)]
        if block is not None:
            self._sent.append(_Sent(step, [], block, self._lanes.block(block.data, block.meta)))
        elif entries:
            self._sent.append(_Sent(step, entries, None, self._lanes.windows(step, [e[2] for e in entries])))
        return True

    def _leave(self, entry: Entry) -> bool:
        """A window of a unit that has failed meanwhile does not go through the network. Returns False."""
        unit, _, ready = entry
        self.nbytes -= nbytes_of(ready)
        unit.open -= 1
        self._go_on(unit)
        return False

    def _take_in(self) -> bool:
        """Wait for the batch that was sent first, and give its outputs to their units."""
        sent = self._sent.popleft()
        ran = sent.future.result()
        self.seconds += ran.seconds
        if sent.block is not None:
            self.nbytes -= sent.block.nbytes
            self._scored.append((sent.block, ran.results))
            return True
        for (unit, window, ready), result in zip(sent.entries, ran.results, strict=True):
            self.nbytes -= nbytes_of(ready)
            unit.open -= 1
            if isinstance(result, ItemError):
                unit.error = unit.error or result
            else:
                self._collect(unit, sent.step, window, result)
        for unit in {id(entry[0]): entry[0] for entry in sent.entries}.values():
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
        self.nbytes -= self._units.pop(id(unit))
        self._settled.append(unit)

    def _collect(self, unit: "OpenUnit", step: int, window: Window, outputs: dict[str, Any]) -> None:
        if unit.error is not None:
            return
        try:
            with blamed("task"):
                self._task.collect(unit.state, step, window, outputs)
        except ItemError as error:
            unit.error = error
