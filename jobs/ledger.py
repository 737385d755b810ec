"""Which shards of a run are still to be done: told by receipts and attempts in storage, for any executor."""

import threading
import uuid
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..lake.errors import EnvironmentFailure, LakeError
from ..lake.layout import Lake
from . import receipts
from .plan import Plan
from .receipts import LOST, Receipt, Results

RETURNS = 5
"""How often a shard may come back for reasons of the environment before the run stops."""
PAUSE = 0.5
"""Seconds to wait after the environment failed once; doubled each time."""
WAITING, OUT, DONE, SPLIT = range(4)
"""What a shard is: with no worker, with one or two, with its rows in storage, replaced by its children."""


@dataclass(frozen=True)
class Shard:
    """What goes to a worker: which units, and nothing of their data."""

    shard: str
    units: pa.Table
    """Rows of the plan, as they lie there."""
    session: str
    """Tells the attempts of this driver from those of others, and those of a copy from those of the first."""
    in_process: bool
    alone: bool = False
    """Whether its worker does nothing else meanwhile, because one died that had it: if it dies again, it is known of what."""
    copy: bool = False
    """Whether another worker has it too, and is late with it."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its units as dictionaries."""
        return list(self.units.to_pylist())

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrow's own format: pickled, a table took ten times as long, and travelled with all that it was cut from.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.units.schema) as stream:
            stream.write_table(self.units)
        return _unpacked, (sink.getvalue().to_pybytes(), {**self.__dict__, "units": None})


def _unpacked(units: bytes, fields: dict[str, Any]) -> Shard:
    return Shard(**{**fields, "units": pa.ipc.open_stream(units).read_all()})


class Ledger:
    """Hands out the shards of a run, each until it has a receipt.

    It keeps some 20 bytes per shard: units of a shard lie together in the plan, and receipts stay in storage.
    """

    def __init__(self, lake: Lake, plan: Plan, *, in_process: bool) -> None:
        self.lake, self.plan, self.in_process = lake, plan, in_process
        self.session = uuid.uuid4().hex
        self.limit = int(plan.job["resources"]["attempts"])
        self.scored = self.failed = 0
        """Units that are in a receipt."""
        self.codes: Counter[str] = Counter()
        """Units that failed at scoring by code, over all receipts: without those that the plan had refused."""
        self.seconds: dict[str, float] = {}
        """Time of the stages, over all receipts."""
        self._lock = threading.RLock()  # in one process, one thread takes what another receives
        self._names, self._ends = _shards(plan)
        self._states = bytearray(len(self._names))
        self._children: dict[str, tuple[int, int]] = {}
        """Of a shard that came of a split: from which unit to which."""
        self._child_states: dict[str, int] = {}
        self._open = len(self._names)
        late = []  # children, which count once their parents are known
        for receipt in receipts.read_all(lake, plan.run_id):
            if "-" in receipt.shard:
                late.append(receipt)
            else:
                self._close(receipt)
        for receipt in sorted(late, key=lambda r: len(r.shard)):
            if receipt.shard in self._children:
                self._close(receipt)
        self._deaths = receipts.deaths(lake, plan.run_id, self.session, self.is_done)
        """Of each shard that a worker died of, or with: how often it was alone."""
        suspects = {s for s in self._deaths if not self.is_done(s)} | {s for s in self._children if not self.is_done(s)}
        self._suspects = deque(sorted(suspects))
        self._next, self._fresh = 0, self._states.count(WAITING) - sum("-" not in s for s in suspects)
        """The shard from which on none was handed out, and how many of those are to be."""
        self._back: deque[str] = deque()
        self._holders: dict[str, int] = {}
        """How many workers have a shard."""
        self._copied: set[str] = set()
        self._alone: set[str] = set()
        self._returns: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Shards that are with no worker."""
        return self._fresh + len(self._back) + len(self._suspects)

    @property
    def open(self) -> int:
        """Shards without a receipt."""
        return self._open

    @property
    def pause(self) -> float:
        """Seconds to wait before work goes on after the environment failed."""
        worst = max(self._returns.values(), default=0)
        return PAUSE * 2 ** (worst - 1) if worst else 0.0

    @property
    def finished(self) -> bool:
        """Whether every shard, or its children, has a receipt."""
        return self._open == 0

    @property
    def units_done(self) -> int:
        """Units that are in a receipt."""
        return self.scored + self.failed

    def is_done(self, shard: str) -> bool:
        """Whether a shard has a receipt."""
        return self._state(shard) in (DONE, SPLIT)

    def span(self, shard: str) -> tuple[int, int]:
        """From which unit of the plan to which."""
        if "-" in shard:
            return self._children[shard]
        number = int(shard)
        return int(self._ends[number - 1]) if number else 0, int(self._ends[number])

    def results(self) -> Results:
        """The receipts that hold rows, in the order of the shards."""
        names = self._names if not self._children else pa.array(self._with_rows(), pa.string())
        return Results(self.lake, self.plan.run_id, names)

    def take(self, *, idle: bool = False) -> Shard | None:
        """The next shard to hand out; None where all are done or with a worker.

        What a worker died of or with comes last, and to an `idle` one, which must take no other until it is done.
        """
        with self._lock:
            while (shard := self._unsuspected()) is not None:
                if self._state(shard) == WAITING:
                    return self._hand(shard)
            while idle and self._suspects:
                shard = self._suspects.popleft()
                if self._state(shard) != WAITING:
                    continue
                start, stop = self.span(shard)
                deaths, single = self._deaths.get(shard, 0), stop - start == 1
                hung = deaths > 0 and receipts.has_hung(self.lake, self.plan.run_id, shard)
                # Each try of one that hangs takes the deadline, and another time would seldom help it.
                if not single and deaths >= (1 if hung or "-" in shard else self.limit):
                    self._split(shard)
                    continue
                self._alone.add(shard)
                lost = deaths, hung
                return self._hand(shard, alone=True, lost=lost if single and deaths >= self.limit else None)
            return None

    def copy(self, shard: str) -> Shard | None:
        """A shard that a worker is late with, for another worker too: the first receipt counts.

        None where it is done, was copied before, or is suspect: that a worker died with it is reason not to risk another.
        """
        with self._lock:
            if self._state(shard) != OUT or shard in self._copied or self._suspect(shard):
                return None
            self._copied.add(shard)
            return self._hand(shard, copy=True)

    def receive(self, receipt: Receipt) -> bool:
        """A shard is done. Whether that is news: of two workers that had it, the second is told the first's receipt."""
        with self._lock:
            self._holders.pop(receipt.shard, None)
            return self._close(receipt)

    def died(self, handed: Collection[str], copies: Collection[str] = (), outcome: str = "died") -> int:
        """A worker died that had been handed these shards, some as copies: those that it had begun are suspect, all go back.

        `outcome` is `hung` where it was ended since it did not get on.
        Returns how many it had begun, or done after all; 0: it died of something else.
        """
        moved = 0
        for shard in handed:
            if self._is_stored(shard):
                moved += 1
                continue
            for number in receipts.open_attempts(self.lake, self.plan.run_id, shard, self._session(shard in copies)):
                receipts.close_attempt(self.lake, self.plan.run_id, shard, number, outcome)
                self._deaths[shard] = self._deaths.get(shard, 0) + (shard in self._alone)
                moved += 1
            self._put_back(shard)
        return moved

    def lost(self, handed: Collection[str], copies: Collection[str], reason: str) -> None:
        """A worker is gone with its node: all that it had goes back, and nothing is held against any of it.

        Raises EnvironmentFailure where a shard that was begun is lost again and again.
        """
        for shard in handed:
            copy = shard in copies
            if receipts.open_attempts(self.lake, self.plan.run_id, shard, self._session(copy)):
                self.returned(shard, reason, copy=copy)
            elif not self._is_stored(shard):
                self._put_back(shard)

    def give_up(self) -> None:
        """This driver ends: what it had begun and not finished is not held against any shard."""
        for shard in list(self._holders):
            self._close_attempts(shard, self.session)

    def hangs(self) -> None:
        """This process does not get on with what it has begun, and is about to end itself."""
        for shard in list(self._holders):
            self._close_attempts(shard, self.session, "hung")

    def returned(self, shard: str, reason: str, *, copy: bool = False) -> None:
        """The environment failed under a shard: it goes back, and if that lasts, the run stops with the reason."""
        self._close_attempts(shard, self._session(copy))
        if self._is_stored(shard):  # done by another, or here, and only the word of it was lost
            return
        self._returns[shard] = self._returns.get(shard, 0) + 1
        if self._returns[shard] >= RETURNS:
            raise EnvironmentFailure(f"shard {shard} came back {RETURNS} times: {reason}; mend that, then run again")
        self._put_back(shard)

    def _unsuspected(self) -> str | None:
        """The next shard that no worker died with: those that were never handed out, then those that came back."""
        while self._fresh and self._next < len(self._states):
            number, self._next = self._next, self._next + 1
            shard = self._names[number].as_py()
            if self._states[number] == WAITING and not self._suspect(shard):
                self._fresh -= 1
                return shard
        return self._back.popleft() if self._back else None

    def _hand(
        self, shard: str, *, alone: bool = False, copy: bool = False, lost: tuple[int, bool] | None = None
    ) -> Shard:
        """`lost` is of a unit that no worker came back from: how often, and whether they hung."""
        start, stop = self.span(shard)
        units = self.plan.units.slice(start, stop - start).combine_chunks()
        if lost is not None:
            deaths, hung = lost
            what = "did not get on" if hung else "died"
            reproduce = f"diastole run JOB --only {units['item_id'][0]} --retry --workers 0"
            refused = f"its worker {what} {deaths} times on it alone; look at it with: {reproduce}"
            for name, value in (("refused_code", LOST[hung]), ("refused", refused)):
                units = units.set_column(units.schema.get_field_index(name), name, pa.array([value], pa.string()))
        self._set(shard, OUT)
        self._holders[shard] = self._holders.get(shard, 0) + 1
        return Shard(shard, units, self._session(copy), self.in_process, alone, copy)

    def _session(self, copy: bool) -> str:
        return f"{self.session}/copy" if copy else self.session

    def _suspect(self, shard: str) -> bool:
        return shard in self._deaths or "-" in shard

    def _put_back(self, shard: str) -> None:
        """A worker has a shard no more; if it was the last that had it, it waits."""
        left = self._holders.pop(shard, 1) - 1
        if left:
            self._holders[shard] = left
        elif self._state(shard) == OUT:
            self._set(shard, WAITING)
            (self._suspects if self._suspect(shard) else self._back).append(shard)

    def _is_stored(self, shard: str) -> bool:
        """Whether a shard has its receipt in storage; then it is done here too."""
        if not self.is_done(shard):
            with suppress(FileNotFoundError):
                self.receive(receipts.read_one(self.lake, self.plan.run_id, shard))
        return self.is_done(shard)

    def _close_attempts(self, shard: str, session: str, outcome: str = "returned") -> None:
        for number in receipts.open_attempts(self.lake, self.plan.run_id, shard, session):
            receipts.close_attempt(self.lake, self.plan.run_id, shard, number, outcome)

    def _split(self, shard: str) -> None:
        start, stop = self.span(shard)
        half = (start + stop) // 2
        children = {f"{shard}-0": list(range(start, half)), f"{shard}-1": list(range(half, stop))}
        kept = receipts.put(self.lake, Receipt(self.plan.run_id, shard, 0, children=children))
        self._close(kept)
        self._suspects.extendleft(sorted(kept.children or (), reverse=True))

    def _close(self, receipt: Receipt) -> bool:
        if self.is_done(receipt.shard):
            return False
        self._set(receipt.shard, DONE if receipt.children is None else SPLIT)
        self._open -= 1
        self.scored, self.failed = self.scored + receipt.scored, self.failed + receipt.failed
        self.codes.update(receipt.codes or {})
        for stage, value in (receipt.seconds or {}).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value
        for child, units in (receipt.children or {}).items():
            self._children[child] = (units[0], units[-1] + 1)
            self._child_states[child] = WAITING
            self._open += 1
        return True

    def _with_rows(self) -> Iterator[str]:
        for number, state in enumerate(self._states):
            name = self._names[number].as_py()
            yield from [name] if state == DONE else self._leaves(name)

    def _leaves(self, shard: str) -> list[str]:
        halves = [child for child in (f"{shard}-0", f"{shard}-1") if child in self._children]
        return [leaf for child in halves for leaf in self._leaves(child)] if halves else [shard]

    def _state(self, shard: str) -> int:
        return self._child_states.get(shard, WAITING) if "-" in shard else self._states[int(shard)]

    def _set(self, shard: str, state: int) -> None:
        if "-" in shard:
            self._child_states[shard] = state
        else:
            self._states[int(shard)] = state


def _shards(plan: Plan) -> tuple[pa.StringArray, np.ndarray]:
    """Names of a plan's shards, and where the units of each end. Raises LakeError where they are out of order."""
    column = plan.units["shard"].combine_chunks()
    runs = pc.run_end_encode(column, run_end_type=pa.int64())
    names, ends = runs.values, runs.run_ends.to_numpy()
    if not names.cast(pa.int64()).equals(pa.array(np.arange(len(names)))):
        raise LakeError(
            f"the plan of run {plan.run_id[:8]} is not in the order of its shards; give the run up: --replan"
        )
    return names, ends
