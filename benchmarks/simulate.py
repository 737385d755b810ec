"""Growth: the real dispatcher, ledger, receipts and commit under made work on a made clock, at more and more shards.

    python benchmarks/simulate.py [--shards 1000 10000 100000 1000000] [--folder /dev/shm] [--name memory]

Each point runs in a process of its own, so that its memory is its own, and goes to docs/growth.json and docs/growth.svg.
Attempts and receipts are real files, one of each for each shard; the workers' time, deaths and failures are made, the
processor time of the driver is not. From 100,000 shards on, a part file holds the rows of a hundred shards (its receipt
is that of the first), since writing a million files is what is measured least and takes longest; the time of a commit
is therefore given by part as well. At a million shards, marks of attempts that ended are removed, so that memory holds
the rest. The plan is made from a table: what planning costs is measured elsewhere.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diastole.cluster.simulated import Simulated, Work, made_rows, run_simulated
from diastole.jobs.commit import commit
from diastole.jobs.ledger import Ledger, Shard
from diastole.jobs.parts import write_part
from diastole.jobs.plan import UNITS, Plan
from diastole.jobs.receipts import Part
from diastole.jobs.units import INPUT
from diastole.lake import delta, predictions
from diastole.lake.layout import Lake

DOCS = Path(__file__).parents[1] / "docs"
UNITS_EACH = 10
GROUPED = 100_000
"""From so many shards on, a part holds the rows of a hundred."""
FORGOTTEN = 1_000_000
"""From so many shards on, the mark of an attempt that ended is removed: a folder in memory takes 4 kB for each."""
COLUMNS = pa.schema([pa.field("score", pa.float64()), pa.field("variance", pa.float64())])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", default="/dev/shm" if Path("/dev/shm").is_dir() else None)
    parser.add_argument("--name", default="memory", help="how the folder is called in the results")
    parser.add_argument("--phase", choices=PHASES, help="one phase of a point in this process, at the folder")
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(PHASES[arguments.phase](arguments.shards[0], arguments.folder)))
        return
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = {}
            for phase in PHASES:
                line = [sys.executable, __file__, "--phase", phase, "--shards", str(shards), "--folder", folder]
                out = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
                print(shards, phase, out, flush=True)
                found |= json.loads(out)
        keep(arguments.name, found)


def keep(name: str, found: dict[str, Any]) -> None:
    """Add a point to docs/growth.json, and draw the curves anew."""
    path = DOCS / "growth.json"
    points = json.loads(path.read_text()) if path.exists() else {}
    points.setdefault(name, {})[str(found["shards"])] = found
    path.write_text(json.dumps(points, indent=1) + "\n")
    (DOCS / "growth.svg").write_text(drawn(points["memory"]))


def run(shards: int, folder: str) -> dict[str, Any]:
    """Hand out so many shards, and score them."""
    os.environ["DIASTOLE_KEYS"] = f"{folder}/keys"
    lake, plan, work = Lake.create(f"{folder}/lake"), made_plan(shards), made_work(shards)
    found: dict[str, Any] = {"shards": shards, "units": plan.units.num_rows, "workers": work.workers}
    found |= {"group": group(shards), "plan_mb": round(plan.units.nbytes / 2**20, 1)}
    before = rss()
    ledger = Ledger(lake, plan, in_process=False)
    found["ledger_mb"] = round(rss() - before, 1)
    before, begun = rss(), time.perf_counter()
    did = run_simulated(lake, ledger, work, Writer(lake, plan, group(shards)))
    found["simulated_in_s"] = round(time.perf_counter() - begun, 1)
    found["dispatch_mb"] = round(rss() - before, 1)
    found["driver_us_per_shard"] = round(did.driver_seconds / shards * 1e6, 1)
    found["shards_per_driver_s"] = round(shards / did.driver_seconds)
    return found | {"with_copies": spread(did, work.workers), "events": did.events}


def without(shards: int, folder: str) -> dict[str, Any]:
    """The same without copies of what is late."""
    if shards >= GROUPED:
        return {}
    lake, plan, work = Lake.create(f"{folder}/without"), made_plan(shards), made_work(shards)
    alone = run_simulated(lake, Ledger(lake, plan, in_process=False), work, lambda *_: (), copies=False)
    return {"without_copies": spread(alone, work.workers)}


def publish(shards: int, folder: str) -> dict[str, Any]:
    """Find the run finished, and commit it."""
    lake, plan = Lake.open(f"{folder}/lake"), made_plan(shards)
    before, begun = rss(), time.perf_counter()
    ledger = Ledger(lake, plan, in_process=False)
    found = {"resume_s": round(time.perf_counter() - begun, 2), "resume_mb": round(rss() - before, 1)}
    begun, before = time.perf_counter(), peak()
    done = commit(lake, plan, ledger, predictions.table_schema(COLUMNS, pa.schema([])))
    found["commit_s"] = round(time.perf_counter() - begun, 2)
    found["commit_peak_mb"] = round(peak() - before, 1)
    found["commit_ms_per_part"] = round(found["commit_s"] / (shards / group(shards)) * 1e3, 2)
    if done.rows != plan.units.num_rows:
        raise SystemExit(f"{plan.units.num_rows} units, {done.rows} rows")
    table = delta.open_table(lake, lake.predictions(plan.output))
    sizes = pa.table(table.get_add_actions()).column("size_bytes").to_pylist() if table else []
    return found | {
        "rows": done.rows,
        "table_files": done.parts,
        "table_mb": [round(size / 2**20, 2) for size in sizes][:20],
    }


PHASES = {"run": run, "without": without, "publish": publish}


def group(shards: int) -> int:
    """Shards whose rows are in one part."""
    return 100 if shards >= GROUPED else 1


def made_work(shards: int) -> Work:
    """One shard in a thousand is met by a slow worker, one in two thousand by a death, and by a failure of storage."""
    return Work(min(1000, max(10, shards // 10)), slow=0.001, deaths=0.0005, returns=0.0005)


def spread(did: Simulated, workers: int) -> dict[str, float]:
    """Seconds on the made clock, and the least that they could be."""
    ideal = did.busy / workers
    return {"made_s": round(did.seconds, 1), "ideal_s": round(ideal, 1), "of_ideal": round(ideal / did.seconds, 3)}


class Writer:
    """Writes the rows of a shard as its part; or those of a group of shards, as the part of the first."""

    def __init__(self, lake: Lake, plan: Plan, group: int) -> None:
        self.lake, self.plan, self.group = lake, plan, group
        self.forget = len(plan.units) >= FORGOTTEN * UNITS_EACH

    def __call__(self, shard: Shard, number: int) -> tuple[Part, ...]:
        """The parts of a shard and an attempt."""
        if self.forget:
            self.lake.store.delete(f"{self.lake.run(self.plan.run_id)}/attempts/{shard.shard}.{number}")
        units = shard.units
        if self.group > 1:
            if "-" in shard.shard:
                raise SystemExit("a shard was split, which the parts of groups are not made for; take another seed")
            if int(shard.shard) % self.group:
                return ()
            units = self.plan.units.slice(int(shard.shard) * UNITS_EACH, self.group * UNITS_EACH)
        stem = f"level=item/key_group={self.plan.key_group}/{self.plan.run_id}-{shard.shard}-{number}"
        root = self.lake.predictions(self.plan.output)
        return (write_part(self.lake, root, stem, made_rows(self.plan, units, COLUMNS), "item"),)


def made_plan(shards: int) -> Plan:
    """A plan of ten units a shard."""
    chance = np.random.default_rng(0)
    total = shards * UNITS_EACH
    items = _hex(chance, total)
    numbers = np.arange(total)
    places = pa.array([f"datasets/d/arrays/{n:032x}" for n in range(shards)]).take(pa.array(numbers // UNITS_EACH))
    rows = pa.array(numbers % UNITS_EACH)
    entries = pa.StructArray.from_arrays(
        [pa.repeat("input", total), items, _hex(chance, total), places, rows], fields=list(INPUT)
    )
    columns = {
        "unit": pa.array(numbers),
        "shard": pa.array([f"{n:05d}" for n in range(shards)]).take(pa.array(numbers // UNITS_EACH)),
        "item_id": items,
        "subject_id": _hex(chance, total // 2).take(pa.array(numbers // 2)),
        "inputs": pa.ListArray.from_arrays(pa.array(np.arange(total + 1), pa.int32()), entries),
        "input_digest": _hex(chance, total),
        "reason": pa.repeat("new", total),
        "attempt": pa.repeat(1, total),
        "refused_code": pa.nulls(total, pa.string()),
        "refused": pa.nulls(total, pa.string()),
        "cost": pa.repeat(1e6, total),
    }
    header = {"job": {"name": "j", "resources": {"attempts": 3}}, "model": "m@1", "options": {}, "output": "o"}
    header |= {"model_digest": "0" * 32, "spec_digest": "1" * 32, "key_group": "01234567", "task": "classify"}
    header |= {"task_version": 1, "table_version": -1, "device": "cpu", "batch": 1, "runtime": {}, "skipped": {}}
    return Plan(**header, units=pa.table(columns, schema=UNITS), run_id="ab" * 16)


def _hex(chance: np.random.Generator, count: int) -> pa.Array:
    """Random digests of 32 letters."""
    letters = pa.py_buffer(chance.bytes(16 * count).hex().encode())
    return pa.StringArray.from_buffers(count, pa.py_buffer(np.arange(count + 1, dtype=np.int32) * 32), letters)


def rss() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def drawn(points: dict[str, dict[str, Any]]) -> str:
    """The curves as SVG, both axes logarithmic."""
    shards = sorted(int(n) for n in points)
    panels = {
        "driver, µs per shard": [points[str(n)]["driver_us_per_shard"] for n in shards],
        "ledger and dispatcher, bytes per shard": [
            max(1.0, (points[str(n)]["ledger_mb"] + points[str(n)]["dispatch_mb"]) * 2**20 / n) for n in shards
        ],
        "receipts read at a resume, s": [points[str(n)]["resume_s"] for n in shards],
        "commit, s": [points[str(n)]["commit_s"] for n in shards],
    }
    width, height = 250, 180
    body = []
    for number, (title, values) in enumerate(panels.items()):
        left, low, high = 50 + number * (width + 40), min(values) / 2, max(values) * 2
        x = [left + (np.log10(n / shards[0]) / max(1e-9, np.log10(shards[-1] / shards[0]))) * width for n in shards]
        y = [40 + height - np.log(v / low) / np.log(high / low) * height for v in values]
        body.append(f'<rect x="{left}" y="40" width="{width}" height="{height}" fill="none" stroke="#bbb"/>')
        body.append(f'<text x="{left}" y="28" font-weight="bold">{title}</text>')
        line = " ".join(f"{a:.0f},{b:.0f}" for a, b in zip(x, y, strict=True))
        body.append(f'<polyline points="{line}" fill="none" stroke="#1f6fb2" stroke-width="2"/>')
        for n, value, a, b in zip(shards, values, x, y, strict=True):
            body.append(f'<circle cx="{a:.0f}" cy="{b:.0f}" r="3" fill="#1f6fb2"/>')
            body.append(f'<text x="{a:.0f}" y="{b - 8:.0f}" text-anchor="middle">{value:.3g}</text>')
            body.append(f'<text x="{a:.0f}" y="{58 + height}" text-anchor="middle">{n:,}</text>')
    size = f'width="{50 + len(panels) * (width + 40)}" height="{height + 80}"'
    style = 'font-family="sans-serif" font-size="11"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *body, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
