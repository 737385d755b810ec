"""The writing stage: results into maps, part files and the receipt that says they are there."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ..jobs import receipts
from ..jobs.ledger import Shard
from ..jobs.parts import write_part
from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..jobs.task import DenseMap, Result, Task
from ..lake import arrays, crash, predictions
from ..lake.errors import ItemError
from ..lake.layout import Lake
from .models.runtime import Networks
from .queue import ByteQueue


class ShardWriter:
    """Writes what the compute stage hands over, shard by shard, in a thread of its own."""

    def __init__(
        self, lake: Lake, plan: Plan, task: Task, networks: Networks, on_receipt: Callable[[Receipt], None]
    ) -> None:
        self._lake, self._plan, self._task, self._on_receipt = lake, plan, task, on_receipt
        self._root = lake.predictions(plan.output)
        self._fixed = {"model": plan.model.split("@")[0], "model_version": plan.model.split("@")[1]} | {
            "device": networks.device_name(),
            "versions": networks.versions(),
        }

    def run(self, written: ByteQueue[Any]) -> None:
        """Take begin, unit and end messages until stop."""
        while True:
            kind, value = written.get()
            if kind == "begin":
                (self._shard, self._number), self._items, self._rows, self._files = value, [], [], []
                self._seconds = 0.0
            elif kind == "unit":
                begun = time.perf_counter()
                self._take(*value)
                self._seconds += time.perf_counter() - begun
            elif kind == "end":
                self._on_receipt(self._close(value))
            else:
                return

    _shard: Shard
    _number: int
    _items: list[dict[str, Any]]
    _rows: list[pa.Table]
    _files: list[dict[str, Any]]

    def _take(self, row: dict[str, Any], result: Result | ItemError) -> None:
        key = {
            "item_id": row["item_id"],
            "input_digest": row["input_digest"],
            "model_digest": self._plan.model_digest,
            "spec_digest": self._plan.spec_digest,
            "run_id": self._plan.run_id,
        }
        item = {
            **key,
            **self._fixed,
            "attempt": row["attempt"],
            "scored_at": datetime.now(UTC),
            "n_rows": 0,
            "maps": [],
        }
        if isinstance(result, ItemError):
            self._items.append({**item, "status": "failed", "error_code": result.code, "error": str(result)})
            return
        count = len(next(iter(result.rows.values()))) if result.rows else 0
        maps = [self._map(row, name, dense) for name, dense in result.maps.items()]
        self._items.append({**item, "status": "scored", "n_rows": count, "maps": maps, **result.columns})
        if count:
            fixed = {name: [value] * count for name, value in key.items()}
            self._rows.append(
                columns_to_table(
                    {**fixed, "ordinal": list(range(count)), **result.rows},
                    predictions.row_schema(self._task.row_columns),
                )
            )

    def _map(self, row: dict[str, Any], name: str, dense: DenseMap) -> dict[str, Any]:
        source = next(entry for entry in row["inputs"] if entry["role"] == dense.role)
        meta = arrays.read_meta(self._lake, source["array"])
        meta = {k: meta[k] for k in ("spacing", "affine", "orientation", "time_step") if k in meta} | {
            "labels": dense.labels
        }
        prefix = f"{self._lake.maps(self._plan.output)}/{self._plan.run_id}/{self._shard.shard}.{self._number}/{row['item_id']}"
        stored = arrays.write_volume(self._lake, f"{prefix}/{name}", dense.data, meta)
        self._files += [file.__dict__ for file in stored.files]
        return {"name": name, "path": stored.path, "digest": stored.content_digest}

    def _close(self, seconds: Mapping[str, float]) -> Receipt:
        begun = time.perf_counter()
        stem = f"{self._plan.run_id}-{self._shard.shard}-{self._number}"
        schema = predictions.item_schema(self._task.item_columns)
        columns = {name: [item.get(name) for item in self._items] for name in schema.names}
        tables = {"item": columns_to_table(columns, schema)}
        if self._rows:
            tables["row"] = pa.concat_tables(self._rows)
        parts = tuple(
            write_part(self._lake, self._root, f"level={level}/key_group={self._plan.key_group}/{stem}", table, level)
            for level, table in tables.items()
        )
        crash.point("after-part")
        scored = sum(item["status"] == "scored" for item in self._items)
        self._seconds += time.perf_counter() - begun
        receipt = receipts.put(
            self._lake,
            Receipt(
                run_id=self._plan.run_id,
                shard=self._shard.shard,
                attempt=self._number,
                parts=parts,
                files=tuple(self._files),
                scored=scored,
                failed=len(self._items) - scored,
                seconds={**seconds, "write": self._seconds},
            ),
        )
        crash.point("after-receipt")
        return receipt


def columns_to_table(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Columns of Python values and numpy arrays as Arrow; lists of arrays go in without a Python object per number."""
    return pa.table([_column(columns[field.name], field.type) for field in schema], schema=schema)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind) and any(isinstance(value, np.ndarray) for value in values):
        lengths = np.array([0 if value is None else len(value) for value in values])
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), mask=None)
        flat = [np.asarray(value) for value in values if value is not None and len(value)]
        inner = _flat(np.concatenate(flat) if flat else np.empty(0), kind.value_type)
        nulls = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(offsets, inner, type=kind, mask=nulls)
    if isinstance(values, np.ndarray):
        return pa.array(values, kind)
    return pa.array(list(values), kind)


def _flat(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        count, width = (values.shape[0], values.shape[1]) if values.ndim == 2 else (0, 0)
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), kind.value_type), type=kind)
    return pa.array(values, kind)
