"""A worker: one model on one device, opened from a run's plan and ready for shards."""

from typing import TYPE_CHECKING

from ..jobs.plan import Plan
from ..jobs.runs import read_plan
from ..lake.errors import ModelError
from ..lake.layout import Lake
from ..lake.models import load, read_file
from .process import prepare
from .tasks import make_task

if TYPE_CHECKING:
    from .engine import Engine


def open_engine(lake_root: str, run_id: str, threads: int) -> "Engine":
    """The worker of a run. Raises ModelError where what its plan names is not there any more."""
    lake = Lake.open(lake_root)
    return engine_of(lake, read_plan(lake, run_id, units=False), threads)  # a shard brings its own units


def engine_of(lake: Lake, plan: Plan, threads: int) -> "Engine":
    """Load what a plan names and hold it to the plan's digests. Raises ModelError where it is not that any more."""
    prepare()
    from .engine import Engine  # torch comes with it, after the process is set up
    from .models.runtime import Networks

    manifest = load(lake, plan.model)
    if manifest.model_digest != plan.model_digest:
        raise ModelError(
            f"{plan.model} is not the model that run {plan.run_id[:8]} was planned with; plan again with --replan"
        )
    task = make_task(manifest, plan.task, plan.options)
    if task.version != plan.task_version:
        raise ModelError(
            f"task {task.name} has version {task.version} here, run {plan.run_id[:8]} was planned with "
            f"{plan.task_version}; plan again with --replan"
        )
    task.load_tables(lambda name: read_file(lake, manifest, name))
    return Engine(lake, plan, task, Networks(lake, manifest, task, plan.device, threads, plan.runtime))
