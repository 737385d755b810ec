"""`make bench`: diastole beside the network alone, and beside what a user would pick instead.

    python benchmarks/run.py [commands] [images64] [images224] [volumes] [proteins]
        [--rounds 3] [--seconds 20] [--variants here raydata …] [--folder FOLDER] [--no-docs]

A cohort is made once for about so many seconds of work. In each round every variant scores it once, in a process of its
own, in an order that turns by round; its predictions are held to those of diastole and removed. Results go to
docs/performance.json and docs/performance.md after each workload.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cohorts
import commands
import compare
import psutil
import report
from cohorts import MODEL, TUNED
from memory import MOST, Watch
from variants import DIASTOLE, HERE, Variant, by_hand, variants, write_job

RECORD_MB = 768
"""Megabytes of batches that the ceiling goes round on."""


def main() -> None:
    """Run the workloads that are named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=["commands", *cohorts.workloads()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--variants", nargs="*", default=None)
    parser.add_argument("--folder", type=Path, help="keep the cohorts here, for another time")
    parser.add_argument("--no-docs", action="store_true", help="show the table, and write no file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diastole-bench-") as temporary:
        for name in arguments.workloads:
            folder = (arguments.folder or Path(temporary)).resolve() / name
            if name == "commands":
                folder.mkdir(parents=True, exist_ok=True)
                result = commands.measure(folder)
            else:
                result = measure(folder, name, arguments)
            report.keep({name: result}, write=not arguments.no_docs)


def measure(folder: Path, workload: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a workload."""
    cohort = cohorts.make(folder, workload, arguments.seconds)
    chosen = [one for one in variants(workload) if arguments.variants is None or one.name in arguments.variants]
    absent = {one.name: reason for one in chosen if (reason := one.missing())}
    chosen = [one for one in chosen if one.name not in absent]
    for batches in {one.batches for one in chosen if one.is_ceiling}:
        if not (folder / batches).exists():
            record(folder, batches)
    rounds: dict[str, list[dict[str, Any]]] = {one.name: [] for one in chosen}
    wanted: compare.Found | None = None
    for number in range(arguments.rounds):
        turn = number * len(chosen) // max(arguments.rounds, 1)
        order = chosen[turn:] + chosen[:turn]
        if wanted is None and any(one.name in DIASTOLE for one in chosen):
            order.sort(key=lambda one: one.name not in DIASTOLE)  # first what the others are held to
        for variant in order:
            if any("error" in one for one in rounds[variant.name]):
                continue  # it has failed before, and may have taken all memory and minutes for it
            measured, found = one_run(
                folder, variant, f"{variant.name}-{number}", cohort["items"], 15 * arguments.seconds
            )
            wanted = found if wanted is None else wanted
            if found is not None and wanted is not None and (wrong := compare.check(found, wanted, cohort["items"])):
                measured["error"] = wrong
            rounds[variant.name].append(measured)
            print(f"{workload} {number} {variant.name}: {json.dumps(measured)}", flush=True)
    return {
        **cohort,
        "rounds": arguments.rounds,
        "variants": report.summarise(chosen, rounds),
        "absent": absent,
        "by_hand": by_hand(workload),
    }


def record(folder: Path, batches: str) -> None:
    """The batches that the ceiling computes."""
    output = (
        f"recorded-{time.time_ns()}"  # a run of its own: of one that was there already, nothing would be left to do
    )
    job = write_job(folder, output, {"workers": 0, "threads": 2}, TUNED if "tuned" in batches else MODEL)
    command = [sys.executable, HERE / "record.py", folder / "lake", job, RECORD_MB, folder / batches]
    subprocess.run([str(part) for part in command], check=True)


def one_run(
    folder: Path, variant: Variant, name: str, items: int, patience: float
) -> tuple[dict[str, Any], compare.Found | None]:
    """One variant in processes of its own: what was measured, and what it predicted. A failure is a measure, too."""
    out = folder / "out" / name
    begun = time.perf_counter()
    with (folder / "errors.txt").open("w+") as errors:
        process = subprocess.Popen(
            variant.command(folder, out, items),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variant.environment,
            start_new_session=True,
        )
        with Watch(process.pid) as watch:
            try:
                said, _ = process.communicate(timeout=300 + patience)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
        wall = time.perf_counter() - begun
        _end(watch.seen)
        errors.seek(0)
        tail = errors.read().strip().splitlines()[-3:]
    measured: dict[str, Any] = {"wall_s": round(wall, 3), "peak_mb": watch.peak_mb, "cpu_s": watch.cpu_s}
    found = None
    if watch.too_large:
        measured["error"] = f"ended by the benchmark: it took {watch.peak_mb} MB, over {MOST:.0%} of the memory"
    elif process.returncode:
        measured["error"] = f"exit code {process.returncode}: {' | '.join(tail)[-300:]}"
    else:
        answer = said_in(said) if variant.name not in DIASTOLE else json.loads(said)
        share = answer.get("items", items) / items  # the ceiling may compute some of them only
        measured["work_s"] = round(answer["seconds"] / share, 3)
        measured["besides_s"] = round(wall - answer["seconds"], 3)
        if variant.name in DIASTOLE:
            found = compare.of_diastole(folder, name)
        elif not variant.is_ceiling:
            found = compare.of_peer(out)
    shutil.rmtree(out, ignore_errors=True)
    for written in ("predictions", "maps", "current"):
        shutil.rmtree(folder / "lake" / written / name, ignore_errors=True)
    return measured, found


def said_in(text: str) -> dict[str, Any]:
    """The line with `seconds`; what a library prints after it, as Ray does at times, is not looked at."""
    return dict(json.loads(next(line for line in reversed(text.splitlines()) if line.startswith('{"'))))


def _end(processes: list[psutil.Process]) -> None:
    """What a variant left running must not disturb the next."""
    left = [process for process in processes if process.is_running()]
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=10)


if __name__ == "__main__":
    main()
