"""Killed in the middle and started again: diastole beside Ray Data's checkpoints and Delta sink.

    python benchmarks/resume.py [--items 150000] [--kills 6] [--folder FOLDER] [--no-docs]

Each scores the same small images. First once undisturbed; then it is killed with all of its processes as soon as a share of its
results is in storage (receipts of shards; files of Ray Data's checkpoint), and the same command runs again to its end. What
counts are the rows of its table: every image once.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import cohorts
import psutil
from cohorts import MODEL
from variants import HERE, PEERS, write_job

DOCS = HERE.parent / "docs" / "resume.json"
RAY_DATA = {"actors": 2, "batch": 256, "format": "pyarrow", "blocks": 24, "threads": 1, "cpus": 6}
"""Blocks enough for some to be done before the kill; cores (by name) beyond its actors, for its filter of checkpoints and its reads: with one, a second start waited for ever."""
PATIENCE = 180.0
"""Seconds after which a run is ended that does not end by itself."""
NAMES = {"diastole": "diastole, 2 Ray workers", "raydata": "Ray Data, checkpoints and write_delta"}


def main() -> None:
    """Measure both, in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=150_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--no-docs", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diastole-resume-") as temporary:
        folder = (arguments.folder or Path(temporary)).resolve() / "resume"
        cohort = cohorts.make(folder, "images64", arguments.items / cohorts.workloads()["images64"].items_per_second)
        whole = {name: once(folder, name, None) for name in NAMES}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        for number in range(arguments.kills):
            for name in NAMES:
                share = (number + 1) / (arguments.kills + 1)
                found[name].append(once(folder, name, share * whole[name]["results"]) | {"share": round(share, 2)})
                print(name, json.dumps(found[name][-1]), flush=True)
    result = {"items": cohort["items"], "undisturbed": whole, "killed": found}
    print("\n".join(table(result)))
    if not arguments.no_docs:
        DOCS.write_text(json.dumps(result, indent=1) + "\n")


def once(folder: Path, name: str, kill_after: float | None) -> dict[str, Any]:
    """Run to the end, killed before if that is said, when there are so many results; what the table has then."""
    out = folder / "out" / f"{name}-{time.time_ns()}"
    before = results(folder, name, out)
    if kill_after is not None:
        process, errors = start(folder, name, out)
        until = time.monotonic() + PATIENCE
        while process.poll() is None and results(folder, name, out) - before < max(1, kill_after):
            if time.monotonic() > until:
                break  # it is killed all the same: `results_at_the_kill` says how far it was
            time.sleep(0.02)
        ended, there = process.poll() is not None, results(folder, name, out) - before
        kill(process)
        errors.close()
    process, errors = start(folder, name, out)
    begun = time.perf_counter()
    try:
        code = process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        code = -1
    seconds = time.perf_counter() - begun
    kill(process)
    errors.seek(0)
    rows = rows_of(folder, name, out)
    wanted = set(range(json.loads((folder / "cohort.json").read_text())["items"]))
    found = {
        "exit_code": code,
        "results": results(folder, name, out) - before,
        "seconds": round(seconds, 2),
        "rows": sum(rows.values()),
        "lost": len(wanted - set(rows)),
        "doubled": sum(rows.values()) - len(rows),
    }
    if code:
        found["said"] = " ".join(errors.read().strip().splitlines()[-1:])[-300:]
    if kill_after is not None:
        found |= {"ended_before": ended, "results_at_the_kill": there}
    shutil.rmtree(out, ignore_errors=True)
    return found


def results(folder: Path, name: str, out: Path) -> int:
    """How many results are in storage: receipts, or files of a checkpoint."""
    if name == "diastole":
        return sum(1 for _ in (folder / "lake" / "runs").glob("*/receipts/*.json"))
    return sum(path.is_file() for path in (out / "checkpoint").rglob("*"))


def start(folder: Path, name: str, out: Path) -> tuple[subprocess.Popen[bytes], Any]:
    """One of the two."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read by the caller
    if name == "diastole":
        job = write_job(folder, out.name, {"workers": 2, "threads": 1}, MODEL)
        command = [str(Path(sys.executable).parent / "diastole"), "run", str(job), "--json"]
    else:
        command = [sys.executable, str(PEERS / "raydata_delta.py"), str(folder), str(out), json.dumps(RAY_DATA)]
    environment = {**os.environ, "PYTHONPATH": str(PEERS)} if name == "raydata" else None
    return (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True),
        errors,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """It, and all that it started."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        for one in [own, *own.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def rows_of(folder: Path, name: str, out: Path) -> Counter[int]:
    """How often each image, by number, is in the table."""
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    if name == "raydata":
        if not DeltaTable.is_deltatable(str(out / "table")):
            return Counter()
        return Counter(DeltaTable(str(out / "table")).to_pyarrow_table(columns=["number"])["number"].to_pylist())
    order = pq.read_table(folder / "order.parquet")
    numbers = dict(zip(order["item_id"].to_pylist(), order["number"].to_pylist(), strict=True))
    table = DeltaTable(str(folder / "lake" / "predictions" / out.name))
    rows = table.to_pyarrow_table(columns=["item_id", "level"]).to_pylist()
    return Counter(numbers[row["item_id"]] for row in rows if row["level"] == "item")


def table(result: dict[str, Any]) -> list[str]:
    """As Markdown."""
    lines = [
        "| | undisturbed | killed | rows that were lost, by kill | doubled | seconds of the second start, median |",
        "|---|---|---|---|---|---|",
    ]
    for name, what in NAMES.items():
        kills = result["killed"][name]
        lost, doubled = (", ".join(f"{one[key]:,}" for one in kills) for key in ("lost", "doubled"))
        again = median(one["seconds"] for one in kills)
        lines.append(
            f"| {what} | {result['undisturbed'][name]['seconds']:.1f} s | {len(kills)} times | {lost} | {doubled} | {again:.1f} |"
        )
    return lines


if __name__ == "__main__":
    main()
