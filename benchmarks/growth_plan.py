"""What planning costs as a cohort grows: all new, 1 % changed, nothing changed. Seconds and peak memory.

    python benchmarks/growth_plan.py --units 100000 1000000 10000000

A lake is made with so many items rows (volumes of some fifty MB and of few kinds, or proteins, each a kind of its own;
no array is written) and as many rows of predictions with the task's real schema. Each plan is made by a process of its
own; memory is that process's: `peak` all that was resident, with pages of temporary files that are mapped, `anonymous`
without those. Results go to docs/growth_plan.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diastole.cluster.driver import Choice, plan_job
from diastole.jobs.spec import parse_job
from diastole.jobs.task import Task
from diastole.lake import delta, items, models, predictions
from diastole.lake.ids import digest, sha256_bytes
from diastole.lake.layout import Lake
from diastole.workers.tasks import make_task

RESULTS = Path(__file__).parent.parent / "docs" / "growth_plan.json"
CHUNK = 1_000_000
CHANGED = 0.01
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
MODELS: dict[str, dict[str, Any]] = {
    "volumes": {
        "task": "segment",
        "runtime": "torchscript",
        "inputs": {"input": {"modality": ["MR"], "axes": "zyx", "orientation": "RAS", "spacing_mm": {"min": 0.5, "max": 2}}},
        "classes": ["object"],
        "options": {"passes": [{"net": "main"}]},
    },
    "proteins": {
        "task": "residues",
        "runtime": "torchscript",
        "inputs": {"input": {"modality": ["protein"], "alphabet": LETTERS}},
        "classes": ["H", "E", "C"],
        "options": {"alphabet": LETTERS},
    },
}  # fmt: skip


def main() -> None:
    """Measure each size, or with `--measure` one plan, in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--items", choices=MODELS, nargs="*", default=["volumes"])
    parser.add_argument("--measure", nargs=2, metavar=("LAKE", "OUTPUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(_measured(*chosen.measure)))
        return
    found = [growth(kind, units) for kind in chosen.items for units in chosen.units]
    machine = {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
    }
    versions = {"python": platform.python_version(), **{n: version(n) for n in ("duckdb", "pyarrow", "deltalake")}}
    RESULTS.write_text(json.dumps({"machine": machine, "versions": versions, "plans": found}, indent=1) + "\n")
    print(RESULTS.read_text())


def growth(kind: str, units: int) -> dict[str, Any]:
    """One size of one kind of items."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        os.environ["DIASTOLE_KEYS"] = f"{folder}/keys"
        lake = Lake.create(f"{folder}/lake")
        manifest = models.Manifest.model_validate(
            {
                "name": "m",
                "version": "1",
                "files": {"main": {"path": "main.pt", "sha256": sha256_bytes(b"-")}},
                **MODELS[kind],
            }
        )
        models.add(lake, manifest, {"main.pt": b"-"})
        task = make_task(manifest)
        begun = time.perf_counter()
        for chunk in _items(kind, units):
            _append(lake, lake.dataset("d", "items"), chunk)
        result: dict[str, Any] = {"items": kind, "units": units, "made_s": round(time.perf_counter() - begun, 1)}
        result["all new"] = _apart(lake, "none")
        changed = int(units * CHANGED)
        _predict(lake, task, result["all new"], stale=changed)
        result["1 % changed"] = _apart(lake, "o")
        _predict(lake, task, result["all new"], only=changed)
        result["nothing changed"] = _apart(lake, "o")
        assert result["all new"]["reasons"] == {"new": units}, result
        assert result["1 % changed"]["reasons"] == {"changed": changed}, result
        assert result["nothing changed"]["skipped"] == {"already scored": units}, result
        for name in ("all new", "1 % changed", "nothing changed"):
            del result[name]["key"]
        print(json.dumps(result), file=sys.stderr)
        return result


def _apart(lake: Lake, output: str) -> dict[str, Any]:
    """A plan made by a process of its own."""
    line = [sys.executable, __file__, "--measure", lake.store.root, output]
    return dict(json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout))


def _measured(root: str, output: str) -> dict[str, Any]:
    lake = Lake.open(root)
    job = parse_job({"name": "j", "dataset": "d", "model": "m", "output": output, "resources": {"device": "cpu"}})
    with Memory() as memory:
        begun, worked = time.perf_counter(), time.process_time()
        plan, _, _ = plan_job(lake, job, Choice())
        seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(worked, 2),
        "peak_mb": memory.peak,
        "anonymous_mb": memory.anonymous,
        "shards": len(plan.shards),
        "reasons": plan.reasons,
        "skipped": plan.skipped,
        "key": [plan.key_group, plan.model_digest, plan.spec_digest],
    }


class Memory:
    """This process's memory while something runs, looked at twenty times a second."""

    peak, anonymous = 0, 0

    def __enter__(self) -> "Memory":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            status = Path("/proc/self/status").read_text()
            said = {
                line.split(":")[0]: int(line.split()[1]) // 1000 for line in status.splitlines() if line.endswith("kB")
            }
            self.peak, self.anonymous = max(self.peak, said["VmHWM"]), max(self.anonymous, said["RssAnon"])


def _items(kind: str, units: int) -> Iterator[pa.Table]:
    """Rows of items, a chunk at a time, always the same."""
    for number, start in enumerate(range(0, units, CHUNK)):
        count = min(CHUNK, units - start)
        random = np.random.default_rng(number)
        ids, subjects, contents = (_hexes(random, count) for _ in range(3))
        now = pa.repeat(pa.scalar(datetime(2026, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC")), count)
        columns: dict[str, Any] = {
            "item_id": ids,
            "subject_id": subjects,
            "content_digest": contents,
            "ingested_at": now,
        }
        columns["state"] = pa.repeat("live", count)
        columns |= (_volumes if kind == "volumes" else _proteins)(random, contents, start)
        yield pa.table(
            [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in items.ITEMS],
            schema=items.ITEMS,
        )


def _volumes(random: np.random.Generator, contents: pa.Array, start: int) -> dict[str, pa.Array]:
    """Volumes of 256 × 256 × some 200 voxels, in 12 lengths and 3 spacings."""
    del start
    count = len(contents)
    lengths, spacings = random.integers(45, 57, count) * 4, random.choice([0.8, 1.0, 1.2], count)
    shapes = np.stack([lengths, np.full(count, 256), np.full(count, 256)], 1)
    geometry = {
        "spacing": _lists(np.repeat(spacings, 3), 3),
        "orientation": pa.repeat("RAS", count),
        "affine": _lists(np.tile(np.eye(4).ravel(), count), 16),
    }
    return {
        "modality": pa.repeat("MR", count),
        "array": _joined("datasets/d/arrays/", contents),
        "shape": _lists(shapes.ravel(), 3),
        "dtype": pa.repeat("int16", count),
        "nbytes": pa.array(shapes.prod(1) * 2),
        "geometry": pa.StructArray.from_arrays(list(geometry.values()), list(geometry)),
    }


def _proteins(random: np.random.Generator, contents: pa.Array, start: int) -> dict[str, pa.Array]:
    """Proteins, each of its own length and description, in packs of 10,000."""
    count = len(contents)
    rows = np.arange(start, start + count)
    lengths = (random.gamma(2, 150, count) + 30).astype(np.int64)
    sequence = {
        "alphabet": pa.repeat("protein", count),
        "letters": pa.repeat(LETTERS, count),
        "length": pa.array(lengths),
        "assembly": pa.nulls(count, pa.string()),
    }
    packs = pa.array([f"datasets/d/sequences/{pack:06d}" for pack in range(rows[0] // 10_000, rows[-1] // 10_000 + 1)])
    return {
        "modality": pa.repeat("protein", count),
        "array": packs.take(pa.array(rows // 10_000 - rows[0] // 10_000)),
        "row": pa.array(rows % 10_000),
        "shape": _lists(lengths, 1),
        "dtype": pa.repeat("uint8", count),
        "nbytes": pa.array(lengths),
        "sequence": pa.StructArray.from_arrays(list(sequence.values()), list(sequence)),
        "attributes": pa.array([f'{{"description":"protein {row}"}}' for row in rows.tolist()]),
    }


def _predict(lake: Lake, task: Task, planned: dict[str, Any], *, stale: int = 0, only: int | None = None) -> None:
    """Results of all items, the first `stale` of each million of another content; or of `only` so many of the first."""
    group, model, spec = planned["key"]
    schema = predictions.table_schema(task.item_columns, task.row_columns)
    delta.ensure_table(lake, lake.predictions("o"), schema, predictions.PARTITIONS)
    left, stale_left = only, stale
    for batch in (
        items.open_items(lake, "d").to_pyarrow_dataset().to_batches(["item_id", "content_digest"], batch_size=CHUNK)
    ):
        rows = batch if left is None else batch.slice(0, left)
        left = None if left is None else left - rows.num_rows
        if not rows.num_rows:
            break
        inputs = [digest([["input", content]]) for content in rows["content_digest"].to_pylist()]
        inputs[:stale_left] = [digest(one) for one in inputs[:stale_left]]
        stale_left -= min(stale_left, rows.num_rows)
        fixed = {"level": "item", "key_group": group, "model_digest": model, "spec_digest": spec, "run_id": "0" * 32}
        fixed |= {"status": "scored", "attempt": 1, "n_rows": 0, "model": "m", "model_version": "1", "device": "cpu"}
        columns = {"item_id": rows["item_id"], "input_digest": pa.array(inputs)}
        columns |= {name: pa.repeat(value, rows.num_rows) for name, value in fixed.items()}
        arrays = [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows.num_rows, f.type) for f in schema
        ]
        _append(lake, lake.predictions("o"), pa.table(arrays, schema=schema))


def _append(lake: Lake, path: str, rows: pa.Table) -> None:
    delta.append(lake, path, rows)


def _hexes(random: np.random.Generator, count: int) -> pa.StringArray:
    """Ids of 32 hexadecimal characters."""
    offsets = np.arange(count + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(
        count, pa.py_buffer(offsets), pa.py_buffer(random.bytes(16 * count).hex().encode())
    )


def _lists(values: np.ndarray, width: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, width, dtype=np.int32), pa.array(values))


def _joined(prefix: str, values: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(prefix, values, "")


if __name__ == "__main__":
    main()
