"""A private DuckDB for what is too much for Python: bounded memory, no network, no files but its own temporary ones."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from .errors import EnvironmentFailure

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY = "1GB"
"""What a query holds in memory at most; beyond, it goes to the temporary folder."""
PUSHED = "filter_pushdown,join_filter_pushdown"
"""Filters are not handed to pyarrow: it cannot compare the strings of files that a merge has written (`string_view`)."""
HELD_BYTES = 64 * 2**20
"""What a spool holds before it goes to a file."""
ROWS = 131_072
"""Rows in one batch of a result."""


@contextmanager
def database() -> Iterator["DuckDBPyConnection"]:
    """An empty database. Conditions that users write run in it, so it opens no file and loads nothing."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="diastole-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "enable_external_access": False,
            "lock_configuration": True,
            "memory_limit": MEMORY,
            "temp_directory": folder,
            "preserve_insertion_order": False,  # else it holds what it could write down
            "disabled_optimizers": PUSHED,
        }
        with duckdb.connect(config=config) as connection:
            yield connection


class Spool:
    """Batches that come back as a table: from memory, or where they are many, mapped from an unnamed temporary file.

    So a table of any length takes page cache, which the system may drop, instead of memory. Raises EnvironmentFailure
    where the temporary folder is full.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.rows = schema, 0
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._path: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch."""
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > HELD_BYTES:
            self._spill()

    def write_table(self, table: pa.Table) -> None:
        """Append a table that has these columns."""
        for batch in table.cast(self.schema).to_batches():
            self.write(batch)

    def table(self) -> pa.Table:
        """All that was written; nothing can be written afterwards."""
        if self._path is None:
            return pa.Table.from_batches(self._held, self.schema)
        self._spill()
        with _full():
            self._writer.close()
        return pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._writer.close()
            self._path.unlink()

    def _spill(self) -> None:
        with _full():
            if self._path is None:
                handle, name = tempfile.mkstemp(prefix="diastole-", suffix=".arrow")
                os.close(handle)
                self._path = Path(name)
                self._writer = pa.ipc.new_file(name, self.schema)
            for batch in self._held:
                self._writer.write_batch(batch)
        self._held, self._bytes = [], 0


@contextmanager
def _full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot write to the temporary folder {tempfile.gettempdir()}: {error}; free space there, or set TMPDIR"
        ) from error
