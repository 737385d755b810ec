"""Whether everyone did the same work: predictions of all variants, held to each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TOLERANCE = 1e-4
"""Of a probability, absolute; and the share of residues or voxels that may be of another class."""
VALUES = ("probabilities", "mean_probability", "classes", "mask")
"""The columns that are compared, where both have them."""

Found = dict[str, np.ndarray]
"""`number`, in order, and the values of each column one after the other, in that order."""


def of_peer(out: Path) -> Found:
    """What a peer wrote."""
    parts = [pq.read_table(path) for path in sorted(out.rglob("*.parquet"))]
    return _found(pa.concat_tables(parts, promote_options="permissive"))


def of_diastole(folder: Path, output: str) -> Found:
    """What diastole published."""
    from diastole.lake.layout import Lake
    from diastole.lake.predictions import read_current

    lake = Lake.open(str(folder / "lake"))
    table = read_current(lake, output).to_table()
    order = pq.read_table(folder / "order.parquet")
    numbers = order["number"].take(pc.index_in(table["item_id"], order["item_id"]))
    values = [name for name in VALUES if name in table.column_names]
    found = table.select(values).append_column("number", numbers)
    if any(maps := table["maps"].to_pylist()):
        found = found.append_column("mask", pa.array([_mask(lake, each) for each in maps], pa.large_binary()))
    return _found(found)


def check(found: Found, wanted: Found, items: int) -> str | None:
    """How predictions are not those that are wanted, or not of each item once; None where they are."""
    if not np.array_equal(found["number"], np.arange(items)):
        return f"{len(found['number'])} rows for {items} items, or not each once"
    both = [name for name in VALUES if name in found and name in wanted]
    if not both:
        return "it has no column that could be compared"
    for name in both:
        if found[name].shape != wanted[name].shape:
            return f"{name}: {found[name].size} values instead of {wanted[name].size}"
        if found[name].dtype == np.uint8:
            apart = float(np.mean(found[name] != wanted[name]))
        else:
            apart = float(np.abs(found[name] - wanted[name]).max())
        if not apart <= TOLERANCE:
            return f"{name}: {apart:.1e} apart"
    return None


def _mask(lake: Any, maps: list[dict[str, Any]]) -> bytes:
    """A mask as its network saw the volume: (x, y, z)."""
    from diastole.lake import arrays

    data, _ = arrays.read_whole(lake, maps[0]["path"], maps[0]["digest"])
    return (data > 0).transpose(2, 1, 0).tobytes()


def _found(table: pa.Table) -> Found:
    table = table.sort_by("number")
    return {name: _values(table[name]) for name in table.column_names if name in ("number", *VALUES)}


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a column, lists flattened; texts and bytes as bytes."""
    while pa.types.is_nested(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy()
    return np.frombuffer(b"".join(value.as_buffer() for value in column), np.uint8)
