"""Tables of predictions: their schema, what fixes an output, and the newest result of each item."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from . import delta
from .errors import LakeError
from .layout import Lake

PARTITIONS = ["level", "key_group"]

MAPS = pa.list_(
    pa.struct([pa.field("name", pa.string()), pa.field("path", pa.string()), pa.field("digest", pa.string())])
)

KEY = ("item_id", "input_digest", "model_digest", "spec_digest")
"""What a result is the result of."""

COMMON = [
    pa.field("item_id", pa.string()),
    pa.field("input_digest", pa.string()),
    pa.field("model_digest", pa.string()),
    pa.field("spec_digest", pa.string()),
    pa.field("run_id", pa.string()),
]
ITEM = [
    pa.field("status", pa.string()),  # scored, failed
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
    pa.field("attempt", pa.int64()),  # 1, raised by each --retry
    pa.field("n_rows", pa.int64()),  # detail rows
    pa.field("model", pa.string()),
    pa.field("model_version", pa.string()),
    pa.field("scored_at", pa.timestamp("us", tz="UTC")),
    pa.field("device", pa.string()),
    pa.field("versions", pa.string()),  # of the libraries that computed
    pa.field("maps", MAPS),
]
ROW = [pa.field("ordinal", pa.int64())]


def item_schema(columns: pa.Schema) -> pa.Schema:
    """Schema of the item rows in a part file."""
    return pa.schema([*COMMON, *ITEM, *columns])


def row_schema(columns: pa.Schema) -> pa.Schema:
    """Schema of the detail rows in a part file."""
    return pa.schema([*COMMON, *ROW, *columns])


def table_schema(item_columns: pa.Schema, row_columns: pa.Schema) -> pa.Schema:
    """Schema of the whole table. A column that both levels have has one type."""
    fields = {f.name: f for f in [*COMMON, *ITEM, *ROW, *item_columns]}
    for field in row_columns:
        if field.name in fields and fields[field.name].type != field.type:
            raise LakeError(f"column {field.name} has one type in item rows and another in detail rows")
        fields[field.name] = field
    return pa.schema([pa.field("level", pa.string()), pa.field("key_group", pa.string()), *fields.values()])


def fix_output(
    lake: Lake, output: str, task: str, classes: Sequence[str], schema: pa.Schema, units: Mapping[str, str]
) -> None:
    """Write `output.json`, or hold this use of the output to it. Raises LakeError where it belongs to another task."""
    wanted: dict[str, Any] = {
        "task": task,
        "schema_version": 1,
        "classes": list(classes),
        "columns": {f.name: str(f.type) for f in schema},
        "units": dict(units),
    }
    path = f"{lake.predictions(output)}/output.json"
    if lake.store.put_if_absent(path, json.dumps(wanted, indent=1).encode()):
        return
    found = read_output(lake, output)
    for what in ("task", "classes"):
        if found[what] != wanted[what]:
            raise LakeError(
                f"output {output!r} belongs to {what} {_brief(found[what])}, not {_brief(wanted[what])}; name another output"
            )
    lost = {n for n, t in found["columns"].items() if wanted["columns"].get(n) != t}
    if lost:
        raise LakeError(
            f"output {output!r} has columns {', '.join(sorted(lost))} that the task no longer writes; name another"
        )


def read_output(lake: Lake, output: str) -> dict[str, Any]:
    """What fixes an output: task, classes, columns and units. Raises LakeError where there is no such output."""
    try:
        return dict(json.loads(lake.store.get(f"{lake.predictions(output)}/output.json")))
    except FileNotFoundError:
        there = ", ".join(lake.store.folders("predictions")) or "none yet"
        raise LakeError(f"there is no output {output!r} in this lake; there is: {there}") from None


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "none"


def refresh_current(lake: Lake, output: str) -> None:
    """Replace `current/OUTPUT` by the newest rows of each item: those of the last commit that has it.

    The order is that of the commits in the table's log, never a clock's. Items that are gone stay.
    """
    import duckdb

    table = delta.open_table(lake, lake.predictions(output))
    if table is None:
        return
    commits = [
        (entry["run_id"], int(entry["wave"]), int(entry["version"])) for entry in table.history() if entry.get("run_id")
    ]
    rows = table.to_pyarrow_dataset()
    order = pa.table(
        {"run_id": [c[0] for c in commits], "committed": [c[2] for c in commits]},
        schema=pa.schema([("run_id", pa.string()), ("committed", pa.int64())]),
    )
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        connection.register("predicted", rows)
        connection.register("commits", order)
        newest = """
            select item_id, arg_max(run_id, (coalesce(committed, -1), attempt)) as run_id,
              arg_max(key_group, (coalesce(committed, -1), attempt)) as g
            from predicted left join (select run_id, max(committed) as committed from commits group by run_id)
              using (run_id)
            where level = 'item' group by item_id
        """
        reader = connection.sql(
            f"select p.* from predicted p join ({newest}) n "  # noqa: S608 - no value of a user's
            "on p.item_id = n.item_id and p.run_id = n.run_id and p.key_group = n.g"
        ).to_arrow_reader(65536)
        schema = rows.schema
        delta.replace(
            lake, lake.current(output), pa.Table.from_batches(reader, reader.schema).cast(schema), schema, ["level"]
        )


def read_current(lake: Lake, output: str) -> Any:
    """The newest result of each item, as a pyarrow dataset; item rows have level 'item', detail rows 'row'."""
    read_output(lake, output)
    table = delta.open_table(lake, lake.current(output))
    if table is None:
        raise LakeError(f"output {output!r} has no results yet; run its job")
    return table.to_pyarrow_dataset()
