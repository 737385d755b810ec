"""Ray: an actor per worker, each with a mailbox of one, so that it reads the next shard while it computes this one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import ray

from ..jobs.dispatch import Dispatcher
from ..jobs.ledger import PAUSE, RETURNS, Ledger, Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..lake.errors import DiastoleError, EnvironmentFailure, ModelError, UserError, kind_and_place
from ..lake.layout import Lake
from ..workers.process import share_of_memory
from . import head

ALLOWED = "DIASTOLE_ALLOW_CODE"
START_SECONDS = float(os.environ.get("DIASTOLE_START_SECONDS", "300"))
"""How long the first worker may take to start, and another where none is left."""
DOUBT_SECONDS = 60.0
"""How long Ray may take to say what became of a worker that does not answer: longer than it looks for a node that is gone."""
ASK_SECONDS = 1.0
"""Time between two questions to a worker that does not answer."""
NODE_GONE = "its node has died"
"""What Ray's message says of an actor that went with its node; its exception has no field for it."""

Reply = tuple[str, Receipt | str]
"""(done, receipt) or (returned|stopped|model, reason)."""
LIVES = "?"
"""In the place of a shard: an answer to the question whether a worker lives."""


class Worker:
    """What runs in an actor. Shards come in, replies go out; data goes between the worker and storage only."""

    def __init__(self, lake_root: str, run_id: str, threads: int, allowed: str, memory_gb: float | None = None) -> None:
        """`memory_gb` is what the process may take in all."""
        self._memory_gb = memory_gb
        os.umask(0o077)  # a Ray that runs already has the umask and the environment of whoever started it
        os.environ[ALLOWED] = allowed
        head.end_with(ray.get_runtime_context().gcs_address)
        self._given: Queue[Shard] = Queue()
        self._ends: dict[str, Queue[Reply]] = {}
        self._open = (lake_root, run_id, threads)

    def start(self) -> Reply | None:
        """Load the model. None, or what is wrong: (model|stopped, reason)."""
        from ..workers.process import cap_memory
        from ..workers.worker import open_engine

        try:
            self._engine = open_engine(*self._open)
        except Exception as error:  # noqa: BLE001 - told to the driver, which stops the run with it
            return "model" if isinstance(error, UserError) else "stopped", said(error)
        cap_memory(self._memory_gb)
        Thread(target=self._run, name="work", daemon=True).start()
        return None

    def lives(self) -> None:
        """Answer, so that the driver knows."""

    def score(self, shard: Shard) -> Reply:
        """Put a shard into the mailbox, and wait for its end."""
        end: Queue[Reply] = Queue(1)
        self._ends[shard.shard] = end
        self._given.put(shard)
        return end.get()

    def silent(self) -> float:
        """Seconds since the engine last got on."""
        return self._engine.silent()

    def _run(self) -> None:
        failures = 0
        while True:
            begun: list[str] = []
            over = Event()
            try:
                for receipt in self._engine.work(self._shards(begun, over), over.set):
                    begun.remove(receipt.shard)
                    # Which files there are is read from storage, by who publishes them.
                    self._ends.pop(receipt.shard).put(("done", replace(receipt, parts=(), files=())))
                    failures = 0
            except EnvironmentFailure as error:
                failures += 1
                time.sleep(min(30.0, PAUSE * 2 ** (failures - 1)))
                for shard in begun:
                    self._ends.pop(shard).put(("returned", str(error)))
            except SystemExit:
                os._exit(1)  # as if it had been killed: what was begun is done again, and alone
            except Exception as error:  # noqa: BLE001 - told to the driver, which stops the run with it
                if self._engine.starved(error):
                    os._exit(1)
                for end in self._ends.values():
                    end.put(("stopped", said(error)))
                return

    def _shards(self, begun: list[str], over: Event) -> Iterator[Shard]:
        """What comes through the mailbox, until the work on it is over; what comes later is for the next."""
        while not over.is_set():
            with suppress(Empty):
                shard = self._given.get(timeout=0.2)
                begun.append(shard.shard)
                yield shard


def said(error: Exception) -> str:
    """What may be said of an error where others can read it: of one that is not ours, no text, which may hold data."""
    return str(error) if isinstance(error, DiastoleError) else kind_and_place(error)


def gpus_per_worker(plan: Plan) -> float:
    """The share of a GPU that a worker of a plan takes; 0 where it computes on a CPU."""
    return float(plan.job["resources"].get("gpus_per_worker", 1.0)) if plan.device == "cuda" else 0.0


def memory_of(plan: Plan, workers: int) -> float | None:
    """GB that the process of each of so many workers may take, or None: as the job says; else, on a CPU, its share of
    this machine's memory. What the libraries of a GPU reserve counts too, so there only as the job says.
    """
    said = plan.job["resources"].get("worker_memory_gb")
    return said if said is not None or plan.device != "cpu" else share_of_memory(workers)


def _silent(answer: Any) -> float:
    """What an actor answered; of one that died meanwhile, its shards' ends say it."""
    try:
        return float(ray.get(answer))
    except ray.exceptions.RayActorError:
        return 0.0


class Crew:
    """The actors of one run: they get what the dispatcher says, and the dead are replaced."""

    def __init__(
        self,
        lake: Lake,
        plan: Plan,
        ledger: Ledger,
        workers: int,
        threads: int,
        *,
        kind: type[Worker] = Worker,
        cpus: float = 1.0,
    ) -> None:
        """`kind` and `cpus`, cores that an actor takes, are others where Ray itself is measured."""
        self._ledger = ledger
        self._dispatcher: Dispatcher[Any] = Dispatcher(ledger)
        self._needs = {"CPU": cpus, "GPU": gpus_per_worker(plan)}
        settings: dict[str, Any] = {"num_cpus": cpus, "num_gpus": self._needs["GPU"], "max_concurrency": 3}
        self._kind: Any = ray.remote(max_restarts=0, max_task_retries=0, **settings)(kind)
        self._arguments = (lake.store.root, plan.run_id, threads, os.environ.get(ALLOWED, ""), memory_of(plan, workers))
        self._workers = workers
        self._actors: set[Any] = set()
        """Those that live."""
        self._waits: dict[Any, tuple[Any, str | None]] = {}
        """What is waited for: an actor's start, its end with a shard, or a sign of life."""
        self._asked: dict[Any, tuple[Any, float]] = {}
        """Who was asked for how long it has been silent: the answer, and when that was."""
        self._looked = time.perf_counter()
        self._doubted: dict[Any, tuple[float, float]] = {}
        """Actors that do not answer: since when, and when they were asked last."""
        self._head_gone = False
        self._unexplained = 0
        self._without = time.monotonic()
        """Since when no worker has been ready."""
        self._begun: float | None = None

    def run(self, on_receipt: Callable[[Receipt], None]) -> float:
        """Score all shards that the ledger hands out. Raises ModelError, EnvironmentFailure.

        Returns when the first worker was ready for work, on time.perf_counter's clock.
        """
        watched = head.watch(ray.get_runtime_context().gcs_address, self._lose_head)
        try:
            for _ in range(min(self._workers, self._ledger.waiting)):
                self._welcome()
            while not self._ledger.finished:
                for reference in self._ready():
                    self._answer(reference, on_receipt)
                for actor, shard in self._dispatcher.fill():
                    self._waits[actor.score.remote(shard)] = actor, shard.shard
                self._ask()
                self._check_started()
                self._end_hung()
        finally:
            watched.set()
            for actor in self._actors:
                self._end(actor)  # one that waits for a shard would stay, with its model, as long as Ray does
        return self._begun or time.perf_counter()

    def _ready(self) -> list[Any]:
        """All answers that are there, once there is one, or it is time to look for who is late."""
        if self._head_gone:
            raise EnvironmentFailure(
                f"the head of Ray has been gone for {head.HEAD_SECONDS:.0f} s; what is done is kept: run again"
            )
        usual = min(3.0, self._dispatcher.patience)
        seconds = 1.0 if self._dispatcher.looks_for_late or self._doubted else usual
        if not self._waits:  # all are in doubt, and were asked a moment ago
            time.sleep(ASK_SECONDS / 2)
            return []
        first, rest = ray.wait(list(self._waits), num_returns=1, timeout=min(seconds, START_SECONDS))
        if not first or not rest:
            return list(first)
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
        return [*first, *more]

    def _check_started(self) -> None:
        """Ray waits without an end for what it does not have, or has no more."""
        if self._dispatcher.workers:
            self._without = time.monotonic()
        elif time.monotonic() - self._without > START_SECONDS:
            there: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray has no type for it
            wanted = ", ".join(f"{n:g} {what}" for what, n in self._needs.items() if n)
            free = ", ".join(f"{n:g} {what}" for what, n in there.items() if what in self._needs)
            raise EnvironmentFailure(
                f"no worker started within {START_SECONDS:.0f} s: each needs {wanted}; free is {free or 'nothing'}; "
                "what is done is kept: free some, then run again"
            )

    def _end_hung(self) -> None:
        """End workers that do not get on. One that is at a shard for long is asked when it last did; one that is stopped,
        or holds Python's lock, does not even answer.
        """
        now = time.perf_counter()
        if now - self._looked < self._dispatcher.patience:
            return
        self._looked, asked, self._asked = now, self._asked, {}
        for actor, deadline in list(self._dispatcher.overdue()):
            answer, since = asked.get(actor) or (actor.silent.remote(), now)
            if ray.wait([answer], timeout=0)[0]:
                hangs = _silent(answer) > deadline
            else:
                hangs = now - since > deadline
                self._asked[actor] = answer, since
            if hangs:
                ray.kill(actor)
                self._bury(actor, "hung")

    def _welcome(self) -> None:
        actor = self._kind.remote(*self._arguments)
        self._actors.add(actor)
        self._waits[actor.start.remote()] = actor, None

    def _answer(self, reference: Any, on_receipt: Callable[[Receipt], None]) -> None:
        actor, shard = self._waits.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.ActorUnavailableError:
            if actor in self._actors:
                self._doubted.setdefault(actor, (time.monotonic(), 0.0))
            return
        except ray.exceptions.RayActorError as error:
            gone = NODE_GONE in str(error) or error.preempted
            self._bury(actor, lost="its node was lost" if gone else None)
            return
        if shard == LIVES:  # but what it had to say was lost on the way
            self._bury(actor, lost="a worker could not be reached")
        elif shard is not None:
            self._take(actor, shard, answer, on_receipt)
        elif answer is not None:
            kind, reason = answer
            raise ModelError(reason) if kind == "model" else EnvironmentFailure(f"a worker did not start: {reason}")
        else:
            self._begun = self._begun or time.perf_counter()
            self._dispatcher.join(actor)

    def _ask(self) -> None:
        """Ask who does not answer, until Ray knows what became of it."""
        now = time.monotonic()
        for actor, (since, asked) in list(self._doubted.items()):
            if now - since > DOUBT_SECONDS:
                self._bury(actor, lost="a worker could not be reached")
            elif now - asked > ASK_SECONDS and (actor, LIVES) not in self._waits.values():
                self._doubted[actor] = since, now
                self._waits[actor.lives.remote()] = actor, LIVES

    def _bury(self, actor: Any, outcome: str = "died", lost: str | None = None) -> None:
        """An actor died, which each call that it had says, or `hung` and was ended; or it was `lost`, by no fault of a shard."""
        self._doubted.pop(actor, None)
        if actor not in self._actors:
            return
        self._actors.remove(actor)
        if lost is not None:
            self._end(actor)
            self._dispatcher.lost(actor, lost)
        else:
            self._unexplained = 0 if self._dispatcher.died(actor, outcome) else self._unexplained + 1
        if self._unexplained >= RETURNS:
            raise EnvironmentFailure(
                f"{RETURNS} workers in a row died before they began a shard: too little memory for the model?"
            )
        if self._ledger.open > len(self._actors):
            self._welcome()

    def _end(self, actor: Any) -> None:
        if not self._head_gone:  # without it Ray would wait for an answer, and the worker ends itself
            ray.kill(actor)

    def _lose_head(self) -> None:
        self._head_gone = True

    def _take(self, actor: Any, shard: str, reply: Reply, on_receipt: Callable[[Receipt], None]) -> None:
        kind, what = reply
        if isinstance(what, Receipt):
            if self._dispatcher.done(actor, what):
                on_receipt(what)
        elif kind == "returned":
            self._dispatcher.returned(actor, shard, what)
        else:
            raise EnvironmentFailure(f"a worker stopped at shard {shard}: {what}")
