"""Whole runs enter `current/` without being written again: their files are linked into it.

Where a run's rows are all to be shown, and none that is shown has to go, as in a night that only brought new items, what is
there stays as it is. A run's files never change, so a link is as good as a copy.
"""

from typing import TYPE_CHECKING, Any

from . import delta
from .layout import Lake

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

KEYS = "(item_id, input_digest, model_digest, spec_digest, run_id)"

_GOES = f"""
    select count(*) from (select * from shown where level = 'item') as shown
      anti join chosen using {KEYS}
      where not exists (select 1 from stays where stays.item_id = shown.item_id)
"""  # noqa: S608 - no value of a user's
"""Item rows that are shown, and are not to be any more."""
_RUNS = f"""
    with coming as (select chosen.run_id, count(*) as n from chosen anti join shown using {KEYS} group by all),
         whole as (select run_id, count(*) as n, sum(n_rows) as details from predicted where level = 'item' group by all)
    select run_id, coming.n = whole.n, whole.n, whole.details from coming join whole using (run_id)
"""  # noqa: S608 - no value of a user's
"""Runs with rows that are to be shown and are not yet, whether that are all of the run's, and how many it has."""


def link_only_run(
    lake: Lake,
    run_id: str,
    group: str,
    predicted: tuple[str, "DeltaTable"],
    shown: tuple[str, "DeltaTable"],
    fence_taken: Any,
) -> bool:
    """Bring a run, all of whose rows are wanted, into a `current/` that is empty, if its key group has no other.

    So it is the first time; then no row need be looked at. False where it is not so.
    """
    (source, table), (target, current) = predicted, shown
    files = [file for file in delta.files_of(table) if file["partition"]["key_group"] == group]
    own = all(file["path"].rsplit("/", 1)[1].startswith(f"{run_id}-") for file in files)
    if not own or not _same_columns(table, current) or current.file_uris():
        return False
    _link(lake, source, target, files, current, fence_taken)
    return True


def link_runs(
    lake: Lake,
    connection: "DuckDBPyConnection",
    stays: str,
    predicted: tuple[str, "DeltaTable"],
    shown: tuple[str, "DeltaTable"],
    fence_taken: Any,
) -> bool:
    """Bring the chosen rows into `current/` by links, if that is all that it takes. False where rows must be written anew.

    `connection` has `predicted`, `shown` and `chosen`; `stays` selects rows that have none of their wanted key and stay.
    """
    (source, table), (target, current) = predicted, shown
    if not _same_columns(table, current):
        return False
    if connection.sql(f"with stays as (select item_id from {stays}) {_GOES}").fetchall() != [(0,)]:  # noqa: S608 - ours
        return False
    runs = connection.sql(_RUNS).fetchall()
    if not all(whole for _, whole, _, _ in runs):
        return False
    files = [file for file in delta.files_of(table) if any(f"/{run}-" in file["path"] for run, *_ in runs)]
    held = {
        level: sum(f["num_records"] or 0 for f in files if f["partition"]["level"] == level)
        for level in ("item", "row")
    }
    if held != {"item": sum(run[2] for run in runs), "row": sum(run[3] or 0 for run in runs)}:
        return False  # a compaction has put some of their rows into files with others
    _link(lake, source, target, files, current, fence_taken)
    return True


def _same_columns(table: "DeltaTable", current: "DeltaTable") -> bool:
    return bool(
        current.metadata().partition_columns == table.metadata().partition_columns
        and current.schema() == table.schema()
    )


def _link(
    lake: Lake, source: str, target: str, files: list[dict[str, Any]], current: "DeltaTable", fence_taken: Any
) -> None:
    if not files:
        return
    lake.store.link({f"{source}/{file['path']}": f"{target}/{file['path']}" for file in files})
    delta.add_files(current, files, fence_taken)
