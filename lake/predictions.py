"""Tables of predictions: their schema, what fixes an output, and what is shown of each item."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from . import delta
from .errors import LakeError
from .ids import digest
from .layout import Lake
from .plain_json import from_json
from .whole import link_only_run, link_runs

if TYPE_CHECKING:
    from deltalake import DeltaTable

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


FAILED = ("item_id", "error_code", "error", "run_id")


def table_schema(item_columns: pa.Schema, row_columns: pa.Schema) -> pa.Schema:
    """Schema of the whole table. A column that both levels have has one type."""
    fields = {f.name: f for f in [*COMMON, *ITEM, *ROW, *item_columns]}
    for field in row_columns:
        if field.name in fields and fields[field.name].type != field.type:
            raise LakeError(f"column {field.name} has one type in item rows and another in detail rows")
        fields[field.name] = field
    return pa.schema([pa.field("level", pa.string()), pa.field("key_group", pa.string()), *fields.values()])


def key_group(model_digest: str, spec_digest: str) -> str:
    """The partition that results of a model and a spec lie in."""
    return digest([model_digest, spec_digest])[:8]


def item_rows(table: "DeltaTable | None", group: str | None = None) -> Any:
    """What an output, if there is one, has of the level `item`: of all groups or of one, as a pyarrow dataset or table."""
    chosen = [("level", "=", "item"), *([("key_group", "=", group)] if group else [])]
    return table_schema(pa.schema([]), pa.schema([])).empty_table() if table is None else delta.dataset(table, chosen)


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
            f"output {output!r} has columns {_brief(sorted(lost))} that the task no longer writes; name another"
        )


def read_output(lake: Lake, output: str) -> dict[str, Any]:
    """What fixes an output: task, classes, columns and units. Raises LakeError where there is no such output."""
    try:
        found = from_json(lake.store.get(f"{lake.predictions(output)}/output.json"))
        kinds = {"task": str, "classes": list, "columns": dict}
        if not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
            raise ValueError
        if not all(isinstance(value, str) for value in (*found["classes"], *found["columns"].values())):
            raise ValueError
        return found
    except ValueError:
        raise LakeError(f"output.json of output {output!r} is damaged; restore it from a backup") from None
    except FileNotFoundError:
        there = ", ".join(lake.store.folders("predictions")) or "none yet"
        raise LakeError(f"there is no output {output!r} in this lake; there is: {there}") from None


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else ", ".join(value) or "none"
    return text if len(text) <= 200 and text.isprintable() else f"{text[:200]!r}…"


def refresh_current(
    lake: Lake, output: str, model_digest: str, spec_digest: str, wanted: pa.Table, run: str | None = None
) -> None:
    """Make `current/OUTPUT` show what a job means: of each wanted (item_id, input_digest) the row of this model and spec.

    Items that have no such row keep what they had, unless it is of a content that the item has no more. Of several rows
    of a key, a scored one and the last attempt count. Two refreshes at a time end as if they had come one after the other.
    Of a `run`, all rows are known to be of wanted units of this model and spec.
    """
    import duckdb

    key = {"model": model_digest, "spec": spec_digest}
    group = key_group(model_digest, spec_digest)

    def attempt() -> None:
        predicted = delta.open_table(lake, lake.predictions(output))
        if predicted is None:
            return
        schema = delta.dataset(predicted).schema
        shown = delta.ensure_table(lake, lake.current(output), schema, PARTITIONS)
        # Taken before the predictions are read, so that a refresh that comes between makes this one start again.
        fence = delta.fence(shown)
        predicted.update_incremental()
        tables = (lake.predictions(output), predicted), (lake.current(output), shown)
        if run is not None and link_only_run(lake, run, group, *tables, fence):
            return
        with duckdb.connect(config={"enable_external_access": False}) as connection:
            connection.register("predicted", delta.dataset(predicted, [("key_group", "=", group)]))
            connection.register("shown", delta.dataset(shown))
            connection.register("wanted", wanted)
            connection.execute(f"create temp table chosen as {_CHOSEN}", key)
            if connection.sql(_SAME).fetchall() == [(True,)]:
                return
            if link_runs(lake, connection, _STAYS, *tables, fence):
                return
            batches = (batch.cast(schema) for batch in connection.sql(_SHOWN).to_arrow_reader(65536))
            delta.overwrite(shown, pa.RecordBatchReader.from_batches(schema, batches), fence)

    def attempt_stored() -> None:
        with delta.storage(lake.current(output)):
            attempt()

    delta.retried(f"refresh of {output}", attempt_stored)


_CHOSEN = """
    select item_id, input_digest, model_digest, spec_digest, arg_max(run_id, (status = 'scored', attempt, run_id)) as run_id
    from predicted join wanted using (item_id, input_digest)
    where level = 'item' and model_digest = $model and spec_digest = $spec group by all
"""
"""The run whose row counts, of each wanted item that has one."""
_KEYS = "(item_id, input_digest, model_digest, spec_digest, run_id)"
_STAYS = """
    shown anti join chosen using (item_id)
      anti join (select shown.item_id from shown join wanted using (item_id) where shown.input_digest <> wanted.input_digest)
      using (item_id)
"""
"""Rows of items that have none of their wanted key, but for those of a content that the item has no more."""
_SHOWN = f"""
    select * from predicted semi join chosen using {_KEYS}
    union all by name select * from {_STAYS}
"""  # noqa: S608 - no value of a user's
_ROWS = "sum(hash(concat_ws('/', item_id, run_id, level)))"
"""A sum, of one text for each row: hash(a, b) is linear in what it makes of each, and in an exclusive or of them the item row
and the one detail row of a changed item took away each other's difference.
"""
_SAME = f"""
    with next as (select item_id, run_id, level from predicted semi join chosen using {_KEYS}
                  union all select item_id, run_id, level from {_STAYS})
    select (select (count(*), {_ROWS}) from next) = (select (count(*), {_ROWS}) from shown)
"""  # noqa: S608 - no value of a user's


def failed(lake: Lake, output: str) -> pa.Table:
    """Units of an output whose result, as it is shown now, is a failure: item_id, error_code, error, run_id."""
    import pyarrow.compute as pc

    if delta.open_table(lake, lake.current(output)) is None:
        return pa.table({name: pa.array([], pa.string()) for name in FAILED})
    chosen = (pc.field("level") == "item") & (pc.field("status") == "failed")
    return read_current(lake, output).to_table(columns=list(FAILED), filter=chosen)


def read_current(lake: Lake, output: str) -> Any:
    """The result of each item that its job means now, as a pyarrow dataset; item rows have level 'item', detail rows 'row'."""
    read_output(lake, output)
    table = delta.open_table(lake, lake.current(output))
    if table is None:
        raise LakeError(f"output {output!r} has no results yet; run its job")
    return delta.dataset(table)
