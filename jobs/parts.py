"""Part files: rows of a shard, or of many, in Parquet with page checksums."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake.errors import CommitError, EnvironmentFailure
from ..lake.ids import sha256_bytes
from ..lake.layout import Lake
from .receipts import Part


def write_part(lake: Lake, root: str, stem: str, rows: pa.Table, level: str) -> Part:
    """Write rows as a part file with page checksums, read it back, and say what it is."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, **written_with(rows.schema))
    return put_part(lake, root, stem, buffer.getvalue(), rows.num_rows, level)


def written_with(schema: pa.Schema) -> dict[str, Any]:
    """How part files are written."""
    # Dictionaries pay where values repeat; trying one on ids and numbers took half of the time.
    words = [f.name for f in schema if pa.types.is_string(f.type) and f.name not in ("item_id", "input_digest")]
    return {"compression": "zstd", "use_dictionary": words, "write_page_checksum": True}


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
        return pq.read_table(io.BytesIO(data), columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise CommitError(f"{part.path} is damaged; delete its receipt and run again: its shard is redone") from error
