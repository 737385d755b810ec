"""Why a unit without a scored result is to be scored: told from what its output has of its item under other keys."""

from collections import Counter
from typing import TYPE_CHECKING

from .select import Key, Selected

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FAILED = "failed before (--retry scores it again)"
BEYOND = "beyond the limit"


def sort_out(
    database: "DuckDBPyConnection", selected: Selected, key: Key, *, retry: bool, limit: int | None
) -> Counter[str]:
    """Leave a view `todo` of the units to be scored, with reason and attempt, and count those that are not.

    Where no unit is open it does not read the output again, and leaves no view.
    """
    if not selected.open.num_rows:
        return Counter()
    database.register("open", selected.open)
    values = {"model": key.model, "spec": key.spec, "retry": retry}
    database.execute(f"create temp table seen as {_SEEN}", values)
    database.execute(f"create temp view todo as {_TODO}")
    [[failed]] = database.sql("select count(*) from seen where attempt = 0").fetchall()
    left = selected.open.num_rows - failed
    chosen = left if limit is None else min(limit, left)
    if chosen < left:
        database.execute(f"create temp table first as select * from todo order by item_id limit {chosen:d}")  # noqa: S608
        database.execute("create or replace temp view todo as from first")
    return +Counter({FAILED: failed, BEYOND: left - chosen})


_SEEN = """
    select item_id,
      case when failed is not null then 'retry' when other_input then 'changed' when other_model then 'model changed'
           when other_spec then 'parameters changed' else 'changed' end as reason,
      case when failed is null then 1 when $retry then failed + 1 else 0 end as attempt
    from (
      select item_id,
        max(case when own and input_digest = wanted and status = 'failed' then attempt end) as failed,
        bool_or(own and input_digest <> wanted) as other_input,
        bool_or(model_digest <> $model and input_digest = wanted) as other_model,
        bool_or(model_digest = $model and spec_digest <> $spec and input_digest = wanted) as other_spec
      from (select done.*, model_digest = $model and spec_digest = $spec as own, open.input_digest as wanted
            from done join open using (item_id))
      group by item_id)
"""
"""Of each unit that the output has something of: why it is planned; attempt 0 is not to be planned."""
_TODO = """
    select open.*, item_id as item_0, coalesce(reason, 'new') as reason, coalesce(attempt, 1) as attempt
    from open left join seen using (item_id) where coalesce(attempt, 1) > 0
"""
