"""Zero workers: the engine in this process, as the tests and a debugger like it."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..jobs.ledger import Ledger, Shard
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..lake.errors import EnvironmentFailure
from ..lake.layout import Lake

if TYPE_CHECKING:
    from ..workers.engine import Engine


def run_here(lake: Lake, plan: Plan, ledger: Ledger, threads: int, on_receipt: Callable[[Receipt], None]) -> float:
    """Score all shards that the ledger hands out. Returns when work began, on time.perf_counter's clock."""
    from ..workers.worker import open_engine

    engine = open_engine(lake.store.root, plan.run_id, threads)
    begun = time.perf_counter()
    try:
        _run(engine, ledger, on_receipt)
    finally:
        ledger.give_up()  # an interrupt or a full disk is no shard's fault
    return begun


def _run(engine: "Engine", ledger: Ledger, on_receipt: Callable[[Receipt], None]) -> None:
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
