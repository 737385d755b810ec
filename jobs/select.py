"""Which units a job means: items that match, joined over roles. It happens in DuckDB; no item becomes a Python object."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..lake import delta, suppressed
from ..lake.database import ROWS, Spool
from ..lake.errors import EnvironmentFailure, SpecError
from ..lake.items import open_items
from ..lake.layout import Lake
from ..lake.remote import reason
from .spec import Selection

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

WANTED = pa.schema([("item_id", pa.string()), ("input_digest", pa.string())])
"""All that a job means, scored already or not."""


@dataclass(frozen=True)
class Selected:
    """What a job's selections gave."""

    wanted: pa.Table
    """Of `WANTED`: all units."""
    open: pa.Table
    """Units that have no scored result under their key: item_id, subject_id, input_digest, and `item_1`, `item_2`, … of
    the second, third, … role.
    """
    skipped: Counter[str]
    """The others, by reason, and items that have no partner in another role."""


@dataclass(frozen=True)
class Key:
    """Under which key a result must be to count; with the item and its input, see lake.predictions."""

    group: str
    model: str
    spec: str


def select(
    database: "DuckDBPyConnection", lake: Lake, inputs: Mapping[str, Selection], only: Sequence[str], key: Key
) -> Selected:
    """All units of a job; leaves views `items_0`, `items_1`, … of the roles' items in the database, beside `own`, results of the key's group.

    Raises LakeError for a dataset that is not there, SpecError for a bad condition.
    """
    selections = list(inputs.values())
    for number, selection in reversed(list(enumerate(selections))):
        rows = delta.dataset(open_items(lake, selection.dataset))
        database.register(f"items_{number}", rows)
        database.register("items", rows)  # as conditions call it
        if number:
            with _condition(selection):
                database.execute(f"create temp table partner_{number} as {_PARTNERS.format(_matching(selection))}")
    database.register("named", pa.table({"item_id": pa.array(sorted(set(only)), pa.string())}))
    gone = suppressed.read(lake)
    database.register("withdrawn", pa.table({"subject_id": pa.array(sorted(gone.subjects), pa.string())}))
    items = gone.items | _items_with(database, len(selections), gone.arrays)
    database.register("withdrawn_items", pa.table({"item_id": pa.array(sorted(items), pa.string())}))
    query = _query(list(inputs), selections[0], only=bool(only))
    fields = [pa.field(name, pa.string()) for name in ("item_id", "subject_id", "input_digest", *_others(selections))]
    skipped: Counter[str] = Counter()
    with Spool(WANTED) as wanted, Spool(pa.schema(fields)) as left:
        for batch in _batches(database, query, selections[0], key):
            paired = batch.filter(batch["paired"])
            skipped["no single partner in the session"] += batch.num_rows - paired.num_rows
            meant = paired.filter(paired["meant"])
            wanted.write(meant.select(WANTED.names))
            allowed = meant.filter(pc.invert(meant["withdrawn"]))
            skipped["withdrawn"] += meant.num_rows - allowed.num_rows
            unscored = allowed.filter(pc.invert(allowed["scored"]))
            skipped["already scored"] += allowed.num_rows - unscored.num_rows
            left.write(unscored.select(left.schema.names))
        selected = Selected(wanted.table(), left.table(), +skipped)
    _check_only(selected.wanted, only)
    return selected


def _items_with(database: "DuckDBPyConnection", roles: int, arrays: frozenset[str]) -> frozenset[str]:
    """Items that have one of some arrays."""
    database.register("withdrawn_arrays", pa.table({"array": pa.array(sorted(arrays), pa.string())}))
    query = 'select item_id from items_{} where "array" in (select "array" from withdrawn_arrays)'
    found = [database.execute(query.format(n)).fetchall() for n in range(roles if arrays else 0)]
    return frozenset(item for rows in found for (item,) in rows)


def pair(left: str, right: str) -> str:
    """SQL: a digest of two ids, a fourth of their size in a hash table. Ids are keyed or digests: nobody can aim at it."""
    return f"md5_number({left} || '/' || {right})"


def input_digest(roles: Mapping[str, str]) -> str:
    """SQL: as ids.digest([[role, content digest], …]), from the columns of the content digests by role."""
    entries = [f"'[{quoted(json.dumps(role, ensure_ascii=False))},' || {_json(c)} || ']'" for role, c in roles.items()]
    listed = " || ',' || ".join(entries)
    return f"sha256('[' || {listed} || ']')[:32]"


def _json(column: str) -> str:
    return f"coalesce('\"' || {column} || '\"', 'null')"  # a digest has nothing that JSON escapes


def quoted(text: str) -> str:
    """For a string between quotes in SQL."""
    return text.replace("'", "''")


def _others(selections: Sequence[Selection]) -> list[str]:
    return [f"item_{number}" for number in range(1, len(selections))]


def _matching(selection: Selection) -> str:
    where = f" and ({selection.where})" if selection.where else ""
    return f"select item_id, subject_id, session_id, content_digest from items where state = 'live'{where}"  # noqa: S608


_PARTNERS = """
    select subject_id, session_id, any_value(item_id) as item_id, any_value(content_digest) as content_digest
    from ({}) where subject_id is not null group by subject_id, session_id having count(*) = 1
"""
"""Items that are the only one of their session."""


def _query(roles: Sequence[str], first: Selection, *, only: bool) -> str:
    others = range(1, len(roles))
    items = ["item_id", *(f"item_{n}" for n in others)]
    digests = {role: f"i{number}.content_digest" for number, role in enumerate(roles)}
    joins = "".join(
        f" left join partner_{n} i{n} on i0.subject_id = i{n}.subject_id and i0.session_id is not distinct from i{n}.session_id"
        for n in others
    )
    return f"""
        with units as (
            select i0.item_id, i0.subject_id, {input_digest(digests)} as input_digest,
              {"".join(f"i{n}.item_id as item_{n}, " for n in others)}
              {" and ".join(["true", *(f"i{n}.item_id is not null" for n in others)])} as paired
            from ({_matching(first)}) i0{joins})
        select *, {"item_id in (select item_id from named)" if only else "true"} as meant,
          coalesce(subject_id in (select subject_id from withdrawn), false)
            or {" or ".join(f"coalesce({item} in (select item_id from withdrawn_items), false)" for item in items)}
            as withdrawn,
          {pair("item_id", "input_digest")} in (
            select {pair("item_id", "input_digest")} from own
            where model_digest = $model and spec_digest = $spec and status = 'scored') as scored
        from units
    """  # noqa: S608 - the condition is what the user may say, and the database has nothing else


def _batches(database: "DuckDBPyConnection", query: str, selection: Selection, key: Key) -> Iterator[pa.RecordBatch]:
    with _condition(selection):
        reader = database.sql(query, params={"model": key.model, "spec": key.spec}).to_arrow_reader(ROWS)
    while True:
        with _condition(selection):
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
        yield batch


class _condition:  # noqa: N801 - used like a function
    """What the database says against a query that has a user's condition in it is said of that condition."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        import duckdb

        if not isinstance(error, duckdb.Error | pa.ArrowException | OSError):
            return
        first = str(error).strip().splitlines()[0]
        if isinstance(error, OSError) or delta.from_storage(error):
            raise EnvironmentFailure(f"items of {self.selection.dataset} cannot be read: {reason(error)}") from error
        if self.selection.where is None:
            raise EnvironmentFailure(f"items of {self.selection.dataset} cannot be read: {first}") from None
        raise SpecError(f"where: {self.selection.where!r} is not a condition over items: {first}") from None


def _check_only(wanted: pa.Table, only: Sequence[str]) -> None:
    there = set(wanted["item_id"].to_pylist()) if only else set()
    missing = [item for item in only if item not in there]
    if missing:
        raise SpecError(f"{len(missing)} item ids of --only are not in the selection, first: {missing[0]}")
