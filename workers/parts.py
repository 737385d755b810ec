"""The writing stage: results into maps, part files and the receipt that says they are there."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..jobs import receipts
from ..jobs.ledger import Shard
from ..jobs.parts import write_part
from ..jobs.plan import Plan
from ..jobs.receipts import LOST, Receipt
from ..jobs.task import DenseMap, Result, Task
from ..lake import arrays, crash, predictions
from ..lake.errors import ItemError
from ..lake.layout import Lake
from .faults import blamed
from .models.runtime import Networks
from .queue import ByteQueue


class ShardWriter:
    """Writes what the compute stage hands over, shard by shard, in a thread of its own."""

    def __init__(
        self, lake: Lake, plan: Plan, task: Task, networks: Networks, on_receipt: Callable[[Receipt], None]
    ) -> None:
        self._lake, self._plan, self._task, self._on_receipt = lake, plan, task, on_receipt
        self._networks = networks
        self._root = lake.predictions(plan.output)
        self._key = {
            "model_digest": plan.model_digest,
            "spec_digest": plan.spec_digest,
            "run_id": plan.run_id,
        }
        self._fixed = {
            "model": plan.model.split("@")[0],
            "model_version": plan.model.split("@")[1],
            "device": networks.device_name(),
            "versions": networks.versions(),
        }

    def run(self, written: ByteQueue[Any]) -> None:
        """Take messages of shards, which may overlap, until stop."""
        open_shards: dict[str, _Open] = {}
        while (messages := written.get()) is not None:
            for kind, value in messages:
                if kind == "stop":
                    return
                self._follow(kind, value, open_shards)

    def _follow(self, kind: str, value: Any, open_shards: dict[str, "_Open"]) -> None:
        if kind == "begin":
            open_shards[value[0].shard] = _Open(*value)
            return
        begun, opened = time.perf_counter(), open_shards[value[0]]
        if kind == "unit":
            self._take(opened, *value[1:])
        elif kind == "block":
            self._take_block(opened, *value[1:])
        elif kind == "lost":
            opened.together.append(value[1:])
        opened.seconds += time.perf_counter() - begun
        if kind == "end":
            self._on_receipt(self._close(open_shards.pop(value[0]), value[1]))

    def _take(self, opened: "_Open", row: dict[str, Any], result: Result | ItemError) -> None:
        if isinstance(result, ItemError):
            opened.items.append(_Item(row, result))
            return
        count = len(next(iter(result.rows.values()))) if result.rows else 0
        maps = [self._map(opened, row, name, dense) for name, dense in result.maps.items()]
        opened.items.append(_Item(row, None, count, maps, result.columns))
        if count:
            key = {"item_id": row["item_id"], "input_digest": row["input_digest"], **self._key}
            fixed = {name: [value] * count for name, value in key.items()}
            opened.rows.append(
                columns_to_table(
                    {**fixed, "ordinal": list(range(count)), **result.rows},
                    predictions.row_schema(self._task.row_columns),
                )
            )

    def _take_block(self, opened: "_Open", units: pa.Table, results: Sequence[Any]) -> None:
        for places, columns in results:
            here = units if len(places) == units.num_rows else units.take(pa.array(places))
            opened.together.append((here, columns))

    def _scored_together(self, opened: "_Open") -> list[pa.Table]:
        """Item rows of blocks: the task makes the columns of all of the shard's at once."""
        scored = [(units, outputs) for units, outputs in opened.together if not isinstance(outputs, ItemError)]
        if not scored:
            return []
        units = pa.concat_tables([units for units, _ in scored])
        return self._finished(units, self._networks.joined([outputs for _, outputs in scored]))

    def _finished(self, units: pa.Table, outputs: Mapping[str, Any]) -> list[pa.Table]:
        """What a task fails on is halved, until it is an item alone."""
        try:
            with blamed("task"):
                columns = self._task.finish_block(outputs)
        except ItemError as error:
            if units.num_rows == 1:
                return [self._failed(units, error)]
            half = units.num_rows // 2
            first, second = ({n: v[cut] for n, v in outputs.items()} for cut in (slice(half), slice(half, None)))
            return self._finished(units.slice(0, half), first) + self._finished(units.slice(half), second)
        return [self._rows(_columns_of(units), {"status": "scored", "n_rows": 0, "maps": []}, columns)]

    def _failed(self, units: pa.Table, error: ItemError) -> pa.Table:
        same = {"status": "failed", "error_code": error.code, "error": str(error), "n_rows": 0, "maps": []}
        return self._rows(_columns_of(units), same, {})

    def _rows(self, units: Mapping[str, Any], same: Mapping[str, Any], columns: Mapping[str, Any]) -> pa.Table:
        """Item rows of units, by column, that have some values in common."""
        fixed = {**self._fixed, **self._key, **same, "scored_at": datetime.now(UTC)}
        columns = {**units, **columns}
        schema, count = predictions.item_schema(self._task.item_columns), len(columns["item_id"])
        arrays_of = [
            _column(columns[field.name], field.type)
            if field.name in columns
            else pa.repeat(pa.scalar(fixed.get(field.name), field.type), count)
            for field in schema
        ]
        return pa.table(arrays_of, schema=schema)

    def _map(self, opened: "_Open", row: dict[str, Any], name: str, dense: DenseMap) -> dict[str, Any]:
        source = next(entry for entry in row["inputs"] if entry["role"] == dense.role)
        meta = arrays.read_meta(self._lake, source["array"])
        meta = {k: meta[k] for k in ("spacing", "affine", "orientation", "time_step") if k in meta} | {
            "labels": dense.labels
        }
        stored = arrays.write_volume(
            self._lake, f"{self._maps(opened)}/{row['item_id']}/{name}", dense.data, meta, durable=False
        )
        opened.files += [file.__dict__ for file in stored.files]
        return {"name": name, "path": stored.path, "digest": stored.content_digest}

    def _maps(self, opened: "_Open") -> str:
        """Folder of a shard's maps: no other attempt writes there."""
        return f"{self._lake.maps(self._plan.output)}/{self._plan.run_id}/{opened.shard.shard}.{opened.number}"

    def _item_rows(self, opened: "_Open") -> pa.Table:
        found = self._scored_together(opened)
        found += [self._failed(units, error) for units, error in opened.together if isinstance(error, ItemError)]
        if opened.items or not found:
            found.append(self._scored_alone(opened.items))
        return pa.concat_tables(found)

    def _scored_alone(self, items: Sequence["_Item"]) -> pa.Table:
        units = {name: [item.row[name] for item in items] for name in ("item_id", "input_digest", "attempt")}
        own = {
            "status": ["scored" if item.error is None else "failed" for item in items],
            "error_code": [item.error and item.error.code for item in items],
            "error": [item.error and str(item.error) for item in items],
            "n_rows": [item.count for item in items],
            "maps": [item.maps for item in items],
        }
        task = {name: [item.columns.get(name) for item in items] for name in self._task.item_columns.names}
        return self._rows(units, {}, {**own, **task})

    def _close(self, opened: "_Open", seconds: Mapping[str, float]) -> Receipt:
        begun = time.perf_counter()
        stem = f"{self._plan.run_id}-{opened.shard.shard}-{opened.number}"
        tables = {"item": self._item_rows(opened)}
        if opened.rows:
            tables["row"] = pa.concat_tables(opened.rows)
        if opened.files:
            self._lake.store.sync(self._maps(opened))
        parts = tuple(
            write_part(self._lake, self._root, f"level={level}/key_group={self._plan.key_group}/{stem}", table, level)
            for level, table in tables.items()
        )
        crash.point("after-part")
        scored = pc.sum(pc.equal(tables["item"]["status"], "scored")).as_py() or 0
        opened.seconds += time.perf_counter() - begun
        receipt = receipts.put(
            self._lake,
            Receipt(
                run_id=self._plan.run_id,
                shard=opened.shard.shard,
                attempt=opened.number,
                parts=parts,
                files=tuple(opened.files),
                scored=scored,
                failed=tables["item"].num_rows - scored,
                codes=_failures(tables["item"], opened.shard.units),
                seconds={**seconds, "write": opened.seconds},
            ),
        )
        crash.point("after-receipt")
        return receipt


def _failures(rows: pa.Table, units: pa.Table) -> dict[str, int]:
    """Item rows that failed by code, without those that the plan had refused."""
    failed = Counter(rows["error_code"].drop_null().to_pylist())
    refused = Counter(units["refused_code"].drop_null().to_pylist())
    return dict(sorted((failed - Counter({c: n for c, n in refused.items() if c not in LOST})).items()))


def _columns_of(units: pa.Table) -> dict[str, Any]:
    return {name: units[name] for name in ("item_id", "input_digest", "attempt")}


@dataclass
class _Item:
    """What became of a unit that went through alone."""

    row: dict[str, Any]
    """Of the plan."""
    error: ItemError | None
    count: int = 0
    """Detail rows."""
    maps: list[dict[str, Any]] = field(default_factory=list)
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Of the task."""


@dataclass
class _Open:
    """What was taken of a shard so far."""

    shard: Shard
    number: int
    """Of the attempt."""
    items: list[_Item] = field(default_factory=list)
    together: list[tuple[pa.Table, Mapping[str, Any] | ItemError]] = field(default_factory=list)
    """Of blocks: rows of the plan, and the network's outputs or what they all fail with."""
    rows: list[pa.Table] = field(default_factory=list)
    """Detail rows."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """Of maps."""
    seconds: float = 0.0


def columns_to_table(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Columns of Python values and numpy arrays as Arrow; lists of arrays go in without a Python object per number."""
    return pa.table([_column(columns[field.name], field.type) for field in schema], schema=schema)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values.cast(kind)
    if (
        pa.types.is_list(kind)
        and not isinstance(values, np.ndarray)
        and any(isinstance(value, np.ndarray) for value in values)
    ):
        lengths = np.array([0 if value is None else len(value) for value in values])
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), mask=None)
        flat = [np.asarray(value) for value in values if value is not None and len(value)]
        inner = _flat(np.concatenate(flat) if flat else np.empty(0), kind.value_type)
        nulls = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(offsets, inner, type=kind, mask=nulls)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return _flat(values, kind)
    if isinstance(values, np.ndarray):
        return pa.array(values, kind)
    return pa.array(list(values), kind)


def _flat(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        count, width = (values.shape[0], values.shape[1]) if values.ndim == 2 else (0, 0)
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), kind.value_type), type=kind)
    return pa.array(values, kind)
