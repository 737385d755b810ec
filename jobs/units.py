"""The table of a plan's units: put together in the database, cut into shards, in their order."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..lake.database import ROWS, Spool
from .admit import Answer, Items, ask, told
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
    joins = "".join(f" join items_{n} i{n} on i{n}.item_id = todo.item_{n}" for n in range(1, len(roles)))
    inputs = ", ".join(_INPUT.format(role=quoted(role), i=f"i{n}") for n, role in enumerate(roles))
    database.execute(
        f"""create temp table planned as
        select todo.item_id, todo.subject_id, [{inputs}] as inputs, input_digest, reason, attempt, {told(roles)}
        from todo join items_0 i0 on i0.item_id = todo.item_id{joins}"""  # noqa: S608 - roles are names, and quoted
    )
    kinds = ask(database, "planned", roles, answer)
    stored = database.sql(_STORED.format(kind=kinds.sql)).fetchnumpy()
    costs, refusals = kinds.of(stored["kind"])
    order, shards = cut(costs)
    rows = stored["rowid"][order]
    database.register("places", pa.table({"place": rows, "unit": np.arange(len(rows))}))
    columns = _Columns(shards, costs[order], refusals[order], kinds.texts)
    with Spool(UNITS) as spool:
        for batch in database.sql(_PLANNED).to_arrow_reader(ROWS):
            spool.write(columns.beside(batch))
        return spool.table()


_INPUT = """{{'role': '{role}', 'item_id': {i}.item_id, 'content_digest': {i}.content_digest,
    'array': {i}."array", 'row': {i}."row"}}"""
_STORED = """
    select rowid, {kind} as kind from planned order by inputs[1]."array", coalesce(inputs[1]."row", 0), item_id
"""
"""Units in the order of storage."""
_PLANNED = """
    select unit, planned.item_id, subject_id, inputs, input_digest, reason, attempt
    from planned join places on planned.rowid = place order by unit
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
