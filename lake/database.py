"""A private DuckDB for what is too much for Python: bounded memory, no network, no files but its own temporary ones."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY = "1GB"
"""What a query holds in memory at most; beyond, it goes to the temporary folder."""
PUSHED = "filter_pushdown,join_filter_pushdown"
"""Filters are not handed to pyarrow: it cannot compare the strings of files that a merge has written (`string_view`)."""
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
    """Batches that go to an unnamed temporary file and come back as a table that is mapped from it.

    So a table of any length takes page cache, which the system may drop, instead of memory.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.rows = schema, 0

    def __enter__(self) -> Self:
        handle, name = tempfile.mkstemp(prefix="diastole-", suffix=".arrow")
        os.close(handle)
        self._path = Path(name)
        self._writer = pa.ipc.new_file(name, self.schema)
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch."""
        if batch.num_rows:
            self._writer.write_batch(batch)
            self.rows += batch.num_rows

    def write_table(self, table: pa.Table) -> None:
        """Append a table that has these columns."""
        for batch in table.cast(self.schema).to_batches():
            self.write(batch)

    def table(self) -> pa.Table:
        """All that was written; nothing can be written afterwards."""
        self._writer.close()
        return pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._path.unlink()
