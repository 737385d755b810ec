"""`diastole plan JOB --estimate`: what a run will take, told from a probe of some of its units."""

import os
from collections.abc import Mapping
from heapq import heapify, heapreplace
from statistics import StatisticsError, linear_regression, mean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..jobs import runs
from ..jobs.plan import Plan
from ..jobs.spec import Job
from ..lake import integrity
from ..lake.layout import Lake
from .probes import Probed, probe

PROBE_S = 6.0
"""Seconds that the probes measure."""
RAY_S = 5.0
"""Seconds that Ray takes to start: 4 to 6 as measured."""
DOUBT = 0.15
"""Part of the time by which an estimate may be wrong at least, whatever the pieces of the probe say."""


def estimate(lake: Lake, plan: Plan, job: Job, threads: int) -> dict[str, Any] | None:
    """Time, memory, bytes and price of a run, kept where the run finds it; None where it computes nothing.

    Raises ModelError, EnvironmentFailure.

    As many processes measure at once as the job has workers, or as this machine has room for: they share its memory
    bus, as workers do. A larger job is thought to be many such machines.
    """
    if plan.units["refused_code"].null_count == 0:
        return None
    workers = max(job.resources.workers, 1)
    room = workers if plan.device == "cuda" else max(1, (os.cpu_count() or 1) // threads)
    found = probe(lake, plan, min(workers, room), threads, PROBE_S)
    seconds, doubt = _seconds(plan, found, workers), _doubt(found)
    startup = found.opened_s + (RAY_S if job.resources.workers else 0.0)
    hours = (seconds + startup) / 3600
    price = job.resources.price_per_hour
    value = {
        "seconds": round(seconds, 2),
        "seconds_low": round(seconds * (1 - doubt), 2),
        "seconds_high": round(seconds * (1 + doubt), 2),
        "startup_seconds": round(startup, 2),
        "memory_bytes": max(one["peak_bytes"] for one in found.measured),
        "read_bytes": read_bytes(lake, plan),
        "cpu_hours": round(hours * workers * threads, 5),
        "gpu_hours": round(hours * workers * job.resources.gpus_per_worker, 5) if plan.device == "cuda" else 0.0,
        "price": None if price is None else round(hours * workers * price, 4),
        "currency": job.resources.currency,
        "workers": job.resources.workers,
        "processes": found.processes,
        "threads": threads,
        "units_probed": found.units,
    }
    runs.write_estimate(lake, plan.run_id, value)
    return value


def _seconds(plan: Plan, found: Probed, workers: int) -> float:
    """From the first worker that is ready to the publication."""
    pace = found.seconds_per_byte
    first = max(one["all_s"] - one["all_cost"] * pace for one in found.warm)
    return max(first, 0.0) + _longest(plan, pace, workers) + _publication(found, plan.units.num_rows)


def _longest(plan: Plan, pace: float, workers: int) -> float:
    """When the last of the workers ends, each taking the next shard as it is free."""
    costs = plan.units.group_by("shard").aggregate([("cost", "sum")]).sort_by("shard")["cost_sum"].to_pylist()
    ends = [0.0] * workers
    heapify(ends)
    for cost in costs:
        heapreplace(ends, ends[0] + cost * pace)
    return max(ends)


def _publication(found: Probed, units: int) -> float:
    """A line through what the probes took to publish few units, and more."""
    sizes = [one["units"] for one in found.warm] + [sum(p["units"] for p in one["pieces"]) for one in found.measured]
    took = [float(one["published_s"]) for one in [*found.warm, *found.measured]]
    try:
        slope, least = linear_regression(sizes, took)
    except StatisticsError:  # all of one size
        slope, least = 0.0, mean(took)
    return max(least + slope * units, mean(took)) if slope > 0 else mean(took)


def _doubt(found: Probed) -> float:
    """Part of the time by which it may be wrong: twice the standard error of the pieces, or DOUBT."""
    paces = found.pace
    if len(paces) < 3:
        return 0.5
    return min(0.9, max(DOUBT, 2 * stdev(paces) / mean(paces) / len(paces) ** 0.5))


def read_bytes(lake: Lake, plan: Plan) -> int:
    """Bytes in storage of the arrays and packs that the plan reads from, of packs all of it."""
    files = integrity.read(lake)
    entries = pc.list_flatten(plan.units["inputs"])
    wanted = pc.unique(pc.struct_field(pa.chunked_array(entries), "array"))
    whole = pc.replace_substring_regex(files["path"], r"(\.zarr)/.*$", r"\1")
    return int(pc.sum(files.filter(pc.is_in(whole, wanted))["bytes"]).as_py() or 0)


def compared(predicted: dict[str, Any] | None, actual: Mapping[str, float], *, resumed: bool) -> dict[str, Any]:
    """What a run's record says of its estimate: both, and their ratio. Of a run that was resumed there is none."""
    if predicted is None:
        return {}
    ratio = None if resumed or not predicted["seconds"] else round(actual["seconds"] / predicted["seconds"], 3)
    return {"predicted": predicted, "actual": dict(actual), "actual_to_predicted": ratio}


def said(value: Mapping[str, Any]) -> list[str]:
    """An estimate in two lines."""
    workers = value["workers"] or 1
    parts = [
        f"{_time(value['seconds'])} ({_time(value['seconds_low'])} to {_time(value['seconds_high'])}) after a start of "
        f"about {_time(value['startup_seconds'])}",
        f"{value['memory_bytes'] / 2**30:.1f} GB of memory for {'each worker' if workers > 1 else 'the worker'}",
        f"{value['cpu_hours']:.3g} CPU-hours, {value['gpu_hours']:.3g} GPU-hours",
        f"{value['read_bytes'] / 2**20:.1f} MB to read",
    ]
    if value["price"] is not None:
        parts.append(f"{value['price']:.4g} {value['currency']}".strip())
    how = (
        f"{value['processes']} × {value['threads']} threads"
        if value["processes"] > 1
        else f"{value['threads']} threads"
    )
    of = f", for {workers} workers" if workers != value["processes"] else ""
    return [f"estimate: {'; '.join(parts)}", f"  from {value['units_probed']} units, {how} on this machine{of}"]


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
