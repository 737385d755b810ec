"""Ray: an actor per worker, each with a mailbox of one, so that it reads the next shard while it computes this one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import ray

from ..jobs import receipts
from ..jobs.ledger import PAUSE, RETURNS, Ledger, Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..lake.errors import DiastoleError, EnvironmentFailure, ModelError
from ..lake.layout import Lake

ALLOWED = "DIASTOLE_ALLOW_CODE"
START_SECONDS = 300.0
"""How long the first worker may take to start."""

Reply = tuple[str, str, str]
"""(done|returned|stopped, shard, reason)."""


class Worker:
    """What runs in an actor. Shards come in, replies go out; data goes between the worker and storage only."""

    def __init__(self, lake_root: str, run_id: str, threads: int, allowed: str) -> None:
        os.environ[ALLOWED] = allowed  # a Ray that runs already has the environment of whoever started it
        self._given: Queue[Shard] = Queue()
        self._replies: Queue[Reply] = Queue()
        self._open = (lake_root, run_id, threads)

    def start(self) -> str | None:
        """Load the model. What is wrong with it, or None."""
        from ..workers.worker import open_engine

        try:
            self._engine = open_engine(*self._open)
        except DiastoleError as error:
            return str(error)
        Thread(target=self._run, name="work", daemon=True).start()
        return None

    def give(self, shard: Shard) -> None:
        """Put a shard into the mailbox."""
        self._given.put(shard)

    def reply(self) -> Reply:
        """Wait for the next shard's end."""
        return self._replies.get()

    def _run(self) -> None:
        failures = 0
        while True:
            begun: list[str] = []
            over = Event()
            try:
                for receipt in self._engine.work(self._shards(begun, over), over.set):
                    begun.remove(receipt.shard)
                    self._replies.put(("done", receipt.shard, ""))
                    failures = 0
            except EnvironmentFailure as error:
                failures += 1
                time.sleep(min(30.0, PAUSE * 2 ** (failures - 1)))
                for shard in begun:
                    self._replies.put(("returned", shard, str(error)))
            except Exception as error:  # noqa: BLE001 - told to the driver, which stops the run with it
                self._replies.put(("stopped", ",".join(begun), f"{type(error).__name__}: {error}"))
                return

    def _shards(self, begun: list[str], over: Event) -> Iterator[Shard]:
        """What comes through the mailbox, until the work on it is over; what comes later is for the next."""
        while not over.is_set():
            with suppress(Empty):
                shard = self._given.get(timeout=0.2)
                begun.append(shard.shard)
                yield shard


class Crew:
    """The actors of one run: shards are given out, deaths are blamed on what had begun, the dead are replaced."""

    def __init__(self, lake: Lake, plan: Plan, ledger: Ledger, workers: int, threads: int) -> None:
        self._lake, self._plan, self._ledger = lake, plan, ledger
        self._needs = {"CPU": 1.0, "GPU": 1.0 if plan.device == "cuda" else 0.0}
        settings: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._needs["GPU"], "max_concurrency": 3}
        self._kind: Any = ray.remote(max_restarts=0, max_task_retries=0, **settings)(Worker)
        self._arguments = (lake.store.root, plan.run_id, threads, os.environ.get(ALLOWED, ""))
        self._workers = workers
        self._handed: dict[Any, list[str]] = {}
        self._waits: dict[Any, Any] = {}
        self._ready: set[Any] = set()
        """Those that have loaded the model: a shard given to one that Ray has no place for would wait for ever."""
        self._unexplained = 0
        self._alone: set[str] = set()
        self._made = time.perf_counter()
        self._begun: float | None = None

    def run(self, on_receipt: Callable[[Receipt], None]) -> float:
        """Score all shards that the ledger hands out. Raises ModelError, EnvironmentFailure.

        Returns when the first worker was ready for work, on time.perf_counter's clock.
        """
        try:
            for actor in [self._kind.remote(*self._arguments) for _ in range(min(self._workers, self._ledger.waiting))]:
                self._welcome(actor)
            while self._ledger.waiting or any(self._handed.values()):
                ready, _ = ray.wait(list(self._waits), num_returns=1, timeout=min(10.0, START_SECONDS))
                for reference in ready:
                    self._answer(reference, on_receipt)
                self._fill()
                self._check_started()
        finally:
            for actor in self._handed:
                ray.kill(actor)  # one that waits for a shard would stay, with its model, as long as Ray does
        return self._begun or time.perf_counter()

    def _check_started(self) -> None:
        """Ray waits without an end for what it does not have."""
        if not self._ready and time.perf_counter() - self._made > START_SECONDS:
            there: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray has no type for it
            wanted = ", ".join(f"{n:g} {what}" for what, n in self._needs.items() if n)
            free = ", ".join(f"{n:g} {what}" for what, n in there.items() if what in self._needs)
            raise EnvironmentFailure(
                f"no worker started within {START_SECONDS:.0f} s: each needs {wanted}; free is {free or 'nothing'}"
            )

    def _welcome(self, actor: Any) -> None:
        self._made = time.perf_counter()
        self._handed[actor] = []
        self._waits[actor.start.remote()] = actor

    def _fill(self) -> None:
        """One shard for each worker, then one into each mailbox while there are enough for all.

        A shard that a worker died of, or with, is the only one that its worker has.
        """
        for held in (1, 2):
            for actor in self._ready:
                handed = self._handed[actor]
                plenty = held == 1 or self._ledger.waiting >= len(self._ready)
                if len(handed) >= held or not plenty or self._alone.intersection(handed):
                    continue
                if (shard := self._ledger.take(idle=not handed)) is not None:
                    actor.give.remote(shard)
                    handed.append(shard.shard)
                    self._alone |= {shard.shard} if shard.alone else set()

    def _answer(self, reference: Any, on_receipt: Callable[[Receipt], None]) -> None:
        actor = self._waits.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayActorError:
            self._ready.discard(actor)
            self._unexplained = 0 if self._ledger.died(self._handed.pop(actor)) else self._unexplained + 1
            if self._unexplained >= RETURNS:
                raise EnvironmentFailure(
                    f"{RETURNS} workers in a row died before they began a shard: too little memory for the model?"
                ) from None
            if self._ledger.waiting:
                self._welcome(self._kind.remote(*self._arguments))
            return
        if isinstance(answer, str):
            raise ModelError(answer)
        self._begun = self._begun or time.perf_counter()
        self._ready.add(actor)
        if answer is not None:
            self._take(actor, answer, on_receipt)
        self._waits[actor.reply.remote()] = actor

    def _take(self, actor: Any, answer: Reply, on_receipt: Callable[[Receipt], None]) -> None:
        kind, shard, reason = answer
        if kind == "stopped":
            raise EnvironmentFailure(f"a worker stopped at shard {shard}: {reason}")
        self._handed[actor].remove(shard)
        if kind == "returned":
            self._ledger.returned(shard, reason)
            return
        receipt = receipts.read_one(self._lake, self._plan.run_id, shard)
        self._ledger.receive(receipt)
        on_receipt(receipt)
