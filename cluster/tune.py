"""`diastole tune MODEL`: items to measure on, the table, and what is kept of it."""

import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.table import Table

from ..jobs import tuned
from ..jobs.plan import Plan, make_plan
from ..jobs.spec import parse_job
from ..lake import delta
from ..lake.errors import DiastoleError, ModelError
from ..lake.layout import Lake
from ..lake.models import Manifest, load
from ..workers.tasks import make_task
from .driver import device_of
from .probes import probe
from .show import console

LAYOUT_S = 3.0
"""Seconds that each layout of processes and threads is measured."""


def tune(
    lake: Lake,
    ref: str,
    dataset: str | None,
    where: str | None,
    items: int | None,
    device: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, choose, keep. Raises ModelError where no item of the lake meets the model's contract."""
    from ..workers.tune import Bench

    manifest, device = load(lake, ref), device_of(device)
    plan = _plan(lake, manifest, dataset, where, device)
    units = plan.units.filter(pc.is_null(plan.units["refused_code"]))
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="diastole-tune-") as folder:
        bench = Bench(lake, plan, threads, Path(folder), say)
        chosen = bench.choose(units, items)
    runtime = chosen.settings.runtime()
    rows = [one.row(bench.tolerance) for one in bench.candidates]
    value = {
        "dataset": plan.job["inputs"][next(iter(manifest.inputs))]["dataset"],
        "device_name": _device_name(device),
        "threads": threads,
        "items": chosen.recording.units,
        "tolerance": bench.tolerance,
        "table": rows,
        "runtime": runtime,
        "gain": round(chosen.gain, 3),
        "layouts": _layouts(lake, _with(plan, manifest, runtime), threads, say) if device == "cpu" else [],
    }
    again = _scored_again(lake, manifest, device, runtime)
    tuned.keep(lake, manifest, device, value)
    return {"model": manifest.ref, "device": device, **value, "scored_again": again}


def forget(lake: Lake, ref: str, device: str) -> str:
    """Let a model run as its package says; what was done, in a line."""
    manifest, device = load(lake, ref), device_of(device)
    there = tuned.read(lake, manifest, device) is not None
    tuned.forget(lake, manifest, device)
    return f"{manifest.ref} runs on {device} as its package says" + ("" if there else "; nothing was tuned")


def _plan(lake: Lake, manifest: Manifest, dataset: str | None, where: str | None, device: str) -> Plan:
    """Items that meet the contract, of the dataset that is named, or of the first that has any."""
    names = [dataset] if dataset else lake.datasets()
    for name in names:
        inputs = {role: {"dataset": name, "where": where} for role in manifest.inputs}
        output = f"tune-{manifest.model_digest[:16]}"  # no output of anybody's, so that nothing counts as scored
        job = {"name": "tune", "inputs": inputs, "model": manifest.ref, "output": output}
        spec = parse_job({**job, "purpose": manifest.permitted_use, "resources": {"workers": 0}})
        try:
            plan = make_plan(lake, spec, manifest, make_task(manifest), device=device)
        except DiastoleError:
            if dataset:
                raise
            continue
        if plan.units["refused_code"].null_count:
            return plan
    raise ModelError(
        f"no item of {', '.join(names) or 'this lake, which has no dataset,'} meets the contract of {manifest.ref}; "
        "ingest some, or name others with --dataset and --where"
    )


def _with(plan: Plan, manifest: Manifest, runtime: dict[str, Any]) -> Plan:
    return Plan(
        **{**plan.__dict__, "runtime": runtime, "batch": runtime.get("batch", manifest.batch), "run_id": "tune"}
    )


def _layouts(lake: Lake, plan: Plan, cores: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Items in a second with few workers of many threads, to many of one, from the lake to the table; the best first."""
    found = []
    processes = 1
    while processes <= min(cores, len(plan.shards)):
        threads = cores // processes
        say(f"{processes} × {threads} threads")
        measured = probe(lake, plan, processes, threads, LAYOUT_S)
        found.append(
            {"workers": processes, "threads": threads, "items_per_second": round(measured.units_per_second, 3)}
        )
        processes *= 2
    return sorted(found, key=lambda one: -one["items_per_second"])


def _scored_again(lake: Lake, manifest: Manifest, device: str, runtime: dict[str, Any]) -> int:
    """Results of the model that its next runs would make anew, since another precision is another result."""
    kept = tuned.read(lake, manifest, device) or {"runtime": {}}
    if kept["runtime"].get("precision") == runtime.get("precision"):
        return 0
    count = 0
    for output in lake.store.folders("current"):
        table = delta.open_table(lake, lake.current(output))
        if table is not None:
            mine = (pc.field("level") == "item") & (pc.field("model_digest") == manifest.model_digest)
            count += delta.dataset(table).count_rows(filter=mine & (pc.field("status") == "scored"))
    return count


def _device_name(device: str) -> str:
    if device == "cuda":
        from ..workers.models.runtime import gpu_name

        return gpu_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.machine())}, {os.cpu_count()} cores"


def show_tuned(value: dict[str, Any]) -> None:
    """The table, and the choice."""
    title = f"{value['model']} on {value['device_name']}, {value['items']} items of {value['dataset']}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("settings", "items/s", "× baseline", "deviation", "within", "first, s", "peak, MB", ""):
        table.add_column(column, no_wrap=True)
    for row in value["table"]:
        table.add_row(*_cells(row))
    console.print(table, crop=False)
    console.print(f"deviation: of outputs from the baseline, tolerance {value['tolerance']:g}; first: the first pass")
    for one in value["layouts"]:
        console.print(
            f"  {one['workers']} × {one['threads']} threads: {one['items_per_second']:g} items/s, lake to table"
        )
    chosen = next(row for row in value["table"] if row["runtime"] == value["runtime"])
    if value["runtime"]:
        console.print(
            f"chosen and kept: {chosen['settings']}, {value['gain']:.2f} × the baseline; plans use it from now on"
        )
    else:
        console.print("chosen and kept: as it is; nothing within the tolerance is faster by 5 %")
    if value["scored_again"]:
        console.print(f"the precision changes: {value['scored_again']} results of this model would be scored again")


def _cells(row: dict[str, Any]) -> list[str]:
    def said(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    peak = None if row["peak_bytes"] is None else row["peak_bytes"] / 2**20
    within = "" if row["note"] else "yes" if row["within"] else "no"
    numbers = [said(row["items_per_second"], ".4g"), said(row["gain"], ".2f"), said(row["deviation"], ".1e"), within]
    return [row["settings"], *numbers, said(row["first_s"], ".2f"), said(peak, ".0f"), row["note"]]
