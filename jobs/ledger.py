"""Which shards of a run are still to be done: told by receipts and attempts in storage, for any executor."""

import threading
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..lake.errors import EnvironmentFailure
from ..lake.layout import Lake
from . import receipts
from .plan import Plan
from .receipts import Receipt

RETURNS = 5
"""How often a shard may come back for reasons of the environment before the run stops."""
PAUSE = 0.5
"""Seconds to wait after the environment failed once; doubled each time."""


@dataclass(frozen=True)
class Shard:
    """What goes to a worker: which units, and nothing of their data."""

    shard: str
    units: pa.Table
    """Rows of the plan: a table travels and is cut without an object per value."""
    session: str
    in_process: bool
    alone: bool = False
    """Whether its worker does nothing else meanwhile, because one died that had it: if it dies again, it is known of what."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its units as dictionaries."""
        return list(self.units.to_pylist())


class Ledger:
    """Hands out the shards of a run, each until it has a receipt."""

    def __init__(self, lake: Lake, plan: Plan, *, in_process: bool) -> None:
        self.lake, self.plan, self.in_process = lake, plan, in_process
        self.session = uuid.uuid4().hex
        """Tells the attempts of this driver from those of others."""
        self.limit = int(plan.job["resources"]["attempts"])
        self._lock = threading.RLock()  # in one process, one thread takes what another receives
        self._units: dict[str, list[int]] = {}
        for number, shard in enumerate(plan.units["shard"].to_pylist()):
            self._units.setdefault(shard, []).append(number)
        self.done: dict[str, Receipt] = {}
        for receipt in receipts.read_all(lake, plan.run_id).values():
            self._close(receipt)
        self._deaths = receipts.deaths(lake, plan.run_id, self.session)
        """Of each shard that a worker died of, or with: how often it was alone."""
        open_shards = [shard for shard in sorted(self._units) if shard not in self.done]
        self._waiting = deque(shard for shard in open_shards if not self._suspect(shard))
        self._suspects = deque(shard for shard in open_shards if self._suspect(shard))
        self._alone: set[str] = set()
        self._returns: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Shards that are with no worker."""
        return len(self._waiting) + len(self._suspects)

    @property
    def pause(self) -> float:
        """Seconds to wait before work goes on after the environment failed."""
        worst = max(self._returns.values(), default=0)
        return PAUSE * 2 ** (worst - 1) if worst else 0.0

    @property
    def finished(self) -> bool:
        """Whether every shard, or its children, has a receipt."""
        return all(shard in self.done for shard in self._units)

    @property
    def units_done(self) -> int:
        """Units that are in a receipt."""
        return sum(r.scored + r.failed for r in self.done.values())

    def take(self, *, idle: bool = False) -> Shard | None:
        """The next shard to hand out; None where all are done or with a worker.

        What a worker died of or with comes last, and to an `idle` one, which must take no other until it is done.
        """
        with self._lock:
            while self._waiting:
                shard = self._waiting.popleft()
                if shard not in self.done:
                    return self._shard(shard)
            while idle and self._suspects:
                shard = self._suspects.popleft()
                deaths, single = self._deaths.get(shard, 0), len(self._units[shard]) == 1
                if shard in self.done:
                    continue
                if not single and deaths >= (1 if "-" in shard else self.limit):
                    self._split(shard)
                    continue
                self._alone.add(shard)
                refused = f"its worker died {deaths} times on it alone; try it with --workers 0 --only"
                return self._shard(shard, alone=True, refused=refused if single and deaths >= self.limit else None)
            return None

    def _shard(self, shard: str, *, alone: bool = False, refused: str | None = None) -> Shard:
        units = self.plan.units.take(pa.array(self._units[shard])).combine_chunks()
        if refused is not None:
            for name, value in (("refused_code", "worker_died"), ("refused", refused)):
                units = units.set_column(units.schema.get_field_index(name), name, pa.array([value], pa.string()))
        return Shard(shard, units, self.session, self.in_process, alone)

    def _suspect(self, shard: str) -> bool:
        return shard in self._deaths or "-" in shard

    def _put_back(self, shard: str) -> None:
        (self._suspects if self._suspect(shard) else self._waiting).append(shard)

    def receive(self, receipt: Receipt) -> None:
        """A shard is done."""
        with self._lock:
            self._close(receipt)

    def died(self, handed: list[str]) -> int:
        """A worker died that had been handed these shards: those that it had begun are suspect, all go back.

        Returns how many it had begun, or done after all; 0: it died of something else.
        """
        moved = 0
        stored = receipts.read_all(self.lake, self.plan.run_id)
        for shard, number in receipts.open_attempts(self.lake, self.plan.run_id, self.session):
            if shard in handed and shard not in stored:
                receipts.close_attempt(self.lake, self.plan.run_id, shard, number, "died")
                self._deaths[shard] = self._deaths.get(shard, 0) + (shard in self._alone)
                moved += 1
        for shard in handed:
            if shard in stored:
                self._close(stored[shard])
                moved += 1
            else:
                self._put_back(shard)
        return moved

    def give_up(self) -> None:
        """This driver ends: what it had begun and not finished is not held against any shard."""
        for shard, number in receipts.open_attempts(self.lake, self.plan.run_id, self.session):
            if shard not in self.done:
                receipts.close_attempt(self.lake, self.plan.run_id, shard, number, "returned")

    def returned(self, shard: str, reason: str) -> None:
        """The environment failed under a shard: it goes back, and if that lasts, the run stops with the reason."""
        for begun, number in receipts.open_attempts(self.lake, self.plan.run_id, self.session):
            if begun == shard:
                receipts.close_attempt(self.lake, self.plan.run_id, shard, number, "returned")
        with suppress(FileNotFoundError):  # its receipt may be there, and only the word of it was lost
            self.receive(receipts.read_one(self.lake, self.plan.run_id, shard))
            return
        self._returns[shard] = self._returns.get(shard, 0) + 1
        if self._returns[shard] >= RETURNS:
            raise EnvironmentFailure(f"shard {shard} came back {RETURNS} times: {reason}; mend that, then run again")
        self._put_back(shard)

    def _split(self, shard: str) -> None:
        units = self._units[shard]
        half = len(units) // 2
        children = {f"{shard}-0": units[:half], f"{shard}-1": units[half:]}
        kept = receipts.put(self.lake, Receipt(self.plan.run_id, shard, 0, children=children))
        self._close(kept)
        self._suspects.extendleft(sorted(kept.children or (), reverse=True))

    def _close(self, receipt: Receipt) -> None:
        self.done[receipt.shard] = receipt
        for child, units in (receipt.children or {}).items():
            self._units.setdefault(child, list(units))
