"""What a dataset holds: one current row per item, and the sources that they came from."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from . import delta
from .errors import LakeError
from .layout import Lake

if TYPE_CHECKING:
    from deltalake import DeltaTable

GEOMETRY = pa.struct(
    [
        pa.field("spacing", pa.list_(pa.float64())),  # mm, in the order of `orientation`; of images: x, y
        pa.field("orientation", pa.string()),  # where the first, second, third voxel axis points: RAS, LPS, …
        pa.field("affine", pa.list_(pa.float64())),  # 16 numbers, rows first: voxel (first, second, third) → RAS in mm
    ]
)
SIGNAL = pa.struct(
    [
        pa.field("rate", pa.float64()),  # Hz
        pa.field("channels", pa.list_(pa.string())),
        pa.field("units", pa.list_(pa.string())),  # per channel, UCUM: uV, mV, …
    ]
)
SEQUENCE = pa.struct(
    [
        pa.field("alphabet", pa.string()),  # dna, protein
        pa.field("letters", pa.string()),  # the letters that occur, in upper case, sorted
        pa.field("length", pa.int64()),
        pa.field("assembly", pa.string()),
    ]
)
ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("subject_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("array", pa.string()),  # path in the lake
        pa.field("row", pa.int64()),  # row in a pack, null where the array is the item
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("dtype", pa.string()),
        pa.field("nbytes", pa.int64()),
        pa.field("content_digest", pa.string()),
        pa.field("geometry", GEOMETRY),
        pa.field("signal", SIGNAL),
        pa.field("sequence", SEQUENCE),
        pa.field("attributes", pa.string()),  # JSON: what else the source says of the item, nothing of the subject
        pa.field("acquired_at", pa.timestamp("us", tz="UTC")),
        pa.field("site", pa.string()),
        pa.field("laterality", pa.string()),
        pa.field("derived_from", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("permitted_use", pa.string()),
        pa.field("state", pa.string()),  # live, gone
        pa.field("ingested_at", pa.timestamp("us", tz="UTC")),
    ]
)
SOURCES = pa.schema(
    [
        pa.field("source_key", pa.string(), nullable=False),  # keyed hash of the absolute path
        pa.field("bytes", pa.int64()),
        pa.field("modified_ns", pa.int64()),
        pa.field("source_digest", pa.string()),  # sha256
        pa.field("options_digest", pa.string()),  # what was said at ingest: modality, manifest row, …
        pa.field("items", pa.list_(pa.string())),
        pa.field("state", pa.string()),  # ingested, quarantined, gone
        pa.field("root", pa.string()),  # keyed hash of the path that was named, at or below which it was found
        pa.field("part_of", pa.string()),  # the same for files that are read together; null for those read alone
    ]
)


def open_items(lake: Lake, dataset: str) -> "DeltaTable":
    """The table of a dataset's items. Raises LakeError where it does not exist, with the names of those that do."""
    table = delta.open_table(lake, lake.dataset(dataset, "items"))
    if table is None:
        there = ", ".join(lake.datasets()) or "none yet"
        raise LakeError(f"there is no dataset {dataset!r} in this lake; there is: {there}")
    return table


def read_items(lake: Lake, dataset: str, columns: list[str] | None = None) -> pa.Table:
    """Items of a dataset. Raises LakeError where it does not exist."""
    table = open_items(lake, dataset)
    with delta.storage(lake.dataset(dataset, "items")):
        return delta.dataset(table).to_table(columns=columns)


def read_sources(lake: Lake, dataset: str) -> pa.Table:
    """Sources of a dataset, each column in one chunk; empty where it does not exist.

    Column by column, since there may be millions: all at once, Arrow takes three times what they need.
    """
    path = lake.dataset(dataset, "sources")
    table = delta.open_table(lake, path)
    if table is None:
        return SOURCES.empty_table().combine_chunks()
    columns = []
    with delta.storage(path):
        found = delta.dataset(table)
        rows = found.count_rows()
        for field in SOURCES:
            if field.name in found.schema.names:  # else it is a table from before there was such a column
                column = found.to_table([field.name]).column(0).combine_chunks().cast(field.type)
            else:
                column = pa.nulls(rows, field.type)
            columns.append(column)
            pa.default_memory_pool().release_unused()
    return pa.table(columns, schema=SOURCES)


def write_items(
    lake: Lake, dataset: str, rows: pa.Table, *, none_in: int | None = None, check: Callable[[], None] = lambda: None
) -> None:
    """Insert or replace items. `none_in`: a version of their table that has none of them; `check` as of delta.upsert."""
    delta.upsert(lake, lake.dataset(dataset, "items"), rows, "item_id", none_in=none_in, check=check)


def write_sources(lake: Lake, dataset: str, rows: pa.Table, *, none_in: int | None = None) -> None:
    """Insert or replace sources. `none_in` as for items."""
    path = lake.dataset(dataset, "sources")
    delta.add_columns(lake, path, SOURCES)
    delta.upsert(lake, path, rows, "source_key", none_in=none_in)
