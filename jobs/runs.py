"""Runs: started from a plan, found again when they are unfinished, recorded when they end."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import yaml

from ..lake.errors import BusyError, LakeError
from ..lake.ids import digest
from ..lake.layout import Lake
from .plan import Plan

LEASE_SECONDS = float(os.environ.get("DIASTOLE_LEASE_SECONDS", "60"))
"""How long a driver may be silent before another may take its run. It decides who tries, never who may commit."""


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
    except FileNotFoundError:
        raise LakeError(f"there is no run {run_id}; list them with: diastole runs") from None


def read_record(lake: Lake, run_id: str) -> dict[str, Any] | None:
    """`run.json` of a run that ended, None of one that did not."""
    try:
        return dict(json.loads(lake.store.get(f"{lake.run(run_id)}/run.json")))
    except FileNotFoundError:
        return None


def write_record(lake: Lake, run_id: str, record: dict[str, Any]) -> None:
    """Say how a run ended; the first word stands."""
    record = {"run_id": run_id, "at": datetime.now(UTC).isoformat(timespec="seconds"), **record}
    lake.store.put_if_absent(f"{lake.run(run_id)}/run.json", json.dumps(record, indent=1).encode())


def write_estimate(lake: Lake, run_id: str, estimate: dict[str, Any]) -> None:
    """Keep what a run of this plan is thought to take; the last word stands."""
    lake.store.put(f"{lake.run(run_id)}/estimate.json", json.dumps(estimate, indent=1).encode())


def read_estimate(lake: Lake, run_id: str) -> dict[str, Any] | None:
    """What a run was thought to take; None where nobody asked."""
    try:
        return dict(json.loads(lake.store.get(f"{lake.run(run_id)}/estimate.json")))
    except FileNotFoundError:
        return None


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


@contextmanager
def lease(lake: Lake, run_id: str) -> Iterator[None]:
    """Hold a run while driving it, renewed by a thread. Raises BusyError while another driver is alive on it."""
    path = f"{lake.run(run_id)}/lease.json"
    owner = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    try:
        held = json.loads(lake.store.get(path))
    except (FileNotFoundError, ValueError):
        held = None
    if held and held["until"] > time.time() and not _dead(held):
        raise BusyError(
            f"run {run_id[:8]} is being driven by process {held['pid']} on {held['host']}; "
            f"wait for it, or try again in {held['until'] - time.time():.0f} s if it is gone"
        )
    stop = threading.Event()

    def renew() -> None:
        lake.store.put(path, json.dumps({**owner, "until": time.time() + LEASE_SECONDS}).encode())

    def keep() -> None:
        while not stop.wait(LEASE_SECONDS / 3):
            renew()

    renew()
    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LEASE_SECONDS)
        with suppress(FileNotFoundError, ValueError):
            if json.loads(lake.store.get(path))["owner"] == owner["owner"]:
                lake.store.delete(path)


def _dead(held: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is gone: then nobody need wait."""
    if held["host"] != socket.gethostname():
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
