"""A wave of many small parts is published as few large files: a table of a million tiny ones would be slow to read."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake.ids import sha256_bytes
from ..lake.layout import Lake
from .parts import encoding, put_part, read_part
from .plan import Plan
from .receipts import Part

FEW = 64
"""Small parts of a level that stay as they are."""
SMALL = 64 * 2**20
"""Bytes of a part that stays as it is, however many there are."""
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
    small = {level: [p for p in parts if p.level == level and p.bytes < SMALL] for level in ("item", "row")}
    many = [level for level, found in small.items() if len(found) > FEW]
    merged = [file for level in many for file in _merged(lake, plan, number, small[level])]
    return [p for p in parts if p.level not in many or p.bytes >= SMALL] + merged


def _merged(lake: Lake, plan: Plan, number: int, parts: Sequence[Part]) -> Iterator[Part]:
    root, level = lake.predictions(plan.output), parts[0].level
    file, rows = _File(), 0
    for group in _row_groups(lake, root, parts):
        file.add(group)
        rows += group.num_rows
        if file.size >= LARGE:
            yield _put(lake, plan, root, number, file, rows, level)
            file, rows = _File(), 0
    if rows:
        yield _put(lake, plan, root, number, file, rows, level)


def _row_groups(lake: Lake, root: str, parts: Sequence[Part]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    tables: list[pa.Table] = []
    for number, part in enumerate(parts, start=1):
        tables.append(read_part(lake, root, part, None))
        if len(tables) == JOINED or number == len(parts):
            held.append(pa.concat_tables(tables).combine_chunks())
            tables = []
            if sum(table.num_rows for table in held) >= ROWS or number == len(parts):
                yield pa.concat_tables(held).combine_chunks()
                held = []


class _File:
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


def _put(lake: Lake, plan: Plan, root: str, number: int, file: _File, rows: int, level: str) -> Part:
    data = file.close()
    stem = f"level={level}/key_group={plan.key_group}/{plan.run_id}-wave{number}-{sha256_bytes(data)[:16]}"
    return put_part(lake, root, stem, data, rows, level)
