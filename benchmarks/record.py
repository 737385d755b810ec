"""Records the batches of a job for the ceiling, out of a real pass of diastole's engine: record.py LAKE JOB MB OUT.pt

Only so many items are scored that their batches stay under MB megabytes, the first of the plan.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from diastole.cluster.driver import Choice, plan_job
from diastole.jobs import runs
from diastole.jobs.ledger import Ledger
from diastole.jobs.spec import load_job
from diastole.lake.layout import Lake
from diastole.workers.worker import open_engine


def main() -> None:
    """Record, and keep which run it was: the ceiling opens its networks."""
    lake, job, out = Lake.open(sys.argv[1]), load_job(Path(sys.argv[2])), Path(sys.argv[4])
    limit = 8
    taken = _record(lake, job, limit)  # a few items, to see how large they are
    each = sum(value.nbytes for _, inputs in taken[1] for value in inputs.values()) / limit
    wanted = int(float(sys.argv[3]) * 2**20 / each)
    if wanted > limit and (more := _record(lake, job, wanted))[1]:  # none where these few are all
        taken = more
    run_id, batches, items = taken
    torch.save({"run_id": run_id, "batches": batches, "items": items}, out)


def _record(lake: Lake, job: Any, limit: int) -> tuple[str, list[tuple[int, dict[str, torch.Tensor]]], int]:
    plan, _, _ = plan_job(lake, job, Choice(limit=limit))
    runs.start(lake, plan)
    engine = open_engine(lake.store.root, plan.run_id, job.resources.threads or 2)
    batches: list[tuple[int, dict[str, torch.Tensor]]] = []
    forward = engine.networks.forward

    def recorded(step: int, inputs: Any) -> Any:
        batches.append((step, {name: value.clone() for name, value in inputs.items()}))
        return forward(step, inputs)

    engine.networks.forward = recorded  # type: ignore[method-assign]  # to record what passes
    ledger = Ledger(lake, plan, in_process=True)
    for receipt in engine.work(iter(ledger.take, None)):
        ledger.receive(receipt)
    return plan.run_id, batches, plan.units.num_rows


if __name__ == "__main__":
    main()
