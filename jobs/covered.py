"""Which items statistics of a dataset cover: those that are live and whose subject is not withdrawn, in a fixed order."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..lake import statistics, suppressed
from ..lake.database import ROWS, Spool
from ..lake.layout import Lake
from .holdings import item_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH_BYTES = 64 * 2**20
"""Bytes of items that one task reads, one item after the other, but for an item that is larger."""
BATCH_ITEMS = 4096

COVERED = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("array", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("content_digest", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("site", pa.string()),  # null where nothing is split by it
        pa.field("nbytes", pa.int64()),
    ]
)


def covered_digest(lake: Lake, dataset: str, by: str | None = None) -> str:
    """The digest of statistics over the dataset as it is now. Raises LakeError where there is no such dataset."""
    with _allowed(lake, dataset, by) as connection:
        return _digest(connection, by)


@contextmanager
def covered(lake: Lake, dataset: str, by: str | None = None) -> Iterator[tuple[str, pa.Table]]:
    """(digest of the statistics, the items: COVERED, those of one pack together). The table ends with the context."""
    with Spool(COVERED) as spool:
        with _allowed(lake, dataset, by) as connection:
            name = _digest(connection, by)
            for batch in _batches(connection, 'select * from allowed order by "array", "row", item_id'):
                spool.write_table(pa.Table.from_batches([batch]))
        yield name, spool.table()


def cuts(items: pa.Table) -> list[tuple[int, int]]:
    """(first, last + 1) of the items of each task: a function of the items alone."""
    sizes = np.concatenate(
        [np.zeros(0), *(np.nan_to_num(c.to_numpy(zero_copy_only=False)) for c in items["nbytes"].chunks)]
    )
    ends, start = np.cumsum(sizes), 0
    found = []
    while start < len(sizes):
        before = ends[start - 1] if start else 0.0
        stop = int(np.searchsorted(ends, before + BATCH_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + BATCH_ITEMS, len(sizes))
        found.append((start, stop))
        start = stop
    return found


@contextmanager
def _allowed(lake: Lake, dataset: str, by: str | None) -> Iterator["DuckDBPyConnection"]:
    gone = suppressed.read(lake)
    with item_rows(lake, dataset) as connection:
        connection.register("withdrawn", pa.table({"id": pa.array(sorted(gone.subjects | gone.items), pa.string())}))
        connection.execute(f"""
            create temp table allowed as
            select item_id, "array", "row", content_digest, kind, modality, {_site(by)} as site, nbytes from items
            where state = 'live' and "array" is not null and content_digest is not null
              and coalesce(subject_id not in (select id from withdrawn), true)
              and item_id not in (select id from withdrawn)
        """)  # noqa: S608 - ours
        yield connection


def _digest(connection: "DuckDBPyConnection", by: str | None) -> str:
    query = """
        select content_digest || '/' || coalesce(modality, '') || '/' || coalesce(site, '') || chr(10) as line
        from allowed order by 1
    """
    running = hashlib.sha256()
    for batch in _batches(connection, query):
        running.update("".join(batch["line"].to_pylist()).encode())
    return statistics.statistics_digest(running.hexdigest()[:32], by)


def _batches(connection: "DuckDBPyConnection", query: str) -> Iterator[Any]:
    yield from connection.sql(query).to_arrow_reader(ROWS)


def _site(by: str | None) -> str:
    return "site" if statistics.check_by(by) else "cast(null as varchar)"
