"""Zero workers: the engine in this process, as the tests and a debugger like it."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..jobs.dispatch import DEADLINE
from ..jobs.ledger import RETURNS, Ledger, Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..lake.errors import DiastoleError, EnvironmentFailure
from ..lake.layout import Lake

if TYPE_CHECKING:
    from ..workers.engine import Engine


def run_here(lake: Lake, plan: Plan, ledger: Ledger, threads: int, on_receipt: Callable[[Receipt], None]) -> float:
    """Score all shards that the ledger hands out. Returns when work began, on time.perf_counter's clock."""
    from ..workers.process import capped
    from ..workers.worker import open_engine

    resources = plan.job["resources"]
    engine = open_engine(lake.store.root, plan.run_id, threads)
    begun = time.perf_counter()
    deadline = resources.get("deadline_s") or DEADLINE[1]
    try:
        with capped(resources.get("worker_memory_gb")), _watched(engine, ledger, deadline):
            _run(engine, ledger, on_receipt)
    finally:
        ledger.give_up()  # an interrupt or a full disk is no shard's fault
    return begun


@contextmanager
def _watched(engine: "Engine", ledger: Ledger, deadline: float) -> Iterator[None]:
    """End this process if the engine does not get on for so many seconds: nobody else can, and the next one goes on.

    Where even the thread that watches does not get Python's lock, faulthandler ends the process, with the line of code
    at which it was; its attempts stay open, which counts as a death.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(10.0, deadline / 4)):
            _arm(2 * deadline)
            if engine.silent() > deadline:
                with suppress(DiastoleError, OSError):
                    ledger.hangs()
                print(
                    f"diastole: nothing was read, computed or written for {deadline:g} s (deadline_s), so this process ends; "
                    "the same command goes on, and finds the item that it hangs on",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(3)

    watcher = threading.Thread(target=watch, name="diastole-watch", daemon=True)
    _arm(2 * deadline)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        faulthandler.cancel_dump_traceback_later()


def _arm(seconds: float) -> None:
    """Have the process ended in so many seconds, unless this is called again."""
    with suppress(OSError, ValueError, AttributeError):  # a standard error that is no file
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)  # type: ignore[arg-type]


def _run(engine: "Engine", ledger: Ledger, on_receipt: Callable[[Receipt], None]) -> None:
    unexplained = 0
    while not ledger.finished:
        handed: list[str] = []

        def shards(handed: list[str] = handed) -> Iterator[Shard]:
            shard = ledger.take(idle=True)
            while shard is not None:
                handed.append(shard.shard)
                yield shard
                shard = None if shard.alone else ledger.take()

        try:
            for receipt in engine.work(shards()):
                ledger.receive(receipt)
                on_receipt(receipt)
        except EnvironmentFailure as error:
            for shard in handed:
                if not ledger.is_done(shard):
                    ledger.returned(shard, str(error))
            time.sleep(ledger.pause)
        except Exception as error:
            if not engine.starved(error):
                raise
            # In reading or writing: as if a worker had died of it.
            unexplained = 0 if ledger.died([s for s in handed if not ledger.is_done(s)]) else unexplained + 1
            if unexplained >= RETURNS:
                raise EnvironmentFailure(
                    "there is too little memory to begin a shard; free some, or lower memory_gb"
                ) from error
