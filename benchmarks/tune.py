"""Settings for the peers: tune.py [WORKLOAD …] [--seconds 20] [--share 0.25] [--folder FOLDER]

Each peer tries each of its candidates once on a share of the cohort; then, with the fastest, other batches and a frozen
network. The fastest of all, in seconds of work, is kept in tuned.json together with what all the others took.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohorts
import run
from variants import CHOSEN, DOCUMENTED, NAMES, Variant

BATCH = {"images64": 256, "images224": 16, "volumes": 1, "proteins": 65536}
"""As diastole's package has it."""
MEASURED = ("work_s", "error")
ROWS = {**BATCH, "proteins": 200}
"""The same where a batch is a number of rows."""


def candidates(peer: str, workload: str) -> Iterator[dict[str, Any]]:
    """What a peer may be told. The allocator is raised for all but Ray Data as documented: that never made one slower."""
    batch, rows = BATCH[workload], ROWS[workload]
    if peer == "raydata":
        size: Any = 1 if workload == "volumes" else "auto"
        yield from ({**DOCUMENTED, "batch": size, "actors": n, "cpus": cpus} for n, cpus in ((1, None), (2, 4)))
        return
    if peer == "dataloader":
        choices = [{"workers": workers, "threads": 2} for workers in (0, 1, 2)]
    elif peer == "dask":
        choices = [{"scheduler": scheduler, "workers": 2, "threads": 1} for scheduler in ("threads", "processes")]
    elif peer == "daft":
        choices = [{"workers": n, "processes": True, "threads": threads} for n, threads in ((1, 2), (2, 1))]
    else:
        pools = ((1, 2, None, 1), (2, 1, None, 1), (2, 1, 16, 1), (2, 1, None, 4))
        choices = [
            {"actors": n, "threads": threads, "blocks": blocks, "cpus": 4, "batch": times * rows, "format": "pyarrow"}
            for n, threads, blocks, times in pools
        ]
    for choice in choices:
        yield {"batch": batch if peer in ("dataloader", "dask") else rows, **choice, "raised": True}


def main() -> None:
    """Try, choose, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=list(cohorts.workloads()))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--peers", nargs="*", default=list(NAMES))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diastole-bench-") as temporary:
        for workload in arguments.workloads:
            folder = (arguments.folder or Path(temporary)).resolve() / workload
            cohort = cohorts.make(folder, workload, arguments.seconds)
            for peer in arguments.peers:
                keep(workload, peer, tried(folder, peer, workload, cohort["items"], arguments))


def tried(folder: Path, peer: str, workload: str, items: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Candidates with what they took, the fastest first."""
    found: list[dict[str, Any]] = []

    def attempt(settings: dict[str, Any]) -> None:
        variant = Variant(peer, NAMES[peer], {**settings, "share": arguments.share})
        if reason := variant.missing():
            raise SystemExit(reason)
        measured, _ = run.one_run(folder, variant, f"tune-{peer}", items, 15 * arguments.seconds)
        found.append({**settings, **{key: measured[key] for key in ("work_s", "error") if key in measured}})
        found.sort(key=lambda one: one.get("work_s", float("inf")))
        print(f"{workload} {peer}: {json.dumps({**settings, **measured})}", flush=True)

    for settings in candidates(peer, workload):
        attempt(settings)
    for change in () if peer == "raydata" else changes(workload):
        best = {key: value for key, value in found[0].items() if key not in MEASURED}
        attempt({**best, "batch": max(1, int(best["batch"] * change.get("times", 1))), **change.get("more", {})})
    shutil.rmtree(folder / "out", ignore_errors=True)
    return found


def changes(workload: str) -> Iterator[dict[str, Any]]:
    """What is tried with the fastest candidate, one after the other."""
    yield {"times": 2}
    if workload.startswith("images"):
        yield {"times": 0.25}
    if workload != "proteins":  # whose network is one in Python
        yield {"more": {"freeze": True}}


def keep(workload: str, peer: str, found: list[dict[str, Any]]) -> None:
    """The fastest is chosen."""
    if "work_s" not in found[0]:
        raise SystemExit(f"{peer} failed with all candidates: {found[0]['error']}")
    known = json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}
    entry = known.setdefault(workload, {"chosen": {}, "tried": {}})
    entry["chosen"][peer] = {key: value for key, value in found[0].items() if key not in MEASURED}
    entry["tried"][peer] = found
    CHOSEN.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
