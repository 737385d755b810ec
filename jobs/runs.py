"""Runs: started from a plan, found again when they are unfinished, recorded when they end."""

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import yaml

from ..lake import leases
from ..lake.errors import LakeError
from ..lake.ids import digest
from ..lake.layout import Lake
from ..lake.plain_json import from_json
from .plan import Plan


def start(lake: Lake, plan: Plan) -> None:
    """Write a plan into its run's folder; a run of the same plan is the same run."""
    folder = lake.run(plan.run_id)
    lake.store.put_if_absent(f"{folder}/job.yaml", yaml.safe_dump(plan.job, sort_keys=False).encode())
    lake.store.put_if_absent(f"{folder}/plan.parquet", plan.to_bytes())


def read_plan(lake: Lake, run_id: str, *, units: bool = True) -> Plan:
    """The plan of a run, or all but its units. Raises LakeError where there is no such run."""
    try:
        with lake.store.open(f"{lake.run(run_id)}/plan.parquet") as file:
            return Plan.from_file(file, units=units)
    except ValueError as error:
        raise LakeError(f"the plan of run {run_id} is damaged; restore it, or delete runs/{run_id}") from error
    except FileNotFoundError:
        raise LakeError(f"there is no run {run_id}; list them with: diastole runs") from None


def read_record(lake: Lake, run_id: str) -> dict[str, Any] | None:
    """`run.json` of a run that ended, None of one that did not."""
    try:
        return _object(lake, f"{lake.run(run_id)}/run.json")
    except FileNotFoundError:
        return None


def write_record(lake: Lake, run_id: str, record: dict[str, Any]) -> None:
    """Say how a run ended; the first word stands."""
    record = {"run_id": run_id, "at": datetime.now(UTC).isoformat(timespec="seconds"), **record}
    lake.store.put_if_absent(f"{lake.run(run_id)}/run.json", json.dumps(record, indent=1).encode())


def stop(lake: Lake, run_id: str, why: dict[str, Any]) -> None:
    """Say that too much of a run failed. It has not ended: what it has done stays."""
    lake.store.put(f"{lake.run(run_id)}/stopped.json", json.dumps(why, indent=1).encode())


def is_stopped(lake: Lake, run_id: str) -> bool:
    """Whether a run was stopped since too much of it failed."""
    return lake.store.size(f"{lake.run(run_id)}/stopped.json") is not None


def write_estimate(lake: Lake, run_id: str, estimate: dict[str, Any]) -> None:
    """Keep what a run of this plan is thought to take; the last word stands."""
    lake.store.put(f"{lake.run(run_id)}/estimate.json", json.dumps(estimate, indent=1).encode())


def read_estimate(lake: Lake, run_id: str) -> dict[str, Any] | None:
    """What a run was thought to take; None where nobody asked."""
    try:
        return _object(lake, f"{lake.run(run_id)}/estimate.json")
    except FileNotFoundError:
        return None


def _object(lake: Lake, path: str) -> dict[str, Any]:
    try:
        return from_json(lake.store.get(path))
    except ValueError:
        raise LakeError(f"{path} is damaged; restore it from a backup, or delete it") from None


def fresh(lake: Lake, plan: Plan) -> Plan:
    """The plan under an id of its own: a run that ended, given up or undone, is not taken up again."""
    while read_record(lake, plan.run_id) is not None:
        plan = replace(plan, run_id=digest([plan.run_id, "again"]))
    return plan


def list_runs(lake: Lake) -> list[str]:
    """Ids of all runs that have a plan."""
    return [r for r in lake.store.folders("runs") if lake.store.size(f"runs/{r}/plan.parquet") is not None]


def resolve(lake: Lake, prefix: str) -> str:
    """The one run whose id begins so. Raises LakeError."""
    found = [run for run in list_runs(lake) if run.startswith(prefix)]
    if len(found) != 1:
        raise LakeError(f"{len(found)} runs begin with {prefix!r}; list them with: diastole runs")
    return found[0]


def unfinished(lake: Lake, job_name: str) -> list[Plan]:
    """Plans of this job's runs that have not ended."""
    open_runs = [run for run in list_runs(lake) if lake.store.size(f"runs/{run}/run.json") is None]
    own = [run for run in open_runs if read_plan(lake, run, units=False).job["name"] == job_name]
    return [read_plan(lake, run) for run in own]


def lease(lake: Lake, run_id: str) -> AbstractContextManager[leases.Lease]:
    """Hold a run while driving it. Raises BusyError while another driver is alive on it."""
    what = f"run {run_id[:8]}"
    return leases.numbered(lake, f"{lake.run(run_id)}/lease", what, f"{what} is being driven by")
