"""Who gets which shard: for any kind of workers, with any clock, told of what they do."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from math import inf
from os import environ
from typing import Generic, TypeVar

import pyarrow.compute as pc

from .ledger import Ledger, Shard
from .receipts import Receipt

LATE = 2.0
"""A worker is late that takes so many times as long as the median for its shard's cost, and at least so many seconds."""
LATE_SECONDS = float(environ.get("DIASTOLE_LATE_SECONDS", "10"))
HUNG = 20.0
"""An honest worker does not take so many times as long as the median for its shard's cost without getting on with it."""
DEADLINE = (300.0, 1800.0)
"""Seconds for that at least: longer than a store that does not answer is asked again; and at most, or where nothing is known."""
KNOWN = 3
"""Shards that must have ended before it is known how long one takes."""
REMEMBERED = 1001
"""Shards, the last that ended, that the median is of."""

W = TypeVar("W", bound=Hashable)


@dataclass
class _Hand:
    """What a worker has: the shard that it computes, and one more in its mailbox, which it reads meanwhile."""

    since: float
    """When it began with the first."""
    shards: dict[str, Shard] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)


class Dispatcher(Generic[W]):
    """Gives shards to workers that are ready; each event costs the same however many shards and workers there are.

    One shard for each worker, then one into each mailbox while there are enough for all. When nothing waits any more,
    what a worker is late with is given to an idle one as well.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic, *, copies: bool = True) -> None:
        self._ledger, self._clock, self._copies = ledger, clock, copies
        self._hands: dict[W, _Hand] = {}
        self._idle: dict[W, None] = {}  # sets that keep their order, so that a run can be repeated
        self._single: dict[W, None] = {}
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds by cost of shards that ended."""
        self._deadline: float | None = ledger.plan.job["resources"].get("deadline_s")

    @property
    def workers(self) -> int:
        """Workers that are ready."""
        return len(self._hands)

    @property
    def looks_for_late(self) -> bool:
        """Whether a worker has nothing to do, so that time alone can bring it something."""
        return bool(self._idle) and not self._ledger.waiting

    def join(self, worker: W) -> None:
        """A worker is ready for work."""
        self._hands[worker] = _Hand(self._clock())
        self._idle[worker] = None

    def fill(self) -> Iterator[tuple[W, Shard]]:
        """What is to be given to whom now."""
        while self._idle and (shard := self._ledger.take(idle=True)) is not None:
            yield self._give(next(iter(self._idle)), shard)
        while self._single and self._ledger.waiting >= len(self._hands) and (shard := self._ledger.take()) is not None:
            yield self._give(next(iter(self._single)), shard)
        if self._copies and self.looks_for_late:
            yield from self._late()

    def done(self, worker: W, receipt: Receipt) -> bool:
        """A worker's shard has its receipt. Whether that is news."""
        hand, now = self._hands[worker], self._clock()
        cost = hand.costs[receipt.shard]
        if cost > 0:
            self._rates.append((now - hand.since) / cost)
        self._let_go(worker, receipt.shard)
        return self._ledger.receive(receipt)

    def returned(self, worker: W, shard: str, reason: str) -> None:
        """The environment failed under a worker's shard. Raises EnvironmentFailure where that lasts."""
        copy = self._hands[worker].shards[shard].copy
        self._let_go(worker, shard)
        self._ledger.returned(shard, reason, copy=copy)

    def overdue(self) -> Iterator[tuple[W, float]]:
        """Workers that have been at a shard for longer than its deadline, and that, in seconds: they may hang."""
        now, least = self._clock(), self._deadline or DEADLINE[0]
        may_hang = [(w, hand) for w, hand in self._hands.items() if hand.shards and now - hand.since > least]
        if not may_hang:
            return
        usual = statistics.median(self._rates) if len(self._rates) >= KNOWN else inf
        for worker, hand in may_hang:
            slowest = HUNG * usual * max(next(iter(hand.costs.values())), 1.0)
            deadline = self._deadline or min(max(slowest, DEADLINE[0]), DEADLINE[1])
            if now - hand.since > deadline:
                yield worker, deadline

    @property
    def patience(self) -> float:
        """Seconds between two looks for workers that may hang."""
        return min(10.0, (self._deadline or DEADLINE[0]) / 4)

    def died(self, worker: W, outcome: str = "died") -> bool:
        """A worker died, ready or not, or was ended since it `hung`. Whether it had begun a shard, so that it may be of that."""
        return self._ledger.died(*self._leave(worker), outcome) > 0

    def lost(self, worker: W, reason: str) -> None:
        """A worker is gone with its node, which is no shard's fault. Raises EnvironmentFailure where that lasts."""
        self._ledger.lost(*self._leave(worker), reason)

    def _leave(self, worker: W) -> tuple[dict[str, Shard], list[str]]:
        """A worker is gone: the shards that it had, and which of them were copies."""
        self._idle.pop(worker, None)
        self._single.pop(worker, None)
        hand = self._hands.pop(worker, None)
        shards = hand.shards if hand else {}
        return shards, [name for name, shard in shards.items() if shard.copy]

    def _give(self, worker: W, shard: Shard) -> tuple[W, Shard]:
        hand = self._hands[worker]
        if not hand.shards:
            hand.since = self._clock()
        hand.shards[shard.shard] = shard
        hand.costs[shard.shard] = float(pc.sum(shard.units["cost"]).as_py() or 0.0)
        self._sort(worker)
        return worker, shard

    def _let_go(self, worker: W, shard: str) -> None:
        hand = self._hands[worker]
        del hand.shards[shard], hand.costs[shard]
        hand.since = self._clock()
        self._sort(worker)

    def _sort(self, worker: W) -> None:
        """A worker is idle, may have one more in its mailbox, or neither."""
        self._idle.pop(worker, None)
        self._single.pop(worker, None)
        shards = self._hands[worker].shards
        if not shards:
            self._idle[worker] = None
        elif len(shards) == 1 and not any(shard.alone for shard in shards.values()):
            self._single[worker] = None

    def _late(self) -> Iterator[tuple[W, Shard]]:
        """Copies, for idle workers, of what others are late with: first of what began first."""
        if len(self._rates) < KNOWN:
            return
        now = self._clock()
        may_be = [hand for hand in self._hands.values() if hand.shards and now - hand.since > LATE_SECONDS]
        if not may_be:
            return
        usual = statistics.median(self._rates)
        for hand in sorted(may_be, key=lambda hand: hand.since):
            if now - hand.since <= LATE * usual * next(iter(hand.costs.values())):
                continue
            for name in list(hand.shards):
                if self._idle and (copy := self._ledger.copy(name)) is not None:
                    yield self._give(next(iter(self._idle)), copy)
