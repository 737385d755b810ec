"""Which rows of a dataset's tables a withdrawal takes, and what it leaves of the others."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..lake.suppressed import Suppressed
from .erase import Rule
from .repack import Repacked


def by_id(column: str, gone: Collection[str]) -> Rule:
    """Rows by the value of a column."""
    values = pa.array(sorted(gone), pa.string())

    def meant(rows: pa.Table) -> pa.Array:
        return pc.is_in(rows[column], values)

    return Rule([column], meant, lambda rows: rows.filter(pc.invert(meant(rows))))


def items_rule(gone: Collection[str], moved: Repacked) -> Rule:
    """Items that go, and those that lie elsewhere now: these keep what they are."""
    out, ids = by_id("item_id", gone), pa.array(moved.items, pa.string())
    both = by_id("item_id", {*gone, *moved.items})
    new = {"array": pa.array(moved.arrays, pa.string()), "row": pa.array(moved.rows, pa.int64())}

    def left(rows: pa.Table) -> pa.Table:
        rows = out.left(rows)
        at = pc.index_in(rows["item_id"], ids)
        for name, values in new.items():
            number, kind = rows.schema.get_field_index(name), rows.schema.field(name)
            rows = rows.set_column(number, kind, pc.if_else(at.is_valid(), values.take(at), rows[name]))
        return rows

    return Rule(["item_id"], both.meant, left)


def sources_of(rows: pa.Table, gone: Suppressed) -> tuple[pa.Array, pa.Array]:
    """Which sources have an item that goes, and which of them nothing else; those that are known go, too."""
    rows = rows.combine_chunks()
    theirs = items_among(rows, gone.items)
    all_of = pc.fill_null(pc.list_value_length(rows["items"]), 0).to_numpy()
    known = pc.is_in(rows["source_key"], pa.array(sorted(gone.sources), pa.string())).to_numpy()
    return pa.array(known | (theirs > 0)), pa.array(known | ((theirs > 0) & (theirs == all_of)))


def items_among(rows: pa.Table, items: Collection[str]) -> np.ndarray:
    """How many of the items of each source are among some; (rows,)."""
    flat, parents = pc.list_flatten(rows["items"]), pc.list_parent_indices(rows["items"])
    parents = parents.filter(pc.is_in(flat, pa.array(sorted(items), pa.string())))
    return np.bincount(parents.to_numpy().astype(np.int64), minlength=rows.num_rows)


def sources_rule(gone: Suppressed) -> Rule:
    """Sources whose items all go, or one of which is shared, so that they are read again; others forget those that go."""

    def both(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
        rows = rows.combine_chunks()
        again = pa.array(items_among(rows, gone.pending) > 0)
        some, whole = sources_of(rows, gone)
        return pc.or_(some, again), pc.or_(whole, again)

    def left(rows: pa.Table) -> pa.Table:
        some, whole = both(rows)
        kept = rows.filter(pc.and_(some, pc.invert(whole))).to_pylist()
        forgetful = [{**row, "items": [item for item in row["items"] if item not in gone.items]} for row in kept]
        return pa.concat_tables([rows.filter(pc.invert(some)), pa.Table.from_pylist(forgetful, rows.schema)])

    return Rule(["source_key", "items"], lambda rows: both(rows)[0], left)
