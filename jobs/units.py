"""The table of a plan's units: put together in the database, cut into shards, in their order."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..lake.database import ROWS, Spool
from .admit import HASHES, Answer, Items, ask, unit_kind
from .cut import Cut, names
from .select import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

INPUT = pa.struct([(n, pa.string()) for n in ("role", "item_id", "content_digest", "array")] + [("row", pa.int64())])
UNITS = pa.schema(
    [
        pa.field("unit", pa.int64()),
        pa.field("shard", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("subject_id", pa.string()),
        pa.field("inputs", pa.list_(INPUT)),
        pa.field("input_digest", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("attempt", pa.int64()),
        pa.field("refused_code", pa.string()),
        pa.field("refused", pa.string()),
        pa.field("cost", pa.float64()),
    ]
)


def arrange(
    database: "DuckDBPyConnection",
    roles: Sequence[str],
    answer: Callable[[Items], Answer],
    cut: Callable[[NDArray[np.float64]], Cut],
) -> pa.Table:
    """The units of the view `todo`, of `UNITS`, shard by shard. `cut` is given their costs in the order of storage."""
    kinds = None
    for function in HASHES:
        database.execute(f"create or replace temp table planned as {_planned(len(roles), function)}")
        kinds = ask(database, roles, function, answer)
        if kinds:
            break
    if kinds is None:
        raise RuntimeError("two kinds of units cannot be told apart")
    stored = database.sql(_STORED.format(kind=unit_kind(roles))).fetchnumpy()
    costs, refusals = kinds.of(stored["kind"])
    order, shards = cut(costs)
    rows = stored["rowid"][order]
    database.register("places", pa.table({"place": rows, "unit": np.arange(len(rows))}))
    inputs = ", ".join(_INPUT.format(role=quoted(role), n=n) for n, role in enumerate(roles))
    columns = _Columns(shards, costs[order], refusals[order], kinds.texts)
    with Spool(UNITS) as spool:
        for batch in database.sql(_SORTED.format(inputs=inputs)).to_arrow_reader(ROWS):
            spool.write(columns.beside(batch))
        return spool.table()


def _planned(roles: int, function: str) -> str:
    """SQL: the units of `todo` with what the plan says of their items. Only plain columns: a join spills no other."""
    names = ("item_id", "content_digest", "array", "row", "kind")
    columns = ", ".join(f'i{n}."{name}" as {name}_{n}' for n in range(roles) for name in names)
    joins = " ".join(
        f"""join (select item_id, content_digest, "array", "row", {function} as kind from items_{n}) i{n}
        on i{n}.item_id = todo.item_{n}"""  # noqa: S608
        for n in range(roles)
    )
    return f"select subject_id, input_digest, reason, attempt, {columns} from todo {joins}"  # noqa: S608


_INPUT = """{{'role': '{role}', 'item_id': item_id_{n}, 'content_digest': content_digest_{n},
    'array': array_{n}, 'row': row_{n}}}"""
_STORED = "select rowid, {kind} as kind from planned order by array_0, coalesce(row_0, 0), item_id_0"
"""Units in the order of storage."""
_SORTED = """
    select unit, item_id_0 as item_id, subject_id, [{inputs}] as inputs, input_digest, reason, attempt
    from (select * from planned join places on planned.rowid = place order by unit)
"""


class _Columns:
    """The columns of a unit that its place in the plan gives."""

    def __init__(
        self,
        shards: NDArray[np.int64],
        costs: NDArray[np.float64],
        refusals: NDArray[np.int64],
        texts: Sequence[tuple[str, str]],
    ) -> None:
        self.shards, self.costs, self.refusals = shards, costs, refusals
        self.names = pa.array(names(int(shards[-1]) + 1 if len(shards) else 0), pa.string())
        self.codes = pa.array([code for code, _ in texts], pa.string())
        self.texts = pa.array([text for _, text in texts], pa.string())

    def beside(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of the plan's rows, with these columns beside it."""
        at = slice(batch["unit"][0].as_py(), batch["unit"][-1].as_py() + 1) if batch.num_rows else slice(0)
        refused = pa.array(self.refusals[at], mask=self.refusals[at] < 0)
        columns = {name: batch[name] for name in batch.schema.names} | {
            "shard": self.names.take(pa.array(self.shards[at])),
            "refused_code": self.codes.take(refused),
            "refused": self.texts.take(refused),
            "cost": pa.array(self.costs[at]),
        }
        return pa.record_batch([columns[field.name].cast(field.type) for field in UNITS], schema=UNITS)
