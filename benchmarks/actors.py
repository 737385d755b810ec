"""How fast one driver hands out shards on a real Ray: actors that only mark an attempt and put a receipt.

    python benchmarks/actors.py [--actors 2 16 64] [--shards 4000] [--folder /dev/shm]

The crew, the dispatcher, the ledger and the receipts are real, the shards have no work in them, and torch is not imported:
what is left is what Ray and the driver cost. Actors take a fraction of a core each, so that 64 fit a small machine. The
rate goes from the first shard that is given to the last receipt. Prints JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import simulate

from diastole.cluster.private_ray import private_ray
from diastole.jobs import receipts
from diastole.jobs.ledger import Ledger, Shard
from diastole.jobs.receipts import Receipt
from diastole.lake.layout import Lake


class Nothing:
    """An engine that has no work."""

    def __init__(self, lake_root: str, run_id: str) -> None:
        self.lake, self.run_id = Lake.open(lake_root), run_id

    def work(self, shards: Iterator[Shard], stop: Callable[[], None] = lambda: None) -> Iterator[Receipt]:
        """Mark each shard, and put its receipt."""
        del stop
        for shard in shards:
            number = receipts.mark_attempt(
                self.lake, self.run_id, shard.shard, in_process=False, session=shard.session, alone=shard.alone
            )
            yield receipts.put(self.lake, Receipt(self.run_id, shard.shard, number, scored=shard.units.num_rows))


def measure(actors: int, shards: int, folder: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        os.environ["DIASTOLE_KEYS"] = f"{made}/keys"
        lake = Lake.create(f"{made}/lake")
        plan = simulate.made_plan(shards)
        with private_ray(os.cpu_count() or 1):
            from diastole.cluster.actors import Crew, Worker

            class Idle(Worker):
                def start(self) -> str | None:
                    """Begin without a model."""
                    from threading import Thread

                    self._engine: Any = Nothing(*self._open[:2])
                    Thread(target=self._run, daemon=True).start()
                    return None

            ledger = Ledger(lake, plan, in_process=False)
            before, begun_cpu = psutil.Process().memory_info().rss, time.process_time()
            begun = time.perf_counter()
            share = (os.cpu_count() or 1) / actors
            ready = Crew(lake, plan, ledger, actors, 1, kind=Idle, cpus=min(1.0, share)).run(lambda _: None)
            took = time.perf_counter() - ready
            if not ledger.finished or ledger.units_done != plan.units.num_rows:
                raise SystemExit("units are missing")
            return {
                "actors": actors,
                "shards": shards,
                "first_ready_s": round(ready - begun, 1),
                "shards_per_s": round(shards / took),
                "driver_cpu_us_per_shard": round((time.process_time() - begun_cpu) / shards * 1e6),
                "driver_grew_mb": round((psutil.Process().memory_info().rss - before) / 2**20, 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--actors", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--folder", default="/dev/shm" if Path("/dev/shm").is_dir() else None)
    arguments = parser.parse_args()
    for actors in arguments.actors:
        print(json.dumps(measure(actors, arguments.shards, arguments.folder)), flush=True)


if __name__ == "__main__":
    main()
