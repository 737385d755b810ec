"""The ceiling of a job: its network on its batches, in memory, in this process. Prints JSON.

The batches are recorded from a real pass of diastole's engine, then the network alone is timed over them.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from diastole.cluster.driver import Choice, plan_job
from diastole.jobs import runs
from diastole.jobs.ledger import Ledger
from diastole.jobs.spec import load_job
from diastole.lake.layout import Lake
from diastole.workers.worker import open_engine


def main() -> None:
    """Record, then time."""
    started = time.perf_counter()
    lake = Lake.open(os.environ["DIASTOLE_LAKE"])
    job = load_job(Path(sys.argv[1]))
    plan, _, _ = plan_job(lake, job, Choice())
    runs.start(lake, plan)
    engine = open_engine(lake.store.root, plan.run_id, job.resources.threads or 2)
    batches: list[tuple[int, Any]] = []
    forward = engine.networks.forward

    def recorded(step: int, inputs: Any) -> Any:
        batches.append((step, {name: value.clone() for name, value in inputs.items()}))
        return forward(step, inputs)

    engine.networks.forward = recorded  # type: ignore[method-assign]  # to record what passes
    ledger = Ledger(lake, plan, in_process=True)
    for _ in engine.work(iter(ledger.take, None)):
        pass
    begun = time.perf_counter()
    for step, inputs in batches:
        forward(step, inputs)
    ended = time.perf_counter()
    print(
        json.dumps(
            {"seconds": round(ended - begun, 3), "startup_seconds": round(begun - started, 3), "batches": len(batches)}
        )
    )


if __name__ == "__main__":
    main()
