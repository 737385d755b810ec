"""Part files: rows of a shard, or of many, in Parquet with page checksums."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake.errors import CommitError, EnvironmentFailure
from ..lake.ids import sha256_bytes
from ..lake.layout import Lake
from ..lake.sequences import BAD
from .receipts import Part


def write_part(lake: Lake, root: str, stem: str, rows: pa.Table, level: str) -> Part:
    """Write rows as a part file with page checksums, read it back, and say what it is."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, write_page_checksum=True, **encoding(rows.schema))
    return put_part(lake, root, stem, buffer.getvalue(), rows.num_rows, level)


def encoding(schema: pa.Schema) -> dict[str, Any]:
    """Dictionaries where values repeat, strong compression where it gains: on ids, digests and numbers, trying took as long
    as all the rest.
    """
    words = [f.name for f in schema if pa.types.is_string(f.type) and f.name not in ("item_id", "input_digest")]
    leaves = [leaf for f in schema for leaf in _leaves(f.name, f.type)]
    codecs = {path: "snappy" if pa.types.is_floating(kind) else "zstd" for path, kind in leaves}
    return {"use_dictionary": words, "compression": codecs}


def _leaves(path: str, kind: pa.DataType) -> list[tuple[str, pa.DataType]]:
    """The columns that Parquet makes of a field: path and type of each."""
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return [(path, kind)]


def put_part(lake: Lake, root: str, stem: str, data: bytes, rows: int, level: str) -> Part:
    """Put the bytes of a part file, read it back, and say what it is."""
    path, wanted = f"{root}/{stem}.parquet", sha256_bytes(data)
    if not lake.store.put_if_absent(path, data) and sha256_bytes(lake.store.get(path)) != wanted:
        raise EnvironmentFailure(f"{path} is there already with other bytes; delete it and run again")
    if sha256_bytes(lake.store.get(path)) != wanted:
        raise EnvironmentFailure(f"{path} reads back other bytes than were written; check the disk")
    return Part(f"{stem}.parquet", len(data), wanted, rows, level)


def read_part(lake: Lake, root: str, part: Part, columns: list[str] | None) -> pa.Table:
    """Rows of a part file. Raises CommitError where it is not what its receipt says."""
    data = lake.store.get(f"{root}/{part.path}")
    if sha256_bytes(data) != part.sha256:
        raise CommitError(f"{part.path} is damaged; delete its receipt and run again: its shard is redone")
    try:
        # Not pq.read_table, which goes by a dataset: of a part of some thousand rows that took four times as long.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(columns=columns, use_threads=False)
    except BAD as error:
        raise CommitError(f"{part.path} is damaged; delete its receipt and run again: its shard is redone") from error
