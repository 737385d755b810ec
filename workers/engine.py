"""`work(shards) -> receipts`: read ahead, compute, write, in three overlapping stages.

What goes into a batch is decided by one thread, in the order of the shard, from counts and bytes that do not depend on
timing: so a shard gives the same results on any worker, in any order of shards, after any number of restarts.
"""

import threading
import time
from collections.abc import Iterator
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
from .batches import Batcher
from .models.runtime import Networks
from .parts import ShardWriter
from .queue import ByteQueue, Closed
from .read import Reader


@dataclass
class OpenUnit:
    """A unit on its way through the engine."""

    row: dict[str, Any]
    """Its row of the plan."""
    data: Unit | None = None
    state: Any = None
    step: int = 0
    todo: list[tuple[Window, Any]] = field(default_factory=list)
    """Prepared windows of the step that are not in a bucket yet."""
    open: int = 0
    """Windows of the step that were not collected yet."""
    error: ItemError | None = None

    @property
    def nbytes(self) -> float:
        """Bytes that it holds."""
        return float(sum(a.nbytes for a in self.data.data.values())) if self.data else 0.0


class Engine:
    """One model on one device; scores the shards that it is given."""

    def __init__(self, lake: Lake, plan: Plan, task: Task, networks: Networks) -> None:
        self.lake, self.plan, self.task, self.networks = lake, plan, task, networks
        self._budget = float(plan.job["resources"]["memory_gb"]) * 2**30 / 2

    def work(self, shards: Iterator[Shard]) -> Iterator[Receipt]:
        """Score shards, in the order in which they come, and yield the receipt of each that is in storage.

        Raises EnvironmentFailure where storage or the node fails; what fails with an item is in its row.
        """
        ahead: ByteQueue[Any] = ByteQueue(self._budget)
        written: ByteQueue[Any] = ByteQueue(float("inf"))
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
            ahead.close()
            written.close()
        for stage in stages:
            stage.join()

    def _read(self, shards: Iterator[Shard], ahead: ByteQueue[Any]) -> None:
        reader = Reader(self.lake)
        for shard in shards:
            begun = time.perf_counter()
            ahead.put(("begin", shard))
            reader.ahead(shard.units)
            for row in shard.units:
                unit = self._open(reader, row)
                ahead.put(("unit", unit), unit.nbytes)
            ahead.put(("end", time.perf_counter() - begun))
        ahead.put(("stop", None))

    def _open(self, reader: Reader, row: dict[str, Any]) -> OpenUnit:
        unit = OpenUnit(row)
        try:
            if row["refused_code"]:
                raise ItemError(row["refused_code"], row["refused"])
            unit.data = reader.read(row)
            unit.state = self.task.begin(unit.data)
            self._prepare(unit)
        except ItemError as error:
            unit.error = error
        return unit

    def _prepare(self, unit: OpenUnit) -> None:
        """Cut and prepare the windows of the unit's step; steps without windows are passed over."""
        if unit.data is None:
            return
        while unit.step < len(self.task.steps):
            windows = self.task.windows(unit.state, unit.step)
            for window in windows:
                raw = {role: unit.data.data[role][region] for role, region in window.regions.items()}
                unit.todo.append((window, self.task.prepare(unit.state, window, raw)))
            if windows:
                unit.open = len(windows)
                return
            unit.step += 1

    def _compute(self, ahead: ByteQueue[Any], written: ByteQueue[Any]) -> Iterator[Receipt]:
        """What was read goes through the network; receipts come back through the same queue, and out."""
        reading, open_shards = True, 0
        while reading or open_shards:
            kind, value = ahead.get()
            if kind == "begin":
                shard, batcher = value, Batcher(self.task, self.networks, self.plan.batch)
                number = receipts.mark_attempt(
                    self.lake, self.plan.run_id, shard.shard, in_process=shard.in_process, session=shard.session
                )
                crash.point("mid-shard")
                written.put(("begin", (shard, number)))
                begun = time.perf_counter()
            elif kind == "unit":
                self._enter(value, batcher, written)
            elif kind == "end":
                self._drain(batcher, written)
                seconds = {"read": value, "compute": batcher.seconds, "shard": time.perf_counter() - begun}
                written.put(("end", seconds))
                open_shards += 1
            elif kind == "receipt":
                open_shards -= 1
                yield value
            else:
                reading = False
        written.put(("stop", None))

    def _enter(self, unit: OpenUnit, batcher: Batcher, written: ByteQueue[Any]) -> None:
        batcher.add(unit)
        self._advance(batcher, written, below=self._budget)

    def _drain(self, batcher: Batcher, written: ByteQueue[Any]) -> None:
        self._advance(batcher, written, below=0.0)

    def _advance(self, batcher: Batcher, written: ByteQueue[Any], below: float) -> None:
        """Compute full batches, and partly full ones, oldest first, until unfinished units hold no more than `below`."""
        while True:
            for unit in batcher.settled():
                if unit.error is None:
                    unit.step += 1
                    try:
                        self._prepare(unit)
                    except ItemError as error:
                        unit.error = error
                if unit.error is None and unit.step < len(self.task.steps):
                    batcher.add(unit)
                    continue
                written.put(("unit", (unit.row, self._finish(unit))))
                unit.data = unit.state = None
            if not batcher.compute(partly=batcher.nbytes > below or (below == 0.0 and batcher.waiting)):
                return

    def _finish(self, unit: OpenUnit) -> Result | ItemError:
        if unit.error is not None:
            return unit.error
        try:
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
            except BaseException as error:  # noqa: BLE001 - raised again in join
                self._error = error
                for queue in on_error:
                    queue.close()

        self._thread = threading.Thread(target=run, name=f"diastole-{name}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the stage and raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
