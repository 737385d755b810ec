"""`work(shards) -> receipts`: read ahead, compute, write, in three overlapping stages.

What goes into a batch is decided by one thread, in the order of the shard, from counts and bytes that do not depend on
timing: so a shard gives the same results on any worker, in any order of shards, after any number of restarts.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..jobs import receipts
from ..jobs.ledger import Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..jobs.task import Result, Task, Unit, Window
from ..lake import crash
from ..lake.errors import ItemError
from ..lake.layout import Lake
from .batches import Batcher, blamed
from .models.runtime import Networks
from .parts import ShardWriter
from .queue import ByteQueue, Closed, Pulse, nbytes_of
from .read import Reader


@dataclass
class OpenUnit:
    """A unit on its way through the engine."""

    row: dict[str, Any]
    """Its row of the plan."""
    data: Unit | None = None
    state: Any = None
    step: int = 0
    todo: deque[Window] = field(default_factory=deque)
    """Windows of an ordered task that wait for the one before them."""
    open: int = 0
    """Windows in buckets."""
    whole: bool = False
    """Whether all windows of the step were put into buckets, or wait in `todo`."""
    error: ItemError | None = None

    @property
    def nbytes(self) -> float:
        """Bytes that it holds."""
        return nbytes_of(self.data.data) if self.data else 0.0


class Engine:
    """One model on one device; scores the shards that it is given."""

    def __init__(self, lake: Lake, plan: Plan, task: Task, networks: Networks) -> None:
        self.lake, self.plan, self.task, self.networks = lake, plan, task, networks
        self._budget = float(plan.job["resources"]["memory_gb"]) * 2**30 / 3
        """Bytes read ahead, in unfinished units, and waiting to be written: a third each."""
        self._pulse = Pulse()

    def work(self, shards: Iterator[Shard], stop: Callable[[], None] = lambda: None) -> Iterator[Receipt]:
        """Score shards, in the order in which they come, and yield the receipt of each that is in storage.

        `stop` is called when the work ends; a `shards` that waits for more must then end too. Raises
        EnvironmentFailure where storage or the node fails; what fails with an item is in its row.
        """
        ahead: ByteQueue[Any] = ByteQueue(self._budget, self._pulse)
        written: ByteQueue[Any] = ByteQueue(self._budget, self._pulse)
        writer = ShardWriter(self.lake, self.plan, self.task, self.networks, lambda r: ahead.put(("receipt", r)))
        stages = [
            _Stage("read", self._read, shards, ahead, on_error=(ahead,)),
            _Stage("write", writer.run, written, on_error=(ahead, written)),
        ]
        try:
            yield from self._compute(ahead, written)
        except Closed:
            pass  # another stage failed, and says why below
        finally:
            stop()
            ahead.close()
            written.close()
            for stage in stages:
                stage.wait()
        for stage in stages:
            stage.check()

    def _read(self, shards: Iterator[Shard], ahead: ByteQueue[Any]) -> None:
        reader = Reader(self.lake)
        for shard in shards:
            begun = time.perf_counter()
            ahead.put(("begin", shard))
            rows = shard.rows
            reader.ahead(rows)
            for row in rows:
                unit = OpenUnit(row)
                error = None
                try:
                    self._open(reader, unit, ahead)
                except ItemError as found:
                    error = found  # set by the computing thread, so that batches do not depend on when
                ahead.put(("whole", (unit, error)))
            ahead.put(("end", time.perf_counter() - begun))
        ahead.put(("stop", None))

    def _open(self, reader: Reader, unit: OpenUnit, ahead: ByteQueue[Any]) -> None:
        """Read a unit and send its windows, one by one, as they are prepared."""
        if unit.row["refused_code"]:
            raise ItemError(unit.row["refused_code"], unit.row["refused"])
        unit.data = reader.read(unit.row)
        with blamed("task"):
            unit.state = self.task.begin(unit.data)
        windows = self._windows(unit)
        ahead.put(("unit", unit), unit.nbytes)
        if self.task.ordered:
            unit.todo.extend(windows)
            return
        for window in windows:
            ready = self._prepared(unit, window)
            ahead.put(("window", (unit, window, ready)), nbytes_of(ready))

    def _windows(self, unit: OpenUnit) -> list[Window]:
        """The windows of the unit's step; steps without windows are passed over."""
        while unit.step < len(self.task.steps):
            with blamed("task"):
                windows = list(self.task.windows(unit.state, unit.step))
            if windows:
                return windows
            unit.step += 1
        return []

    def _prepared(self, unit: OpenUnit, window: Window) -> Any:
        if unit.data is None:
            raise ValueError("a unit without data has no windows")
        with blamed("task"):
            raw = {role: unit.data.data[role][region] for role, region in window.regions.items()}
            return self.task.prepare(unit.state, window, raw)

    def _compute(self, ahead: ByteQueue[Any], written: ByteQueue[Any]) -> Iterator[Receipt]:
        """What was read goes through the network; receipts come back through the same queue, and out."""
        reading, open_shards = True, 0
        while reading or open_shards:
            kind, value = ahead.get()
            if kind == "begin":
                shard, batcher = value, Batcher(self.task, self.networks, self.plan.batch, self._prepared)
                number = receipts.mark_attempt(
                    self.lake,
                    self.plan.run_id,
                    shard.shard,
                    in_process=shard.in_process,
                    session=shard.session,
                    alone=shard.alone,
                )
                crash.point("mid-shard")
                written.put(("begin", (shard, number)))
                begun = time.perf_counter()
            elif kind == "window":
                batcher.place(*value)
                self._advance(batcher, written, below=self._budget)
            elif kind == "whole":
                unit, unit.error = value
                batcher.whole(unit)
                self._advance(batcher, written, below=self._budget)
            elif kind == "end":
                self._advance(batcher, written, below=0.0)
                seconds = {"read": value, "compute": batcher.seconds, "shard": time.perf_counter() - begun}
                written.put(("end", seconds))
                open_shards += 1
            elif kind == "receipt":
                open_shards -= 1
                yield value
            elif kind == "stop":
                reading = False
        written.put(("stop", None))

    def _advance(self, batcher: Batcher, written: ByteQueue[Any], below: float) -> None:
        """Compute full batches, and partly full ones, oldest first, until what waits holds no more than `below`."""
        while True:
            for unit in batcher.settled():
                self._settle(unit, batcher, written)
            self._pulse.beat()
            if not batcher.compute(partly=batcher.nbytes > below or below == 0.0):
                return

    def _settle(self, unit: OpenUnit, batcher: Batcher, written: ByteQueue[Any]) -> None:
        """A unit's step is over: the next one, or its result."""
        try:
            if unit.error is None:
                unit.step += 1
                windows = self._windows(unit)
                if windows and self.task.ordered:
                    unit.todo.extend(windows)
                    batcher.whole(unit)
                    return
                if windows:
                    for window, ready in [(window, self._prepared(unit, window)) for window in windows]:
                        batcher.place(unit, window, ready)
                    batcher.whole(unit)
                    return
        except ItemError as error:
            unit.error = error
        result = self._finish(unit)
        written.put(("unit", (unit.row, result)), 0.0 if isinstance(result, ItemError) else result.nbytes)
        unit.data = unit.state = None

    def _finish(self, unit: OpenUnit) -> Result | ItemError:
        if unit.error is not None:
            return unit.error
        try:
            with blamed("task"):
                return self.task.finish(unit.state)
        except ItemError as error:
            return error


class _Stage:
    """A thread whose error closes the queues and is raised where the engine ends."""

    def __init__(self, name: str, target: Any, *args: Any, on_error: tuple[ByteQueue[Any], ...]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                target(*args)
            except Closed:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again in check
                self._error = error
                for queue in on_error:
                    queue.close()

        self._thread = threading.Thread(target=run, name=f"diastole-{name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the stage."""
        self._thread.join()

    def check(self) -> None:
        """Raise what the stage raised."""
        if self._error is not None:
            raise self._error
