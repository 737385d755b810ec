"""Trying again what is in quarantine, after something was mended."""

from collections.abc import Iterator
from dataclasses import replace

from ..jobs import runs
from ..jobs.spec import Job
from ..lake import predictions
from ..lake.items import read_items
from ..lake.layout import Lake
from .driver import Choice, Outcome, Progress, run_job


def retry(lake: Lake, job: Job | None, workers: int | None, choice: Choice, progress: Progress) -> Iterator[Outcome]:
    """Score again what failed at scoring and is still in the lake, with the job of each, as it was run, or with the one
    that is given, of whose output it is then. Raises DiastoleError.
    """
    for meant, items in _failed(lake, job):
        yield run_job(lake, meant.with_workers(workers), replace(choice, only=items, retry=True), progress)


def _failed(lake: Lake, job: Job | None) -> list[tuple[Job, list[str]]]:
    """Jobs, and the items of each that failed."""
    found: dict[str, tuple[Job, list[str]]] = {}
    for output in [job.output] if job is not None else lake.store.folders("predictions"):
        for row in predictions.failed(lake, output).to_pylist():
            meant = job or Job.model_validate(runs.read_plan(lake, row["run_id"], units=False).job)
            found.setdefault(meant.job_digest, (meant, []))[1].append(row["item_id"])
    return [(meant, left) for meant, items in found.values() if (left := _live(lake, meant, items))]


def _live(lake: Lake, job: Job, items: list[str]) -> list[str]:
    """Those that the job can still mean: an item may have left the lake since."""
    first = next(iter(job.inputs.values()))
    rows = read_items(lake, first.dataset, ["item_id", "state"]).to_pylist()
    live = {row["item_id"] for row in rows if row["state"] == "live"}
    return sorted(live.intersection(items))
