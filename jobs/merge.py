"""A wave of many small parts is published as few large files: a table of a million tiny ones would be slow to read."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake.ids import sha256_bytes
from ..lake.layout import Lake
from .parts import encoding, put_part, read_part
from .plan import Plan
from .receipts import Part

MANY = ((64, 128 * 2**10), (512, 64 * 2**20))
"""(how many, bytes): more parts of a level than so many are merged if they are smaller than so many bytes.

A file takes a reader half a millisecond, which some thousand rows take too. So of files that have as many, more may stay:
to write a row anew takes as long as to read it ten times.
"""
LARGE = 128 * 2**20
"""Bytes at which a merged file is full; it is held in memory as it is made."""
ROWS = 2**17
"""Rows of a row group in a merged file."""
JOINED = 256
"""Parts that are held apart: each of a few rows takes some forty kilobytes until it is joined with others."""


def merge(lake: Lake, plan: Plan, number: int, parts: list[Part]) -> list[Part]:
    """What a wave publishes: its parts, or, of a level that has many small ones, these merged into files of some 128 MB.

    A merged file's path holds the wave and what is in it, so that merging again ends at the same files. The parts
    stay where they are, as files that no table has.
    """
    small = [part for level in ("item", "row") for part in _many([p for p in parts if p.level == level])]
    gone = {part.path for part in small}
    levels = [[p for p in small if p.level == level] for level in ("item", "row")]
    merged = [file for found in levels if found for file in _merged(lake, plan, number, found)]
    return [p for p in parts if p.path not in gone] + merged


def _many(parts: Sequence[Part]) -> list[Part]:
    """Those of a level that are so many for their size that they are merged."""
    for many, size in reversed(MANY):
        small = [part for part in parts if part.bytes < size]
        if len(small) > many:
            return small
    return []


def _merged(lake: Lake, plan: Plan, number: int, parts: Sequence[Part]) -> Iterator[Part]:
    root, level = lake.predictions(plan.output), parts[0].level
    file, rows = LargeFile(), 0
    for group in _row_groups(lake, root, parts):
        file.add(group)
        rows += group.num_rows
        if file.size >= LARGE:
            yield _put(lake, plan, root, number, file, rows, level)
            file, rows = LargeFile(), 0
    if rows:
        yield _put(lake, plan, root, number, file, rows, level)


def _row_groups(lake: Lake, root: str, parts: Sequence[Part]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    rows = apart = 0
    for part in parts:
        held.append(read_part(lake, root, part, None))
        rows, apart = rows + part.rows, apart + 1
        if rows >= ROWS:
            yield pa.concat_tables(held)
            held, rows, apart = [], 0, 0
        elif apart == JOINED:
            held[-JOINED:], apart = [pa.concat_tables(held[-JOINED:]).combine_chunks()], 0
    if held:
        yield pa.concat_tables(held)


class LargeFile:
    """A Parquet file in memory, a row group at a time."""

    def __init__(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._sink.tell()

    def add(self, rows: pa.Table) -> None:
        """Write a row group."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, rows.schema, write_page_checksum=True, **encoding(rows.schema))
        self._writer.write_table(rows, row_group_size=rows.num_rows)

    def close(self) -> bytes:
        """All of it."""
        if self._writer is not None:
            self._writer.close()
        return self._sink.getvalue().to_pybytes()


def _put(lake: Lake, plan: Plan, root: str, number: int, file: LargeFile, rows: int, level: str) -> Part:
    data = file.close()
    stem = f"level={level}/key_group={plan.key_group}/{plan.run_id}-wave{number}-{sha256_bytes(data)[:16]}"
    return put_part(lake, root, stem, data, rows, level)
