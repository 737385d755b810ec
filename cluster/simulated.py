"""Made work on a made clock: the real dispatcher, ledger and receipts, with workers that only wait, fail and write.

What needs a thousand workers for a day to be seen is seen in minutes: shards take made times, workers die and come
back, storage fails, all by a seed. Attempts, parts and receipts are real files.
"""

import heapq
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..jobs import receipts
from ..jobs.dispatch import Dispatcher
from ..jobs.ledger import Ledger, Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Part, Receipt
from ..lake import predictions
from ..lake.layout import Lake

T = TypeVar("T")

RESTART = 10.0
"""Seconds on the made clock until a worker that died is there again."""


@dataclass(frozen=True)
class Work:
    """How long shards take and what goes wrong. Shares are of attempts."""

    workers: int
    seed: int = 0
    seconds: float = 60.0
    """Median of a shard; the times are log-normal."""
    spread: float = 0.3
    """Standard deviation of the logarithm."""
    slow: float = 0.0
    """Share that takes `times` as long, because of the worker and not of the shard."""
    times: float = 20.0
    deaths: float = 0.0
    returns: float = 0.0
    poisoned: frozenset[str] = frozenset()
    """Items that kill every worker."""


@dataclass
class Simulated:
    """What a simulated run did."""

    seconds: float = 0.0
    """On the made clock."""
    busy: float = 0.0
    """Seconds of work, summed over the attempts whose receipt counted: over the workers, it is the least that a run can take."""
    driver_seconds: float = 0.0
    """Processor time in dispatcher and ledger."""
    events: dict[str, int] = field(
        default_factory=lambda: {"done": 0, "died": 0, "returned": 0, "copies": 0, "late": 0}
    )


@dataclass
class _Worker:
    name: int
    mailbox: deque[Shard] = field(default_factory=deque)
    number: int = 0
    """Of the attempt that it is at."""


def run_simulated(
    lake: Lake, ledger: Ledger, work: Work, write: Callable[[Shard, int], tuple[Part, ...]], *, copies: bool = True
) -> Simulated:
    """Score all shards that the ledger hands out; `write` gives the parts of a shard and an attempt, as a worker would."""
    return _Run(lake, ledger, work, write, copies=copies).run()


class _Run:
    def __init__(
        self, lake: Lake, ledger: Ledger, work: Work, write: Callable[[Shard, int], tuple[Part, ...]], *, copies: bool
    ) -> None:
        self._lake, self._ledger, self._work, self._write = lake, ledger, work, write
        self._now, self._order = 0.0, count()
        self._dispatcher: Dispatcher[int] = Dispatcher(ledger, lambda: self._now, copies=copies)
        self._workers: dict[int, _Worker] = {}
        self._events: list[tuple[float, int, str, int, float]] = []
        """When, a number that makes order, what, of which worker, after how many seconds of work."""
        self._did = Simulated()

    def run(self) -> Simulated:
        for name in range(self._work.workers):
            self._join(name)
        while not self._ledger.finished:
            self._fill()
            # An idle worker looks once a second for what others are late with.
            if self._dispatcher.looks_for_late and (not self._events or self._events[0][0] > self._now + 1.0):
                self._now += 1.0
                continue
            self._now, _, what, name, seconds = heapq.heappop(self._events)
            if what == "join":
                self._join(name)
            else:
                self._end(self._workers[name], what, seconds)
        self._did.seconds = self._now
        return self._did

    def _join(self, name: int) -> None:
        self._workers[name] = _Worker(name)
        self._timed(self._dispatcher.join, name)

    def _fill(self) -> None:
        for name, shard in self._timed(lambda: list(self._dispatcher.fill())):
            worker = self._workers[name]
            worker.mailbox.append(shard)
            self._did.events["copies"] += shard.copy
            if len(worker.mailbox) == 1:
                self._begin(worker)

    def _begin(self, worker: _Worker) -> None:
        """A worker begins with the first shard that it has, and how that ends is drawn."""
        shard, work = worker.mailbox[0], self._work
        worker.number = receipts.mark_attempt(
            self._lake,
            self._ledger.plan.run_id,
            shard.shard,
            in_process=False,
            session=shard.session,
            alone=shard.alone,
        )
        chance = random.Random(f"{work.seed}/{shard.shard}/{worker.number}")  # noqa: S311 - no secret
        seconds = work.seconds * chance.lognormvariate(0.0, work.spread)
        seconds *= work.times if chance.random() < work.slow else 1.0
        luck = chance.random()
        what = "died" if luck < work.deaths else "returned" if luck < work.deaths + work.returns else "done"
        if work.poisoned and work.poisoned.intersection(row["item_id"] for row in shard.rows if not row["refused"]):
            what = "died"
        seconds *= 1.0 if what == "done" else chance.random()
        heapq.heappush(self._events, (self._now + seconds, next(self._order), what, worker.name, seconds))

    def _end(self, worker: _Worker, what: str, seconds: float) -> None:
        self._did.events[what] += 1
        if what == "died":
            del self._workers[worker.name]
            self._timed(self._dispatcher.died, worker.name)
            heapq.heappush(self._events, (self._now + RESTART, next(self._order), "join", worker.name, 0.0))
            return
        if what == "returned":  # with all that the worker read ahead
            while worker.mailbox:
                shard = worker.mailbox.popleft()
                self._timed(self._dispatcher.returned, worker.name, shard.shard, "made")
            return
        shard = worker.mailbox.popleft()
        failed = shard.units.num_rows - shard.units["refused_code"].null_count
        receipt = Receipt(
            self._ledger.plan.run_id,
            shard.shard,
            worker.number,
            self._write(shard, worker.number),
            scored=shard.units.num_rows - failed,
            failed=failed,
            seconds={"shard": seconds},
        )
        news = self._timed(self._dispatcher.done, worker.name, receipts.put(self._lake, receipt))
        self._did.events["late"] += not news
        self._did.busy += seconds if news else 0.0
        if worker.mailbox:
            self._begin(worker)

    def _timed(self, what: Callable[..., T], *given: Any) -> T:
        begun = time.thread_time()
        try:
            return what(*given)
        finally:
            self._did.driver_seconds += time.thread_time() - begun


def made_rows(plan: Plan, units: pa.Table, columns: pa.Schema) -> pa.Table:
    """The item rows of units as a worker would write them; of the task's `columns`, numbers are made and the rest is null."""
    schema, count_of = predictions.item_schema(columns), units.num_rows
    refused = units["refused_code"]
    model, version = plan.model.split("@")
    fixed = {"model_digest": plan.model_digest, "spec_digest": plan.spec_digest, "run_id": plan.run_id}
    fixed |= {"model": model, "model_version": version, "device": "made", "versions": "made"}
    given = {name: units[name].combine_chunks() for name in ("item_id", "input_digest", "attempt")}
    given |= {name: pa.repeat(value, count_of) for name, value in fixed.items()}
    given |= {"status": pc.if_else(pc.is_null(refused), "scored", "failed"), "error_code": refused}
    given |= {"error": units["refused"], "n_rows": pa.array(np.zeros(count_of, np.int64))}
    given |= {"scored_at": pa.repeat(datetime.now(UTC), count_of)}
    given |= {f.name: np.random.default_rng().random(count_of) for f in columns if pa.types.is_floating(f.type)}
    return pa.table([_column(given.get(f.name), f.type, count_of) for f in schema], schema=schema)


def _column(values: Any, kind: pa.DataType, count_of: int) -> Any:
    if values is None:
        return pa.nulls(count_of, kind)
    return pa.array(values, kind) if isinstance(values, np.ndarray) else values.cast(kind)
