"""`work(shards) -> receipts`: read ahead, compute in lanes, write, in overlapping stages.

What goes into a batch is decided by one thread, in the order of the shard, from counts and bytes that do not depend on
timing: so a shard gives the same results on any worker, in any order of shards, after any number of restarts. While the
last batches of a shard are in the lanes, those of the next one follow.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ..jobs import receipts
from ..jobs.ledger import Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..jobs.task import Result, Task, Unit, Window
from ..lake import crash
from ..lake.errors import ItemError
from ..lake.layout import Lake
from .batches import Batcher
from .blocks import Block, in_packs, read_blocks
from .faults import blamed, starved
from .gpu import Utilisation
from .lanes import Lanes
from .models.runtime import Networks
from .parts import ShardWriter
from .process import is_capped
from .queue import ByteQueue, Closed, Outbox, Pulse, nbytes_of
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


@dataclass
class OpenShard:
    """A shard on its way through the engine."""

    shard: Shard
    batcher: Batcher
    begun: float
    """time.perf_counter() when its first window came."""
    read_seconds: float = 0.0


AHEAD_BYTES = 128 * 2**20
"""What is read ahead at most: more hides no longer wait, and takes fresh memory, page by page."""


class Engine:
    """One model on one device; scores the shards that it is given."""

    def __init__(self, lake: Lake, plan: Plan, task: Task, networks: Networks) -> None:
        self.lake, self.plan, self.task, self.networks = lake, plan, task, networks
        self._budget = float(plan.job["resources"]["memory_gb"]) * 2**30 / 3
        """Bytes read ahead, in unfinished units, and waiting to be written: a third each at most."""
        self._pulse = Pulse()
        self._lanes = Lanes(task, networks)
        self._gpu = Utilisation.of(networks.device)

    def work(self, shards: Iterator[Shard], stop: Callable[[], None] = lambda: None) -> Iterator[Receipt]:
        """Score shards, in the order in which they come, and yield the receipt of each that is in storage.

        `stop` is called when the work ends; a `shards` that waits for more must then end too. Raises
        EnvironmentFailure where storage or the node fails; what fails with an item is in its row.
        """
        ahead: ByteQueue[Any] = ByteQueue(min(self._budget, AHEAD_BYTES), self._pulse)
        written: ByteQueue[Any] = ByteQueue(self._budget, self._pulse)
        writer = ShardWriter(self.lake, self.plan, self.task, self.networks, lambda r: ahead.put([("receipt", r)]))
        stages = [
            _Stage("read", self._read, shards, ahead, on_error=(ahead,)),
            _Stage("write", writer.run, written, on_error=(ahead, written)),
        ]
        ended = threading.Event()

        def on_end() -> None:
            ended.set()
            ahead.wake()

        self._lanes.on_end = on_end
        try:
            with self._gpu:
                yield from self._compute(ahead, Outbox(written), ended)
        except Closed:
            pass  # another stage failed, and says why below
        finally:
            stop()
            ahead.close()
            written.close()
            self._lanes.quiet()
            for stage in stages:
                stage.wait()
        for stage in stages:
            stage.check()

    def silent(self) -> float:
        """Seconds since any stage last got on: read, computed or wrote something."""
        return self._pulse.age()

    def starved(self, error: BaseException) -> bool:
        """Whether `work` may have ended with an error because there was no memory left: libraries say it in many ways."""
        return starved(error) or self._lanes.filled

    def _read(self, shards: Iterator[Shard], ahead: ByteQueue[Any]) -> None:
        reader, out = Reader(self.lake), Outbox(ahead)
        for shard in shards:
            begun = time.perf_counter()
            out.put(("begin", shard))
            out.flush()
            units = shard.units
            if self.task.blocks and (packed := in_packs(units)).any():
                self._read_blocks(units if packed.all() else units.filter(pa.array(packed)), out)
                units = units.filter(pa.array(~packed))
            rows = units.to_pylist()
            reader.ahead(rows)
            for row in rows:
                unit = OpenUnit(row)
                error = None
                try:
                    self._open(reader, unit, out)
                except ItemError as found:
                    error = found  # set by the computing thread, so that batches do not depend on when
                except MemoryError:
                    if not shard.alone or len(rows) > 1:
                        raise  # it may be what others have taken that is missing here
                    error = ItemError("out_of_memory", "it cannot be read into the memory, even alone")
                out.put(("whole", (unit, error)))
            out.put(("end", time.perf_counter() - begun))
            out.flush()
        out.put(("stop", None))
        out.flush()

    def _read_blocks(self, units: pa.Table, out: Outbox[Any]) -> None:
        for found in read_blocks(self.lake, units, self.plan.batch):
            if isinstance(found, Block):
                out.put(("block", found), found.nbytes)
            elif is_capped():
                with self._lanes.still():
                    again = list(read_blocks(self.lake, found[0], self.plan.batch))
                for one in again:
                    out.put(("block", one), one.nbytes) if isinstance(one, Block) else out.put(("lost", one))
            else:
                out.put(("lost", found))

    def _open(self, reader: Reader, unit: OpenUnit, out: Outbox[Any]) -> None:
        """Read a unit and send its windows, one by one, as they are prepared."""
        if unit.row["refused_code"]:
            raise ItemError(unit.row["refused_code"], unit.row["refused"])
        unit.data = self._data(reader, unit.row)
        with blamed("task"):
            unit.state = self.task.begin(unit.data)
        windows = self._windows(unit)
        weight = unit.nbytes  # it comes with the first window, or with the word that there is none
        if self.task.ordered:
            unit.todo.extend(windows)
            windows = []
        for window in windows:
            ready = self._prepared(unit, window)
            out.put(("window", (unit, window, ready)), weight + nbytes_of(ready))
            weight = 0.0
        if weight:
            out.put(("unit", unit), weight)

    def _data(self, reader: Reader, row: dict[str, Any]) -> Unit:
        """Read a unit. What cannot be read in a process with a bound of its memory is read once more while no batch
        computes: one that took all of it may be why.
        """
        try:
            return reader.read(row)
        except ItemError:
            if not is_capped():
                raise
        with self._lanes.still():
            again = Reader(self.lake)
            again.ahead([row])
            return again.read(row)

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

    def _compute(self, ahead: ByteQueue[Any], written: Outbox[Any], ended: threading.Event) -> Iterator[Receipt]:
        """What was read goes through the network; receipts come back through the same queue, and out.

        Shards overlap, each with batches of its own: one that has to wait for a lane does not keep another from going on.
        `ended` is set when a batch ends.
        """
        reading, unwritten, current = True, 0, None
        ending: list[OpenShard] = []
        came: deque[tuple[str, Any]] = deque()
        while reading or unwritten:
            ended.clear()  # before anything is looked at, so that no end is missed
            for opened in ending.copy():
                if self._advance(opened, written, below=0.0):
                    ending.remove(opened)
                    self._end(opened, written)
            waits = current is not None and not self._advance(current, written, below=self._budget)
            if waits or (came and came[0][0] == "begin" and len(ending) >= max(self.networks.lanes, 2)):
                ended.wait()  # of the shards that have begun, one must end: all are suspects if we die
                continue
            if not came:
                came.extend(ahead.get(unless=ended) or ())
                continue
            kind, value = came.popleft()
            if kind == "begin":
                current, unwritten = self._begin(value, written), unwritten + 1
            elif kind == "receipt":
                unwritten -= 1
                yield value
            elif kind == "stop":
                reading = False
            elif kind == "end" and current is not None:
                current.read_seconds = value
                ending.append(current)
                current = None
            elif current is not None:
                self._enter(kind, value, current, written)
        written.put(("stop", None))
        written.flush()

    def _begin(self, shard: Shard, written: Outbox[Any]) -> OpenShard:
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
        return OpenShard(shard, Batcher(self.task, self._lanes, self.plan.batch, self._prepared), time.perf_counter())

    def _enter(self, kind: str, value: Any, into: OpenShard, written: Outbox[Any]) -> None:
        """Take in what was read of a shard."""
        if kind == "window":
            into.batcher.place(*value)
        elif kind == "block":
            into.batcher.block(value)
        elif kind == "lost":
            written.put(("lost", (into.shard.shard, *value)))
        elif kind == "whole":
            unit, error = value
            unit.error = unit.error or error
            into.batcher.whole(unit)

    def _end(self, done: OpenShard, written: Outbox[Any]) -> None:
        passed, busy = time.perf_counter() - done.begun, self._gpu.since(done.begun)
        seconds = {"read": done.read_seconds, "compute": done.batcher.seconds, "shard": passed}
        if busy is not None:
            seconds |= {"gpu": busy * passed, "gpu_watched": passed}
        written.put(("end", (done.shard.shard, seconds)))
        written.flush()

    def _advance(self, opened: OpenShard, written: Outbox[Any], *, below: float) -> bool:
        """Send and take in batches until what waits holds no more than `below`, and pass on what is done.

        True when that is so; False where that would mean to wait for a lane.
        """
        batcher, shard = opened.batcher, opened.shard.shard
        while True:
            for unit in batcher.settled():
                self._settle(unit, batcher, shard, written)
            for block, results in batcher.scored():
                written.put(("block", (shard, block.units, results)))
            self._pulse.beat()
            if batcher.waits(below):
                return False
            if not batcher.step(below):
                return True

    def _settle(self, unit: OpenUnit, batcher: Batcher, shard: str, written: Outbox[Any]) -> None:
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
        weight = 0.0 if isinstance(result, ItemError) else result.nbytes
        written.put(("unit", (shard, unit.row, result)), weight)
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
