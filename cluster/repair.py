"""`diastole check --repair`: what a scrub found is mended, and what the jobs mean now is shown again."""

from ..jobs import runs
from ..jobs.repair import Repaired, repair
from ..jobs.spec import Job
from ..lake import leases, predictions
from ..lake.errors import UserError
from ..lake.layout import Lake
from ..lake.scrub import Finding
from .driver import Choice, plan_job


def mend(lake: Lake, findings: list[Finding], wait: float) -> Repaired:
    """Mend what can be, alone in the lake. Raises BusyError where a run or an ingest holds it for longer than `wait` s."""
    with leases.exclusive(lake, "repair", wait):
        done = repair(lake, findings)
        for job in _jobs(lake, set(done.outputs)):
            try:
                plan, _, _ = plan_job(lake, job, Choice())
            except UserError as error:
                done.left.append((f"current/{job.output}", f"job {job.name} cannot be planned: {error}"))
                continue
            if plan.wanted is not None:
                predictions.refresh_current(lake, plan.output, plan.model_digest, plan.spec_digest, plan.wanted)
        return done


def _jobs(lake: Lake, outputs: set[str]) -> list[Job]:
    """The jobs of some outputs, each as it was last run, in the order of these runs."""
    found: dict[str, tuple[str, Job]] = {}
    for run in runs.list_runs(lake):
        record = runs.read_record(lake, run)
        if record is not None and record["state"] == "done" and record.get("output") in outputs:
            job = Job.model_validate(runs.read_plan(lake, run, units=False).job)
            found[job.name] = max(found.get(job.name, ("", job)), (record["at"], job), key=lambda one: one[0])
    return [job for _, job in sorted(found.values(), key=lambda one: one[0])]
