"""What could not be ingested, by dataset and source, with the reason and what to do."""

from datetime import UTC, datetime

import pyarrow as pa

from . import delta
from .layout import Lake

PATH = "quarantine"
SCHEMA = pa.schema(
    [
        pa.field("source_key", pa.string(), nullable=False),  # keyed hash of the absolute path
        pa.field("dataset", pa.string()),
        pa.field("stage", pa.string()),  # ingest
        pa.field("error_code", pa.string()),
        pa.field("error", pa.string()),
        pa.field("state", pa.string()),  # open, mended
        pa.field("at", pa.timestamp("us", tz="UTC")),
    ]
)


def record(lake: Lake, dataset: str, failures: dict[str, tuple[str, str]]) -> None:
    """Record the sources that failed: source_key → (error_code, error)."""
    _write(lake, [(key, dataset, code, error, "open") for key, (code, error) in failures.items()])


def mend(lake: Lake, dataset: str, source_keys: list[str]) -> None:
    """Close the records of sources that were read after all."""
    known = {row["source_key"] for row in read(lake).to_pylist() if (row["state"], row["dataset"]) == ("open", dataset)}
    _write(lake, [(key, dataset, None, None, "mended") for key in sorted(known & set(source_keys))])


def read(lake: Lake) -> pa.Table:
    """All records, one per dataset and source."""
    return delta.read(lake, PATH, schema=SCHEMA)


def _write(lake: Lake, rows: list[tuple[str, str, str | None, str | None, str]]) -> None:
    now = datetime.now(UTC)
    records = [
        {"source_key": k, "dataset": d, "stage": "ingest", "error_code": c, "error": e, "state": s, "at": now}
        for k, d, c, e, s in rows
    ]
    if records:
        delta.retried(f"update {PATH}", lambda: _merge(lake, pa.Table.from_pylist(records, SCHEMA)))


def _merge(lake: Lake, rows: pa.Table) -> None:
    """As delta.upsert, by two columns: one file may be in two datasets."""
    from deltalake import CommitProperties

    table = delta.ensure_table(lake, PATH, SCHEMA)
    properties = CommitProperties(app_transactions=[delta.fence(table)], max_commit_retries=0)
    same = "t.source_key = s.source_key and t.dataset = s.dataset"
    merge = table.merge(rows, same, source_alias="s", target_alias="t", commit_properties=properties)
    with delta.storage(PATH):
        merge.when_matched_update_all().when_not_matched_insert_all().execute()
