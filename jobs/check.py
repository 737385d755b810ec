"""What is held to the plan before anything is published: each shard's receipt, the files that it names, and their rows."""

from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..lake.errors import CommitError
from ..lake.layout import Lake
from .ledger import Ledger
from .parts import read_part
from .plan import Plan
from .receipts import Part, Receipt, in_threads

THREADS = 4
"""Shards that are looked at at a time where storage is far; each takes the memory of a part and of its ids."""
UNIT = ["item_id", "input_digest"]
"""What tells a unit of a plan from all others."""


def check_receipts(lake: Lake, plan: Plan, ledger: Ledger) -> None:
    """Every planned unit has one item row in a file that is there, whole, and inside the table's folder.

    Shards divide the plan's units, so that each is held to its own alone. Raises CommitError.
    """
    at, look, results = 0, partial(_check_shard, lake, plan, ledger), ledger.results()
    spans = in_threads(look, results, THREADS, 1) if _is_far(lake) else map(look, results)
    for start, stop in chain(spans, [(plan.units.num_rows, 0)]):
        if start != at:
            raise CommitError(
                f"run {plan.run_id[:8]}: its shards do not divide its units, see unit {min(start, at)}; give it up: --replan"
            )
        at = stop


def _is_far(lake: Lake) -> bool:
    """Whether reading is mostly waiting. In a folder, threads took twice the time of the processor, and were not faster."""
    return lake.store.local is None


_ROWS = pa.schema([("item_id", pa.string()), ("input_digest", pa.string()), ("n_rows", pa.int64())])
_COUNTS = pa.schema([("item_id", pa.string()), ("n", pa.int64())])
"""How many detail rows a part has of an item."""


def _check_shard(lake: Lake, plan: Plan, ledger: Ledger, receipt: Receipt) -> tuple[int, int]:
    """Hold a shard to its units of the plan; from which to which these are."""
    start, stop = ledger.span(receipt.shard)
    planned = plan.units.select(UNIT).slice(start, stop - start)
    found, details = [_ROWS.empty_table()], [_COUNTS.empty_table()]
    for part in receipt.parts:
        table = _read(lake, plan, receipt.shard, part, ["item_id"] if part.level == "row" else _ROWS.names)
        if part.level == "item":
            found.append(table.cast(_ROWS))
        else:
            counts = pc.value_counts(table["item_id"])
            details.append(pa.table([counts.field("values"), counts.field("counts")], _COUNTS))
    rows = pa.concat_tables(found)
    units, counted = differences(planned, rows, pa.concat_tables(details))
    wrong = f"{planned.num_rows} units planned, {rows.num_rows} item rows, {units} units not once" if units else None
    if counted and not units:
        listed = sum(part.rows for part in receipt.parts if part.level == "row")
        wrong = f"{listed} detail rows, but {counted} item rows count others"
    if wrong is not None:
        raise CommitError(f"shard {receipt.shard}: {wrong}; nothing is published; {_redo(plan, receipt.shard)}")
    return start, stop


def _redo(plan: Plan, shard: str) -> str:
    return f"delete runs/{plan.run_id}/receipts/{shard}.json and run again: the shard is redone"


def _read(lake: Lake, plan: Plan, shard: str, part: Part, columns: list[str]) -> pa.Table:
    """Columns of a part, held to its receipt."""
    root = lake.predictions(plan.output)
    own = f"level={part.level}/key_group={plan.key_group}/{plan.run_id}-{shard}-"
    if not part.path.startswith(own) or "/" in part.path.removeprefix(own):
        raise CommitError(f"receipt of shard {shard} names a file outside of its table; nothing is published")
    size = lake.store.size(f"{root}/{part.path}")
    if size != part.bytes:
        raise CommitError(
            f"shard {shard}: its file is {'gone' if size is None else f'of {size} bytes, not {part.bytes}'}; "
            f"{_redo(plan, shard)}"
        )
    table = read_part(lake, root, part, columns)
    if table.num_rows != part.rows:
        raise CommitError(f"shard {shard}: {table.num_rows} rows in a file, {part.rows} in its receipt")
    return table


def differences(planned: pa.Table, found: pa.Table, details: pa.Table) -> tuple[int, int]:
    """(units that do not have exactly one item row, items whose detail rows are not as many as their row says).

    `found` has `item_id`, `input_digest` and `n_rows` of item rows, `details` how many, `n`, there are of an `item_id`.
    """
    return _not_once(planned, found.select(UNIT)), _miscounted(found["item_id"], found["n_rows"], details)


def _not_once(planned: pa.Table, found: pa.Table) -> int:
    if found.equals(planned):  # as workers write them where nothing came in between
        return 0
    at = _places(_units(found), _units(planned))
    return int((at < 0).sum()) + int((np.bincount(at[at >= 0], minlength=planned.num_rows) != 1).sum())


def _miscounted(items: pa.ChunkedArray, said: pa.ChunkedArray, details: pa.Table) -> int:
    left = pc.fill_null(said, 0).to_numpy()
    if details.num_rows == 0:
        return int((left != 0).sum())
    at = _places(details["item_id"], items)
    there = np.bincount(at[at >= 0], weights=details["n"].to_numpy()[at >= 0], minlength=len(items))
    left = np.bincount(_places(items, items), weights=left, minlength=len(items))  # of an item twice, at the first
    return int((at < 0).sum()) + int((left != there).sum())


def _units(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["item_id"], table["input_digest"], "/")


def _places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where each value first is among others; -1 where it is not."""
    return pc.fill_null(pc.index_in(values, value_set=among), -1).to_numpy().astype(np.int64)
