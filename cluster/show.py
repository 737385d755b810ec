"""What the command line prints: tables for people, one JSON value for scripts."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from ..jobs import runs
from ..jobs.contract import axes_of
from ..jobs.plan import Plan
from ..jobs.repair import Repaired
from ..jobs.sound import Unsound
from ..lake import predictions, quarantine
from ..lake.errors import SpecError
from ..lake.items import read_items
from ..lake.layout import Lake
from ..lake.scrub import Scrubbed
from ..workers.listing import absolute
from ..workers.models.settings import Settings
from .driver import Outcome
from .estimate import said

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 400)


def note(text: str) -> None:
    """A line beside the answer."""
    print(f"note: {text}", file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=1, default=str))


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*["" if value is None else str(value) for value in row])
    console.print(table, crop=False)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items())) or "none"


def ingest_report(dataset: str, report: Any, *, as_json: bool) -> None:
    """What an ingest did."""
    values = asdict(report)
    if as_json:
        print_json({"dataset": dataset, **values})
        return
    console.print(
        f"{dataset}: {report.added} added, {report.changed} changed, {report.unchanged} unchanged, {report.gone} gone; "
        f"{report.opened} of {report.files} files read, {report.bytes / 2**20:.1f} MB in {report.seconds:.1f} s"
    )
    if report.copies:
        console.print(f"  copies: {report.copies} files hold what others do, moved or copied; no item of their own")
    if report.missing:
        console.print(f"  missing: {report.missing} files are not there any more")
    if report.healed:
        console.print(f"  healed: {report.healed} items whose stored data were damaged or missing")
    if report.withdrawn:
        console.print(
            f"  withdrawn: {report.withdrawn} files of subjects whose consent was withdrawn were not taken in"
        )
    if report.quarantined:
        console.print(f"  quarantined: {_counts(report.quarantined)}; see: diastole quarantine")
    if report.still_quarantined:
        console.print(f"  {report.still_quarantined} unchanged files stay in quarantine; see: diastole quarantine")


def show_datasets(lake: Lake, *, as_json: bool) -> None:
    """Datasets with their number of items."""
    rows: list[list[Any]] = []
    for name in lake.datasets():
        items = read_items(lake, name, ["modality", "nbytes", "state"]).to_pylist()
        live = [item for item in items if item["state"] == "live"]
        modalities = sorted({item["modality"] or "unknown" for item in live})
        rows.append([name, len(live), ", ".join(modalities), sum(i["nbytes"] or 0 for i in live)])
    if as_json:
        print_json([dict(zip(("dataset", "items", "modality", "bytes"), row, strict=True)) for row in rows])
    else:
        _table("datasets", ["dataset", "items", "modality", "MB"], [[*r[:3], f"{r[3] / 2**20:.1f}"] for r in rows])


def show_items(lake: Lake, dataset: str, limit: int | None, *, as_json: bool) -> int:
    """Items of a dataset; how many were shown."""
    table = read_items(lake, dataset)
    rows = table.sort_by("item_id").slice(0, _rows(limit, as_json=as_json)).to_pylist()
    if as_json:
        print_json(rows)
        return len(rows)
    cells = [
        [r["item_id"], r["name"], r["modality"], "×".join(map(str, r["shape"] or [])), r["dtype"], _kind(r), r["state"]]
        for r in rows
    ]
    _table(
        f"{dataset}: {len(rows)} of {table.num_rows} items",
        ["item", "name", "modality", "shape", "dtype", "", "state"],
        cells,
    )
    return len(rows)


def _rows(limit: int | None, *, as_json: bool) -> int | None:
    """People get twenty rows, scripts all, unless they say how many."""
    return limit if limit is not None or as_json else 20


def _kind(row: dict[str, Any]) -> str:
    if row["sequence"]:
        return f"{row['sequence']['length']} letters"
    if row["signal"]:
        return f"{row['signal']['rate']:g} Hz, {len(row['signal']['channels'])} channels"
    geometry = row["geometry"] or {}
    spacing = "×".join(f"{s:g}" for s in geometry.get("spacing") or [])
    if axes_of(row) == "cyx":
        return f"{spacing} mm" if spacing else ""
    return f"{geometry.get('orientation')}, {spacing} mm"


def show_models(lake: Lake, *, as_json: bool) -> None:
    """Packages in the lake and recipes."""
    from ..lake.models import list_models
    from ..workers.recipes import names

    there = list_models(lake)
    if as_json:
        print_json(
            {
                "models": [{"model": m.ref, "digest": m.model_digest, "licence": m.licence} for m in there],
                "recipes": names(),
            }
        )
        return
    _table("models", ["model", "task", "runtime", "licence"], [[m.ref, m.task, m.runtime, m.licence] for m in there])
    console.print(f"can be fetched: {', '.join(names())}")


def show_plan(plan: Plan, estimate: dict[str, Any] | None = None, *, as_json: bool) -> None:
    """What a run would do, and if somebody asked, what it would take."""
    if as_json:
        units = plan.units.select(["item_id", "reason", "attempt", "refused_code", "refused", "shard"]).to_pylist()
        value = {k: v for k, v in plan.header().items() if k not in ("job",)}
        print_json(
            {
                **value,
                "planned": plan.units.num_rows,
                "shards": len(plan.shards),
                "cost_bytes": plan.cost,
                "units": units,
                "estimate": estimate,
            }
        )
        return
    console.print(
        f"{plan.job['name']}: {plan.units.num_rows} units to score in {len(plan.shards)} shards with {plan.model} "
        f"on {plan.device}, {plan.cost / 2**20:.1f} MB through the network, into {plan.output}"
    )
    if plan.runtime:
        console.print(f"  networks run as diastole tune chose it: {Settings.of(plan.runtime)}")
    console.print(f"  why: {_counts(plan.reasons)}")
    console.print(f"  not planned: {_counts(plan.skipped)}")
    if plan.refusals:
        console.print(f"  refused before any compute: {_counts(plan.refusals)}")
        [first] = plan.units.filter(plan.units["refused_code"].is_valid()).slice(0, 1).to_pylist()
        console.print(f"    first: item {first['item_id']}: {first['refused']}")
    for line in said(estimate) if estimate else []:
        console.print(f"  {line}")


def show_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """What a run did."""
    if as_json:
        print_json(outcome.__dict__)
        return
    if outcome.run_id is None:
        console.print(f"nothing to score for {outcome.output}: {_counts(outcome.skipped)}")
        return
    console.print(
        f"run {outcome.run_id[:8]}: {outcome.scored} scored, {outcome.failed} failed in {outcome.seconds:.1f} s "
        f"into {outcome.output} (version {outcome.table_version}); why: {_counts(outcome.reasons)}"
    )
    if outcome.skipped:
        console.print(f"  not planned: {_counts(outcome.skipped)}")
    if outcome.dropped:
        console.print(f"  {outcome.dropped} units were published by another run, or withdrawn, meanwhile")
    if outcome.failed:
        console.print(f"  {outcome.failed} units failed, and their rows say why; see: diastole quarantine")


def show_runs(lake: Lake, *, as_json: bool) -> None:
    """All runs, the ended ones first by time."""
    rows = []
    for run_id in runs.list_runs(lake):
        record = runs.read_record(lake, run_id) or {}
        plan = runs.read_plan(lake, run_id)
        rows.append(
            {
                "run_id": run_id,
                "job": plan.job["name"],
                "state": record.get("state", "stopped" if runs.is_stopped(lake, run_id) else "unfinished"),
                "units": plan.units.num_rows,
            }
            | {
                "scored": record.get("scored"),
                "failed": record.get("failed"),
                "seconds": record.get("seconds"),
                "at": record.get("at"),
            }
        )
    rows.sort(key=lambda row: str(row["at"]))
    if as_json:
        print_json(rows)
    else:
        _table(
            "runs",
            ["run", *list(rows[0])[1:]] if rows else ["run"],
            [[r["run_id"][:8], *list(r.values())[1:]] for r in rows],
        )


def show_run(lake: Lake, prefix: str, *, as_json: bool) -> str:
    """One run; its id."""
    run_id = runs.resolve(lake, prefix)
    plan, record = runs.read_plan(lake, run_id), runs.read_record(lake, run_id)
    if as_json:
        print_json({"plan": plan.header(), "reasons": plan.reasons, "refusals": plan.refusals, "record": record})
        return run_id
    show_plan(plan, as_json=False)
    record = dict(record or {"state": "unfinished: run its job again to finish it"})
    if predicted := record.pop("predicted", None):
        record["predicted"] = said(predicted)[0].removeprefix("estimate: ")
    for key, value in record.items():
        console.print(
            f"  {key}: {_counts(value) if isinstance(value, dict) and key in ('skipped', 'reasons') else value}"
        )
    return run_id


def show_predictions(lake: Lake, output: str, level: str, limit: int | None, csv: Path | None, *, as_json: bool) -> int:
    """The result of each item that its job means now; how many were shown or written.

    JSON and CSV have all columns of the table, whatever is in them.
    """
    import pyarrow.compute as pc

    current = predictions.read_current(lake, output).to_table(filter=pc.field("level") == level)
    empty = [name for name in current.column_names if current[name].null_count == current.num_rows]
    hidden = {
        "level",
        "key_group",
        "device",
        "model",
        "model_version",
        "attempt",
        "input_digest",
        "model_digest",
        "spec_digest",
        "run_id",
        "versions",
        "scored_at",
        *empty,
    }
    if csv is not None:
        _write_csv(current, csv)
        console.print(f"{current.num_rows} rows in {csv}")
        return int(current.num_rows)
    order = [("item_id", "ascending")] + ([("ordinal", "ascending")] if level == "row" else [])
    rows = current.sort_by(order).slice(0, _rows(limit, as_json=as_json))
    if as_json:
        print_json(rows.to_pylist())
        return int(rows.num_rows)
    shown = [name for name in current.column_names if name not in hidden]
    cells = [[_brief(row[name]) for name in shown] for row in rows.to_pylist()]
    _table(f"{output}: {rows.num_rows} of {current.num_rows} {level} rows", shown, cells)
    return int(rows.num_rows)


def _write_csv(table: Any, path: Path) -> None:
    import csv

    try:
        file = path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}; name another file") from None
    with file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            for row in batch.to_pylist():
                writer.writerow([json.dumps(v) if isinstance(v, list | dict) else v for v in row.values()])


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return f"[{len(value)} × {len(value[0])}]"
        inner = ", ".join(_brief(v) for v in value[:6])
        return f"[{inner}{', …' if len(value) > 6 else ''}]"
    if isinstance(value, dict):
        return str(value.get("path", value))
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def show_quarantine(lake: Lake, source: Path | None, *, as_json: bool) -> int:
    """What could not be ingested, and the item rows that failed: one view; how many."""
    rows = [
        {"stage": "ingest", "where": r["dataset"], "id": r["source_key"], "code": r["error_code"], "reason": r["error"]}
        | {"retry": "mend or replace the file, then ingest again; or ingest --retry"}
        for r in quarantine.read(lake).to_pylist()
        if r["state"] == "open"
    ]
    for output in lake.store.folders("predictions"):
        rows += [
            {"stage": "score", "where": output, "id": r["item_id"], "code": r["error_code"], "reason": r["error"]}
            | {"retry": f"diastole run JOB --only {r['item_id']} --retry --workers 0"}
            for r in predictions.failed(lake, output).to_pylist()
        ]
    if source is not None:
        names = {lake.source_key(absolute(p)): str(p) for p in [source, *sorted(source.rglob("*"))]}
        for row in rows:
            row["file"] = names.get(row["id"])
    if as_json:
        print_json(rows)
        return len(rows)
    counts = Counter(f"{row['stage']}: {row['code']}" for row in rows)
    console.print(f"{len(rows)} in quarantine: {_counts(dict(counts))}")
    if rows:
        _table("", list(rows[0]), [list(row.values()) for row in rows[:200]])
    if any(row["stage"] == "score" for row in rows):
        console.print("after a fix, all that failed at scoring: diastole quarantine --retry")
    return len(rows)


def show_retried(lake: Lake, outcomes: list[Outcome], *, as_json: bool) -> None:
    """What became of units that were scored again, and what only their sources can bring."""
    sources = Counter(row["dataset"] for row in quarantine.read(lake).to_pylist() if row["state"] == "open")
    if as_json:
        print_json({"runs": [outcome.__dict__ for outcome in outcomes], "sources": dict(sources)})
        return
    for outcome in outcomes:
        show_outcome(outcome, as_json=False)
    if not outcomes:
        console.print("nothing in quarantine failed at scoring")
    for dataset, count in sorted(sources.items()):
        console.print(
            f"{dataset}: {count} sources stay in quarantine; try them with: diastole ingest {dataset} PATHS --retry"
        )


def show_check(
    found: Scrubbed,
    repaired: Repaired | None,
    unsound: Sequence[Unsound] = (),
    unread: Mapping[str, str] = MappingProxyType({}),
    *,
    as_json: bool,
) -> None:
    """What a check found, and what became of it."""
    wrong = [{"path": finding.path, "what": finding.problem} for finding in found.findings]
    if as_json:
        items = {"unsound": [asdict(one) for one in unsound], "unread": dict(unread)}
        print_json({"files": found.files, "wrong": wrong, **items, **({} if repaired is None else asdict(repaired))})
        return
    console.print(f"{found.files} files checked, {len(wrong)} wrong")
    for one in wrong:
        console.print(f"  {one['path']}: {one['what']}")
    for item in unsound:
        console.print(f"  item {item.item_id} of {item.dataset}: {item.problem} ({item.code})")
    for dataset, why in unread.items():
        console.print(f"  {dataset}: its items were not looked at: {why}")
    if repaired is None:
        return
    for path, what in repaired.mended:
        console.print(f"  repaired: {path}: {what}")
    for output, count in repaired.outputs.items():
        console.print(f"{output}: {count} results were taken out; its job's next run scores them again")
    for path, what in repaired.left:
        console.print(f"  not repaired: {path}: {what}")


def show_checkup(findings: list[dict[str, Any]], *, as_json: bool) -> None:
    """What the doctor found."""
    if as_json:
        print_json(findings)
        return
    _table(
        "",
        ["", "", "found", "to do"],
        [["ok" if f["ok"] else "!!", f["name"], f["found"], f["mend"]] for f in findings],
    )
