"""Path, size and SHA-256 of every file that diastole wrote, so that a later change of one is found."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from . import delta
from .ids import sha256_bytes
from .layout import Lake

PATH = "integrity"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("written_by", pa.string()),  # ingest, or a run's id
    ]
)


@dataclass(frozen=True)
class FileRecord:
    """One file as it was when it was written."""

    path: str
    bytes: int
    sha256: str


def record(lake: Lake, files: Iterable[FileRecord], written_by: str, *, once: bool = False) -> None:
    """Add files to the integrity table. A path is written once, so rows are only added; `once` per writer, if said."""
    rows = [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256, "written_by": written_by} for f in files]
    delta.append(lake, PATH, pa.Table.from_pylist(rows, SCHEMA), once=written_by if once else None)


def read(lake: Lake) -> pa.Table:
    """All recorded files."""
    return delta.read(lake, PATH, schema=SCHEMA)


def hashed(lake: Lake, prefix: str) -> list[FileRecord]:
    """The files below a folder, read back from storage and hashed."""
    return [FileRecord(path, size, sha256_bytes(lake.store.get(path))) for path, size in lake.store.list(prefix)]


def check(lake: Lake, *, deep: bool) -> list[tuple[str, str]]:
    """(path, what is wrong) of each recorded file that is missing, of another size or, when deep, of other bytes."""
    wrong = []
    for row in read(lake).to_pylist():
        size = lake.store.size(row["path"])
        if size is None:
            wrong.append((row["path"], "missing"))
        elif size != row["bytes"]:
            wrong.append((row["path"], f"{size} bytes instead of {row['bytes']}"))
        elif deep and sha256_bytes(lake.store.get(row["path"])) != row["sha256"]:
            wrong.append((row["path"], "bytes changed since they were written"))
    return wrong
