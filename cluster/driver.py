"""Driving a job: plan or resume, hand out, commit, record."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..jobs import budget, runs, tuned
from ..jobs.commit import Committed, commit, is_published
from ..jobs.ledger import Ledger
from ..jobs.plan import Plan, check_not_empty, make_plan
from ..jobs.receipts import Receipt
from ..jobs.spec import Job
from ..jobs.task import Task
from ..lake import crash, delta, leases, predictions
from ..lake.errors import BusyError
from ..lake.layout import Lake
from ..lake.models import Manifest, load
from ..workers.tasks import make_task
from .estimate import compared


@dataclass(frozen=True)
class Choice:
    """Which of a job's units are meant, and what becomes of an unfinished run."""

    limit: int | None = None
    """The first so many units."""
    only: Sequence[str] = ()
    """These item ids."""
    retry: bool = False
    """Also what failed before."""
    replan: bool = False
    """Give up an unfinished run of this job and plan anew; what it has finished but not published is redone."""
    ignore_errors: bool = False
    """Go on whatever share of the units fails."""


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    run_id: str | None
    """None where there was nothing to score."""
    output: str
    resumed: bool = False
    scored: int = 0
    failed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    seconds: float = 0.0
    """From the first worker that was ready to the table and `current/`, without what Ray takes to stop."""
    startup_seconds: float = 0.0
    """Before that: Ray, imports, the model."""
    table_version: int | None = None


class Progress:
    """What a caller may want to show. Does nothing by itself."""

    def planned(self, plan: Plan, done: int, *, resumed: bool) -> None:
        """A run begins with so many units done before."""

    def advanced(self, receipt: Receipt) -> None:
        """A shard has its receipt."""

    def noted(self, text: str) -> None:
        """Something that is good to know, but stops nothing."""


def plan_job(
    lake: Lake, job: Job, choice: Choice, noted: Callable[[str], None] | None = None
) -> tuple[Plan, Manifest, Task]:
    """The plan of a job, without writing anything. Raises UserError.

    Networks run as `diastole tune` chose it, where that still holds; `noted` is told where it does not.
    """
    manifest = load(lake, job.model)
    task = make_task(manifest, job.task, job.options)
    device = device_of(job.resources.device)
    runtime, note = tuned.choose(lake, manifest, device, job.resources)
    if note is not None and noted is not None:
        noted(note)
    plan = make_plan(
        lake,
        job,
        manifest,
        task,
        device=device,
        runtime=runtime,
        limit=choice.limit,
        only=choice.only,
        retry=choice.retry,
    )
    check_not_empty(plan, lake)
    return runs.fresh(lake, plan), manifest, task


def run_job(lake: Lake, job: Job, choice: Choice | None = None, progress: Progress | None = None) -> Outcome:
    """Score what a job means and has not been scored yet, exactly once. Raises DiastoleError.

    An unfinished run of the same job is finished first, unless model, task or job changed: then BusyError says what to
    do. Then the job is planned as it is now. At the end `current/` shows what the job means.
    """
    with leases.shared(lake, f"job {job.name}") as held:
        return _run(lake, job, choice or Choice(), progress or Progress(), held)


def _run(lake: Lake, job: Job, choice: Choice, progress: Progress, held: leases.Held) -> Outcome:
    # A job that cannot be meant is refused before anything is done.
    plan, manifest, task = plan_job(lake, job, choice, progress.noted)
    resumed = _resume(lake, job, choice, manifest, task, progress, held)
    if resumed is not None:
        plan, manifest, task = plan_job(lake, job, choice)
    outcome = resumed or Outcome(None, plan.output, skipped=plan.skipped)
    if plan.units.num_rows:
        fresh = _drive(lake, plan, task, job, choice, progress, held, resumed=False)
        outcome = fresh if resumed is None else _together(resumed, fresh)
    elif plan.wanted is not None:
        predictions.refresh_current(lake, plan.output, plan.model_digest, plan.spec_digest, plan.wanted)
    return outcome


def _drive(
    lake: Lake,
    plan: Plan,
    task: Task,
    job: Job,
    choice: Choice,
    progress: Progress,
    held: leases.Held,
    *,
    resumed: bool,
) -> Outcome:
    """Take a plan, new or begun, to its end."""
    schema = predictions.table_schema(task.item_columns, task.row_columns)
    predictions.fix_output(lake, plan.output, task.name, task.manifest.classes, schema, task.units)
    runs.start(lake, plan)
    crash.point("after-plan")
    with runs.lease(lake, plan.run_id):
        ledger = Ledger(lake, plan, in_process=job.resources.workers == 0)
        progress.planned(plan, ledger.units_done, resumed=resumed)
        started = ready = ended = time.perf_counter()

        def check() -> None:
            if not (choice.ignore_errors or choice.retry):  # of what failed before, much may fail again
                budget.check(lake, plan, ledger, job.resources)

        def on_receipt(receipt: Receipt) -> None:
            progress.advanced(receipt)
            check()

        check()  # what was done before may be enough to stop
        if not ledger.finished:
            ready, ended = _execute(lake, plan, ledger, job, on_receipt)
        return _publish(lake, plan, ledger, schema, (started, ready, ended), held.check, resumed=resumed)


def _publish(
    lake: Lake,
    plan: Plan,
    ledger: Ledger,
    schema: Any,
    times: tuple[float, float, float],
    check: Callable[[], None],
    *,
    resumed: bool,
    last: bool = True,
) -> Outcome:
    """Commit, show and record. Of a run that is not the `last` word, only items that show nothing yet are shown."""
    import pyarrow.compute as pc

    begun = time.perf_counter()
    check()  # before receipts are looked at: of a run that was given up meanwhile, what they name may be swept
    committed = commit(lake, plan, ledger, schema, check)
    crash.point("before-current")
    wanted = plan.units.select(["item_id", "input_digest"]) if plan.wanted is None else plan.wanted
    if not last and delta.open_table(lake, lake.current(plan.output)) is not None:
        shown = predictions.read_current(lake, plan.output).to_table(columns=["item_id"])["item_id"]
        wanted = wanted.filter(pc.invert(pc.is_in(wanted["item_id"], shown.combine_chunks())))
    predictions.refresh_current(lake, plan.output, plan.model_digest, plan.spec_digest, wanted, plan.run_id)
    crash.point("before-record")
    started, ready, ended = times
    seconds = (ready - started, ended - ready + time.perf_counter() - begun)
    return _record(lake, plan, ledger, committed, seconds, resumed=resumed)


def _resume(
    lake: Lake,
    job: Job,
    choice: Choice,
    manifest: Manifest,
    task: Task,
    progress: Progress,
    held: leases.Held,
) -> Outcome | None:
    """Finish, or with `replan` give up, what is unfinished of this job."""
    outcome = None
    for found in runs.unfinished(lake, job.name):
        changed = _changed(found, job, manifest, task)
        stopped = runs.is_stopped(lake, found.run_id)
        if stopped and choice.only:
            continue  # somebody looks for the reason
        if choice.replan or (changed and is_published(lake, found)) or (stopped and changed == "model"):
            give_up(lake, found, held.check)
        elif changed:
            raise BusyError(
                f"job {job.name} has an unfinished run {found.run_id[:8]} of another {changed}; "
                f"finish it with the old {changed}, or give it up with --replan or: diastole runs abandon {found.run_id[:8]}"
            )
        else:
            planned_task = make_task(manifest, found.task, job.options)
            done = _drive(lake, found, planned_task, job, choice, progress, held, resumed=True)
            outcome = done if outcome is None else _together(outcome, done)
    return outcome


def give_up(lake: Lake, plan: Plan, check: Callable[[], None] = lambda: None) -> str:
    """End an unfinished run: abandoned, or, where its rows were published already, recorded as done. Which of the two."""
    with runs.lease(lake, plan.run_id):
        if not is_published(lake, plan):
            runs.write_record(lake, plan.run_id, {"state": "abandoned"})
            return "abandoned"
        ledger = Ledger(lake, plan, in_process=True)
        table = delta.open_table(lake, lake.predictions(plan.output))
        now = time.perf_counter()
        schema = delta.dataset(table).schema if table else None
        _publish(lake, plan, ledger, schema, (now, now, now), check, resumed=True, last=False)
        return "done"


def _together(first: Outcome, second: Outcome) -> Outcome:
    """A run that was resumed and the one after it, as one outcome of the second."""
    return replace(
        second,
        resumed=True,
        scored=first.scored + second.scored,
        failed=first.failed + second.failed,
        dropped=first.dropped + second.dropped,
        seconds=round(first.seconds + second.seconds, 3),
        startup_seconds=round(first.startup_seconds + second.startup_seconds, 3),
    )


def _changed(found: Plan, job: Job, manifest: Manifest, task: Task) -> str | None:
    if found.model_digest != manifest.model_digest:
        return "model"
    if (found.task, found.task_version) != (task.name, task.version):
        return "task version"
    planned = Job.model_validate(found.job)
    return "job" if planned.job_digest != job.job_digest else None


def _execute(
    lake: Lake, plan: Plan, ledger: Ledger, job: Job, on_receipt: Callable[[Receipt], None]
) -> tuple[float, float]:
    """Score what is left; when work began and when it ended."""
    workers, threads = job.resources.workers, threads_of(job)
    if workers == 0:
        from .local import run_here

        return run_here(lake, plan, ledger, threads, on_receipt), time.perf_counter()
    from .private_ray import private_ray

    with private_ray(workers):
        from .actors import Crew

        return Crew(lake, plan, ledger, workers, threads).run(on_receipt), time.perf_counter()


def threads_of(job: Job) -> int:
    """Threads of each worker: what the job says, else its share of the cores."""
    return job.resources.threads or max(1, (os.cpu_count() or 1) // max(job.resources.workers, 1))


def _record(
    lake: Lake, plan: Plan, ledger: Ledger, committed: Committed, seconds: tuple[float, float], *, resumed: bool
) -> Outcome:
    outcome = Outcome(
        run_id=plan.run_id,
        output=plan.output,
        resumed=resumed,
        scored=ledger.scored,
        failed=ledger.failed,
        skipped=plan.skipped,
        reasons=plan.reasons,
        dropped=committed.dropped,
        seconds=round(seconds[1], 3),
        startup_seconds=round(seconds[0], 3),
        table_version=committed.version,
    )
    spent = dict(ledger.seconds)
    busy, watched = spent.pop("gpu", 0.0), spent.pop("gpu_watched", 0.0)
    stages = {stage: round(value, 3) for stage, value in spent.items()}
    record: dict[str, Any] = {"state": "done", "job": plan.job["name"], "model": plan.model, "stages": stages}
    actual = {"seconds": outcome.seconds, "startup_seconds": outcome.startup_seconds}
    record |= {"gpu_utilisation": round(busy / watched, 3)} if watched else {}
    record |= {"runtime": plan.runtime} | compared(runs.read_estimate(lake, plan.run_id), actual, resumed=resumed)
    runs.write_record(lake, plan.run_id, {**record, **{k: v for k, v in outcome.__dict__.items() if k != "run_id"}})
    return outcome


def device_of(wanted: str) -> str:
    """`cuda` where the driver says that there is one; only then is torch asked, which takes seconds to import."""
    there = os.path.exists("/proc/driver/nvidia/version")  # noqa: PTH110 - a probe, not a path
    if wanted == "cpu" or (wanted == "auto" and not there):
        return "cpu"
    from ..workers.models.runtime import choose_device

    return choose_device(wanted)
