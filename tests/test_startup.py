"""How soon the command line answers."""

import subprocess
import sys
import time
from datetime import UTC, datetime

import made
import pyarrow as pa

from diastole.lake import items


def fastest(times, *arguments):
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        line = [sys.executable, "-m", "diastole.cluster", *map(str, arguments)]
        subprocess.run(line, capture_output=True, check=True, timeout=60)
        best = min(best, time.perf_counter() - begun)
    return best


def test_help_answers_at_once():
    assert fastest(5, "--help") < 0.3


def test_a_hundred_thousand_items_are_planned_in_three_seconds(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    made.add_proteins(lake, tmp_path / "src", made.proteins(1))
    made.residues(lake)
    number = 100_000
    [row] = items.read_items(lake, "d").slice(0, 1).to_pylist()
    rows = pa.Table.from_pylist([row] * number, items.ITEMS)
    ids = pa.array([f"{n:032x}" for n in range(number)])
    rows = rows.set_column(0, items.ITEMS.field("item_id"), ids)
    rows = rows.set_column(rows.column_names.index("row"), items.ITEMS.field("row"), pa.array(range(number)))
    now = pa.array([datetime.now(UTC)] * number, pa.timestamp("us", tz="UTC"))
    rows = rows.set_column(rows.column_names.index("ingested_at"), items.ITEMS.field("ingested_at"), now)
    items.write_items(lake, "big", rows)
    assert fastest(2, "plan", made.job_file(tmp_path, dataset="big")) < 3.0
