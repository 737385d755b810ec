"""`make bench`: from the lake to the table, beside the same model on batches that are in memory already.

    python benchmarks/run.py [--rounds 3] [commands] [proteins] [volumes]

The ceiling is one process with two threads that only calls the network, on the very batches that diastole makes; nothing
is read, prepared or written. All variants take turns within each round, and ratios are between medians. Start-up (Ray,
imports, the model) is counted apart. Results go to docs/performance.json and docs/performance.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import commands
import made
import psutil

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
VARIANTS = {
    "ceiling": "the network alone, 1 process × 2 threads",
    "here": "diastole, this process, 2 threads",
    "ray-1": "diastole, 1 Ray worker × 2 threads",
    "ray-2": "diastole, 2 Ray workers × 1 thread",
}


def main() -> None:
    """Run the workloads that are named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=[], help=", ".join(made.WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.workloads or ["commands", *made.WORKLOADS]:
        with tempfile.TemporaryDirectory(prefix="diastole-bench-") as folder:
            os.environ.update({"DIASTOLE_KEYS": f"{folder}/keys", "DIASTOLE_LAKE": f"{folder}/lake"})
            if name == "commands":
                results[name] = commands.measure(Path(folder))
                continue
            units = made.WORKLOADS[name](Path(folder))
            results[name] = {"units": units, "variants": measure(Path(folder), name, arguments.rounds)}
    write(results)


def measure(folder: Path, workload: str, rounds: int) -> dict[str, Any]:
    """Seconds, start-up and peak memory of each variant, by round."""
    measured: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds):
        for variant in VARIANTS:
            job = made.write_job(folder, workload, f"{variant}-{number}", variant)
            measured[variant].append(one(variant, job))
            print(f"{workload} {number} {variant}: {measured[variant][-1]}", flush=True)
    ceiling = statistics.median(m["seconds"] for m in measured["ceiling"])
    return {
        variant: {
            "what": VARIANTS[variant],
            "seconds": statistics.median(m["seconds"] for m in values),
            "all_seconds": [m["seconds"] for m in values],
            "startup_s": statistics.median(m["startup_s"] for m in values),
            "peak_mb": max(m["peak_mb"] for m in values),
            "of_ceiling": round(ceiling / statistics.median(m["seconds"] for m in values), 3),
        }
        for variant, values in measured.items()
    }


def one(variant: str, job: Path) -> dict[str, float]:
    """One run in processes of its own, and the peak memory of them all."""
    binary = str(Path(sys.executable).parent / "diastole")
    ceiling = [sys.executable, str(HERE / "ceiling.py"), str(job)]
    command = ceiling if variant == "ceiling" else [binary, "run", str(job), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0.0]
    watch = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watch.start()
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    found = json.loads(out)
    return {"seconds": found["seconds"], "startup_s": found["startup_seconds"], "peak_mb": round(peak[0] / 2**20)}


def _watch(pid: int, peak: list[float]) -> None:
    """Peak of the summed unique memory of a process and its children."""
    try:
        while True:
            root = psutil.Process(pid)
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.1)
    except psutil.Error:
        return


def write(results: dict[str, Any]) -> None:
    """docs/performance.json, and the same as a table for people."""
    machine = {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray", "zarr", "pyarrow", "deltalake")},
    }
    DOCS.mkdir(exist_ok=True)
    path = DOCS / "performance.json"
    old = json.loads(path.read_text())["workloads"] if path.exists() else {}
    workloads = {**old, **results}
    path.write_text(json.dumps({"machine": machine, "workloads": workloads}, indent=1) + "\n")
    lines = ["# Performance", "", (HERE / "about.md").read_text().strip(), ""]
    lines += [", ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    answers = workloads.pop("commands", {})
    lines += ["| command | best, s | median, s | goal, s |", "|---|---|---|---|"] if answers else []
    lines += [f"| {name} | {v['best']:.2f} | {v['median']:.2f} | {v['goal']:g} |" for name, v in answers.items()] + [""]
    for name, result in workloads.items():
        lines += [
            f"## {name}: {result['units']}",
            "",
            "| variant | work, s | of the ceiling | start-up, s | peak memory, MB |",
        ]
        lines += ["|---|---|---|---|---|"]
        for values in result["variants"].values():
            row = [values["what"], f"{values['seconds']:.2f}", f"{values['of_ceiling']:.2f}"]
            row += [f"{values['startup_s']:.1f}", f"{values['peak_mb']:.0f}"]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    (DOCS / "performance.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
