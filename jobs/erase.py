"""Rows out of a Delta table for good: out of its files, of files that only older versions have, and of its log.

Only files that hold such rows are written anew, by our own writer, and all of them enter the table in one transaction
that raises the fence. A log tells the least and the greatest value of each column of each file, so it is begun anew from
a checkpoint where that could be one of the rows'.
"""

import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake import crash, delta
from ..lake.errors import LakeError
from ..lake.ids import sha256_bytes
from ..lake.integrity import FileRecord, Recorded
from ..lake.layout import Lake
from .parts import encoding, put_part

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG = "_delta_log"
WRITTEN_ANEW = re.compile(r"-w[0-9a-f]{16}\.parquet$")
"""How the path of a file ends that was written in place of another."""
_ID = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True)
class Rule:
    """Which rows are meant, and what becomes of a file that has some."""

    columns: Sequence[str]
    """What `meant` looks at."""
    meant: Callable[[pa.Table], pa.Array]
    """(rows,) bool."""
    left: Callable[[pa.Table], pa.Table]
    """Of all rows of a file, those that stay, as they are to be."""


@dataclass(frozen=True)
class Erased:
    """What was done to one table."""

    rows: int = 0
    """Rows that are not in the table any more."""
    files: tuple[FileRecord, ...] = ()
    """Files that were written in place of others."""


def erase(
    lake: Lake, path: str, rule: Rule, ids: Collection[str], recorded: Recorded, *, history: bool = False
) -> Erased:
    """Take rows out of the table at `path`, if there is one, and out of what lies beside it.

    With `history` the table keeps its older versions, but for the files that hold such rows, and its log, unless it
    tells one of the `ids`. Doing it again changes nothing. Raises LakeError where a file that has to be written anew is
    damaged.
    """
    erased = delta.retried(f"withdrawal from {path}", lambda: _rewrite(lake, path, rule, recorded))
    crash.point("withdraw-rewritten")
    _drop_dead(lake, path, rule, history=history)
    table = delta.open_table(lake, path)
    if table is not None and (not history or _log_tells(lake, path, ids)):
        _begin_log_anew(lake, path, table)
    return erased


def count(lake: Lake, path: str, rule: Rule) -> int:
    """How many rows of a table are meant."""
    table = delta.open_table(lake, path)
    names = [] if table is None else [f"{path}/{file['path']}" for file in delta.files_of(table)]
    return sum(_meant(lake, name, rule) for name in names)


def _rewrite(lake: Lake, path: str, rule: Rule, recorded: Recorded) -> Erased:
    """Write anew the live files that hold rows. The fence is raised also where none does: a run that sleeps between its
    last look at what is withdrawn and its commit must look again.
    """
    table = delta.open_table(lake, path)
    if table is None:
        return Erased()
    fence, rows = delta.fence(table), 0
    gone: list[dict[str, Any]] = []
    new: list[dict[str, Any]] = []
    written: list[FileRecord] = []
    schema = delta.dataset(table).schema
    for file in delta.files_of(table):
        if not _meant(lake, f"{path}/{file['path']}", rule):
            continue
        whole = _read(lake, f"{path}/{file['path']}", schema, recorded)
        left = rule.left(whole)
        rows += whole.num_rows - left.num_rows
        gone.append(file)
        if left.num_rows:
            part = _write(lake, path, file["path"], left)
            sizes = {"size_bytes": part.bytes, "num_records": left.num_rows}
            new.append(file | {"path": part.path.removeprefix(f"{path}/")} | sizes)
            written.append(part)
    delta.add_files(table, new, fence, gone)
    return Erased(rows, tuple(written))


def _meant(lake: Lake, file: str, rule: Rule) -> int:
    """How many rows of a file are meant, by the columns that the rule looks at."""
    with lake.store.open(file) as opened:
        try:
            rows = pq.ParquetFile(opened).read(columns=list(rule.columns))
        except (OSError, pa.ArrowInvalid):
            raise _damaged(file) from None
    return sum(rule.meant(_plain(rows)).to_pylist())


def _read(lake: Lake, file: str, schema: pa.Schema, recorded: Recorded) -> pa.Table:
    """All of a file, as it was recorded: what is damaged must not be written anew as if it were whole."""
    data, known = lake.store.get(file), recorded.get(file)
    if known is not None and known.sha256 != sha256_bytes(data):
        raise _damaged(file)
    try:
        rows = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    except (OSError, pa.ArrowInvalid):
        raise _damaged(file) from None
    fields = [schema.field(f.name) if f.name in schema.names else f for f in rows.schema]
    return rows.cast(pa.schema(fields))


def _damaged(file: str) -> LakeError:
    return LakeError(f"{file} is damaged and holds what is withdrawn; mend it (diastole check --deep), then run again")


def _plain(rows: pa.Table) -> pa.Table:
    """Strings as what can be compared: a merge by delta-rs writes them as views."""
    return rows.cast(pa.schema([pa.field(f.name, _without_views(f.type)) for f in rows.schema]))


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_without_views(kind.value_type))
    return pa.string() if pa.types.is_string_view(kind) else kind


def _write(lake: Lake, path: str, old: str, rows: pa.Table) -> FileRecord:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, write_page_checksum=True, **encoding(rows.schema))
    stem = WRITTEN_ANEW.sub("", old).removesuffix(".parquet")  # it still begins with its run's id, if it had one
    stem = f"{stem}-w{sha256_bytes(buffer.getvalue())[:16]}"
    part = put_part(lake, path, stem, buffer.getvalue(), rows.num_rows, "")
    return FileRecord(f"{path}/{part.path}", part.bytes, part.sha256)


def _drop_dead(lake: Lake, path: str, rule: Rule, *, history: bool) -> None:
    """Files that no present version has: all of them, or with `history` those that hold rows, or cannot be read."""
    table = delta.open_table(lake, path)
    live = set() if table is None else {f"{path}/{file['path']}" for file in delta.files_of(table)}
    if table is None and lake.store.size(f"{path}/{LOG}/{0:020}.json") is not None:
        raise LakeError(f"{path} cannot be read; mend it (diastole check), then run again")
    for file, _ in list(lake.store.list(path)):
        if file in live or f"/{LOG}/" in file or ".parquet" not in file:
            continue
        try:
            gone = not history or not file.endswith(".parquet") or _meant(lake, file, rule) > 0
        except LakeError:
            gone = True  # nothing can be read from it, whatever it holds
        if gone:
            lake.store.delete(file)


def _log_tells(lake: Lake, path: str, ids: Collection[str]) -> bool:
    wanted = {value.encode() for value in ids}
    return any(not wanted.isdisjoint(_ID.findall(_said(lake, file))) for file, _ in lake.store.list(f"{path}/{LOG}"))


def _said(lake: Lake, file: str) -> bytes:
    data = lake.store.get(file)
    if not file.endswith(".parquet"):
        return data
    added = pq.ParquetFile(pa.BufferReader(data)).read(columns=["add"])
    return str(added.to_pylist()).encode()


def _begin_log_anew(lake: Lake, path: str, table: "DeltaTable") -> None:
    """A checkpoint says all that is; what came before it goes."""
    table.create_checkpoint()
    lake.store.sync(f"{path}/{LOG}")  # before what it stands for goes: power may
    crash.point("withdraw-checkpoint")
    for file, _ in list(lake.store.list(f"{path}/{LOG}")):
        number: Any = file.rsplit("/", 1)[1].split(".")[0]
        if number.isdigit() and int(number) < table.version():
            lake.store.delete(file)
