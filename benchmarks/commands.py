"""How soon the command line answers: `--help`, and `plan` on 100,000 items. Best and median of five, whole processes."""

import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import cohorts
import pyarrow as pa

from diastole.lake import items
from diastole.lake.layout import Lake

ITEMS = 100_000
GOALS = {"--help": 0.3, f"plan, {ITEMS:,} items": 3.0}


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds by command."""
    cohorts.make(folder, "proteins", 0.1)
    lake = Lake.open(str(folder / "lake"))
    [row] = items.read_items(lake, cohorts.DATASET).slice(0, 1).to_pylist()
    now = datetime.now(UTC)
    rows = [{**row, "item_id": f"{n:032x}", "row": n, "ingested_at": now} for n in range(ITEMS)]
    items.write_items(lake, "many", pa.Table.from_pylist(rows, items.ITEMS))
    job = folder / "many.yaml"
    job.write_text(json.dumps({"name": "many", "dataset": "many", "model": cohorts.MODEL, "output": "many"}))
    arguments = {"--help": ["--help"], f"plan, {ITEMS:,} items": ["plan", str(job)]}
    return {name: {**_timed(words), "goal": GOALS[name]} for name, words in arguments.items()}


def _timed(arguments: list[str]) -> dict[str, float]:
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run(
            [str(Path(sys.executable).parent / "diastole"), *arguments], check=True, stdout=subprocess.DEVNULL
        )
        taken.append(time.perf_counter() - begun)
    return {"best": round(min(taken), 3), "median": round(statistics.median(taken), 3)}
