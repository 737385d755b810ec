"""The items of a dataset in a private database, with what is asked of each written once, as SQL.

What describes a dataset looks at this table alone, in flat memory: never at an array.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..lake import delta
from ..lake.database import database
from ..lake.errors import EnvironmentFailure
from ..lake.items import open_items
from ..lake.layout import Lake

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

KIND = """case when sequence is not null then 'sequence' when signal is not null then 'recording'
    when "row" is not null then 'image' when ends_with("array", '.vcz') then 'variants'
    when geometry is not null and geometry.affine is not null then 'volume'
    when len(shape) = 3 then 'slide' when len(shape) = 2 then 'contours' else 'volume' end"""
"""What an item is, told from its row."""
GROUP = "modality, kind"
"""Items are compared with those of the same modality and kind."""

FIELDS = {
    "dtype": "dtype",
    "shape": "case when kind in ('volume', 'image', 'slide') then array_to_string(shape, '×') end",
    "spacing_mm": "array_to_string(list_transform(geometry.spacing, lambda s: round(s, 3)), '×')",
    "orientation": "case when kind = 'volume' then coalesce(geometry.orientation, 'unknown') end",
    "rate_hz": "cast(signal.rate as varchar)",
    "channels": "array_to_string(signal.channels, ', ')",
    "units": "array_to_string(list_sort(list_distinct(signal.units)), ', ')",
    "alphabet": "sequence.alphabet",
    "assembly": "sequence.assembly",
    "site": "site",
    "laterality": "laterality",
    "licence": "licence",
    "permitted_use": "permitted_use",
}
"""What is counted, as text; null: does not apply."""
MEASURES = {
    "spacing_x_mm": "geometry.spacing[1]",
    "spacing_y_mm": "geometry.spacing[2]",
    "spacing_z_mm": "geometry.spacing[3]",
    "extent_x_mm": "geometry.spacing[1] * shape[-1]",
    "extent_y_mm": "geometry.spacing[2] * shape[-2]",
    "extent_z_mm": "geometry.spacing[3] * shape[-3]",
    "rate_hz": "signal.rate",
    "duration_s": "case when signal.rate > 0 then shape[-1] / signal.rate end",
    "length": "sequence.length",
    "variants": "case when kind = 'variants' then shape[1] end",
    "samples": "case when kind = 'variants' then shape[2] end",
}
"""What is measured: positive numbers. An extent is that of the field of view, from edge to edge."""


COLUMNS = (
    "item_id", "subject_id", "session_id", "modality", "array", "row", "shape", "dtype", "nbytes", "content_digest", "geometry",
    "signal", "sequence", "site", "laterality", "licence", "permitted_use", "state",
)  # fmt: skip
"""Of the items table, what is looked at."""
BATCH_ROWS = 16_384
AHEAD = 2
"""Batches that are read ahead: by its own settings, Arrow holds a million rows."""


@contextmanager
def item_rows(lake: Lake, dataset: str) -> Iterator["DuckDBPyConnection"]:
    """A database with `items`: COLUMNS and `kind`, which can be looked at once. Raises LakeError where there is no such
    dataset, EnvironmentFailure where it cannot be read.
    """
    import duckdb

    path = lake.dataset(dataset, "items")
    table = open_items(lake, dataset)
    try:
        with delta.storage(path), database() as connection:
            scanner = delta.dataset(table).scanner(
                list(COLUMNS), batch_size=BATCH_ROWS, batch_readahead=AHEAD, fragment_readahead=1
            )
            connection.register("stored", scanner.to_reader())
            connection.execute(f"create temp view items as select *, {KIND} as kind from stored")  # noqa: S608 - ours
            yield connection
    except duckdb.Error as error:
        first = str(error).strip().splitlines()[0]
        raise EnvironmentFailure(f"items of {dataset} cannot be read: {first}") from None


@contextmanager
def holdings(lake: Lake, dataset: str) -> Iterator["DuckDBPyConnection"]:
    """A database with `held`, what is asked of each item by the names in FIELDS and MEASURES, and `live`, those that are.

    It goes to a temporary file where it is large. Raises as `item_rows`.
    """
    asked = [f"{value} as {field_column(name)}" for name, value in FIELDS.items()]
    asked += [f"cast({value} as double) as {measure_column(name)}" for name, value in MEASURES.items()]
    with item_rows(lake, dataset) as connection:
        named = f"item_id, subject_id, session_id, state, nbytes, {GROUP}, {', '.join(asked)}"
        connection.execute(f"create temp table held as select {named} from items")  # noqa: S608 - ours
        connection.execute("create temp view live as select * from held where state = 'live'")
        yield connection


def field_column(name: str) -> str:
    """The column of one of FIELDS in `held`."""
    return f"field_{name}"


def measure_column(name: str) -> str:
    """The column of one of MEASURES in `held`."""
    return f"measure_{name}"


def rows_of(connection: "DuckDBPyConnection", query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """What a query of ours gives: few rows."""
    return connection.execute(query, list(parameters)).fetchall()


def registered(connection: "DuckDBPyConnection", name: str, columns: dict[str, list[Any]], schema: pa.Schema) -> None:
    """A small table for a query to look things up in."""
    connection.register(name, pa.table(columns, schema))
