"""Compaction: the small files of a partition, of many runs, become few large ones. Rows stay what they are.

The old files stay where they are, for readers that are at them, until a sweep. One Delta transaction takes them out of the
table and puts the new ones in, with the fence raised: of two that write at a time, the second fails, and begins anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake import crash, delta, integrity, leases, predictions
from ..lake.database import database
from ..lake.errors import CommitError, LakeError
from ..lake.ids import sha256_bytes
from ..lake.layout import Lake
from .merge import LARGE, ROWS, LargeFile
from .parts import put_part
from .receipts import Part

if TYPE_CHECKING:
    from deltalake import DeltaTable

GROUP_BYTES = 64 * 2**20
"""Of rows in memory, at which a row group ends that has not ROWS yet."""

File = dict[str, Any]
"""As delta.files_of gives it."""


@dataclass(frozen=True)
class Compacted:
    """What became of a partition."""

    table: str
    level: str
    key_group: str
    files: tuple[int, int]
    """Small ones before, and what they became. In a dry run the second is at most so many."""
    bytes: tuple[int, int]
    """Of these; in a dry run the second is that of before."""
    rows: int


def compact(lake: Lake, outputs: Sequence[str] = (), *, dry_run: bool = False, wait: float = 0.0) -> list[Compacted]:
    """Put the small files of each partition of these outputs, or of all, together; both `predictions/` and `current/`.

    A file is small below LARGE bytes; a partition that has less than two is left alone. What a run has committed and not
    recorded yet is left for the next time. Raises BusyError while others hold the lake; CommitError where a file is not
    what was recorded: then its partition stays as it is.
    """
    there = list(lake.store.folders("predictions"))
    if lost := sorted(set(outputs) - set(there)):
        raise LakeError(f"there is no output {lost[0]!r} in this lake; there is: {', '.join(there) or 'none yet'}")
    with leases.exclusive(lake, "compaction", wait) as lease:
        recorded = integrity.Recorded(lake)
        return [
            done
            for output in outputs or there
            for path in (lake.predictions(output), lake.current(output))
            for done in _Table(lake, path, recorded, lease).compact(dry_run=dry_run)
        ]


class _Table:
    """One table whose small files are put together."""

    def __init__(self, lake: Lake, path: str, recorded: integrity.Recorded, lease: leases.Lease) -> None:
        self._lake, self._path, self._recorded, self._lease = lake, path, recorded, lease

    def compact(self, *, dry_run: bool) -> Iterator[Compacted]:
        table = delta.open_table(self._lake, self._path)
        partitions = {} if table is None else self._small(table)
        for (level, group), files in sorted(partitions.items()):
            before = sum(file["size_bytes"] for file in files)
            if dry_run:
                most = -(-before // LARGE)
                rows = sum(file["num_records"] for file in files)
                yield Compacted(self._path, level, group, (len(files), most), (before, before), rows)
            elif done := delta.retried(f"compaction of {self._path}", partial(self._attempt, (level, group))):
                yield done

    def _small(self, table: "DeltaTable") -> dict[tuple[str, str], list[File]]:
        """Small files of the partitions that have several."""
        found: dict[tuple[str, str], list[File]] = {}
        for file in sorted(delta.files_of(table), key=lambda f: f["path"]):
            if file["size_bytes"] < LARGE and file["num_records"] is not None and self._is_settled(file["path"]):
                found.setdefault(tuple(file["partition"][name] for name in predictions.PARTITIONS), []).append(file)
        return {partition: files for partition, files in found.items() if len(files) > 1}

    def _is_settled(self, path: str) -> bool:
        return self._path.startswith("current/") or self._recorded.get(f"{self._path}/{path}") is not None

    def _attempt(self, partition: tuple[str, str]) -> Compacted | None:
        """Replace the small files of a partition; None where another has done so."""
        table = delta.open_table(self._lake, self._path)
        files = [] if table is None else self._small(table).get(partition, [])
        if table is None or not files:
            return None
        crash.point("compact-begin")
        fence = delta.fence(table)
        names = [f.name for f in delta.dataset(table).schema if f.name not in predictions.PARTITIONS]
        schema = pa.schema([delta.dataset(table).schema.field(name) for name in names])
        with _Sum(schema) as old, _Sum(schema) as new:
            parts = list(self._written(partition, self._rows(files, schema, old)))
            crash.point("compact-written")
            added = [self._file(part, partition) for part in parts]
            for _ in self._rows(added, schema, new, {part.path: part.sha256 for part in parts}):
                pass
            counted = sum(file["num_records"] for file in files)
            if old.found != new.found or old.found[0] != counted:
                raise CommitError(
                    f"{self._path}: {old.found[0]} rows became others; nothing was changed; run check --deep"
                )
        names = [integrity.FileRecord(f"{self._path}/{p.path}", p.bytes, p.sha256) for p in parts]
        integrity.renew(
            self._lake, names, "compaction"
        )  # before the table has them: killed in between, a sweep takes both
        self._lease.check()
        crash.point("compact-recorded")
        delta.add_files(table, added, fence, gone=files, rows_change=False)
        crash.point("compact-committed")
        sizes = sum(file["size_bytes"] for file in files), sum(part.bytes for part in parts)
        return Compacted(self._path, *partition, (len(files), len(parts)), sizes, counted)

    def _file(self, part: Part, partition: tuple[str, str]) -> File:
        said = dict(zip(predictions.PARTITIONS, partition, strict=True))
        return {"path": part.path, "size_bytes": part.bytes, "num_records": part.rows, "partition": said}

    def _written(self, partition: tuple[str, str], rows: Iterator[pa.Table]) -> Iterator[Part]:
        """Row groups as files, each in memory until it is full."""
        file, count = LargeFile(), 0
        for group in rows:
            file.add(group)
            count += group.num_rows
            if file.size >= LARGE:
                yield self._put(partition, file, count)
                file, count = LargeFile(), 0
        if count:
            yield self._put(partition, file, count)

    def _put(self, partition: tuple[str, str], file: LargeFile, rows: int) -> Part:
        """Named by what is in it: done again, it ends at the same file."""
        self._lease.check()
        data, (level, group) = file.close(), partition
        stem = f"level={level}/key_group={group}/compact-{sha256_bytes(data)[:32]}"
        return put_part(self._lake, self._path, stem, data, rows, level)

    def _rows(
        self, files: Sequence[File], schema: pa.Schema, counted: "_Sum", known: dict[str, str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of files, group by group, each file held to its sha256 where that is known."""
        held: list[pa.Table] = []
        for file in files:
            for rows in self._read(file["path"], schema, (known or {}).get(file["path"])):
                counted.add(rows)
                held.append(rows)
                if sum(t.num_rows for t in held) >= ROWS or sum(t.nbytes for t in held) >= GROUP_BYTES:
                    yield pa.concat_tables(held).combine_chunks()
                    held = []
        if held:
            yield pa.concat_tables(held).combine_chunks()

    def _read(self, path: str, schema: pa.Schema, sha256: str | None) -> Iterator[pa.Table]:
        """Rows of a file as the table has them: what it lacks is null."""
        data = self._lake.store.get(f"{self._path}/{path}")
        sha256 = sha256 or self._sha256(path)
        if sha256 is not None and sha256_bytes(data) != sha256:
            raise CommitError(f"{self._path}/{path} is damaged; restore it from a backup; nothing was changed")
        try:
            found = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            for batch in found.iter_batches(batch_size=ROWS, use_threads=False):
                yield pa.table([_column(batch, field) for field in schema], schema=schema)
        except (OSError, pa.ArrowInvalid) as error:
            raise CommitError(
                f"{self._path}/{path} is damaged; restore it from a backup; nothing was changed"
            ) from error

    def _sha256(self, path: str) -> str | None:
        """Of a file, or of that in `predictions/` which it is a link to; None of what `current/` has written anew."""
        linked = self._path.replace("current/", "predictions/", 1)
        found = self._recorded.get(f"{self._path}/{path}") or self._recorded.get(f"{linked}/{path}")
        return found.sha256 if found else None


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    there = field.name in batch.schema.names
    return batch[field.name].cast(field.type) if there else pa.nulls(batch.num_rows, field.type)


class _Sum:
    """How many rows there are, and a sum of their hashes, in whatever order they come."""

    def __init__(self, schema: pa.Schema) -> None:
        columns = ", ".join('"' + name.replace('"', '""') + '"' for name in schema.names)
        self._query = f"select count(*), coalesce(sum(hash({columns})::hugeint), 0) from found"  # noqa: S608 - our columns
        self._opened = database()
        self.found = (0, 0)

    def __enter__(self) -> "_Sum":
        self._database = self._opened.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._opened.__exit__(*raised)

    def add(self, rows: pa.Table) -> None:
        """Count in."""
        self._database.register("found", rows)
        count, hashed = self._database.sql(self._query).fetchall()[0]
        self._database.unregister("found")
        self.found = (self.found[0] + count, self.found[1] + hashed)
