"""Delta tables of a lake: open, append with a fence, upsert, replace."""

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from . import disk
from .errors import EnvironmentFailure, LakeError
from .layout import Lake
from .remote import CONNECT_SECONDS, reason

if TYPE_CHECKING:
    from deltalake import DeltaTable

T = TypeVar("T")

FENCE = "diastole-writer"
"""Application id that every write raises by one, so that a stale handle fails whoever held what lease."""

RETRIES = 12
ATTEMPTS = 9
"""Of a request of Arrow's to S3: with its pauses, some half a minute."""


def open_table(lake: Lake, path: str) -> "DeltaTable | None":
    """The table at `path`, or None where there is none yet."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        with storage(path):
            return DeltaTable(lake.store.uri(path), storage_options=lake.store.options)
    except TableNotFoundError:
        return None


@contextmanager
def storage(path: str) -> Iterator[None]:
    """What reading or writing the table at `path` fails with is the environment's, but for a commit that lost a race."""
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except FileNotFoundError as error:
        raise EnvironmentFailure(f"a file of the table {path} is missing; see: diastole check") from error
    except (DeltaError, OSError) as error:
        raise EnvironmentFailure(f"storage failed at the table {path}: {reason(error)}") from error
    except Exception as error:
        if not from_storage(error):
            raise
        raise EnvironmentFailure(f"storage failed at the table {path}: {reason(error)}") from error


_BELOW = re.compile(r"OSError|IO ?Error|AWS Error|S3 error")


def from_storage(error: BaseException) -> bool:
    """Whether DuckDB failed since storage did, of which it was reading a table."""
    return type(error).__module__.strip("_").startswith("duckdb") and _BELOW.search(str(error)) is not None


def ensure_table(lake: Lake, path: str, schema: pa.Schema, partition_by: list[str] | None = None) -> "DeltaTable":
    """The table at `path`, made empty where there is none. Two makers end with one table."""
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError, DeltaError

    table = open_table(lake, path)
    if table is not None:
        return table
    try:
        table = DeltaTable.create(
            lake.store.uri(path),
            storage_options=lake.store.options,
            schema=schema,
            mode="error",
            partition_by=partition_by,
            configuration={"delta.enableExpiredLogCleanup": "false"},  # the order of commits says what is newest
        )
        make_durable(table, 0)
        return table
    except (CommitFailedError, DeltaError, OSError) as error:
        table = open_table(lake, path)
        if table is None:
            raise EnvironmentFailure(f"cannot make the table {path}: {reason(error)}") from error
        return table


def add_columns(lake: Lake, path: str, schema: pa.Schema) -> None:
    """Columns of `schema` that a table does not have yet are added to it, empty, if there is the table."""
    from deltalake import CommitProperties, Schema

    def attempt() -> None:
        table = open_table(lake, path)
        there = set() if table is None else {field.name for field in table.schema().fields}
        new = [field for field in Schema.from_arrow(schema).fields if field.name not in there]
        if table is None or not new:
            return
        with storage(path):
            table.alter.add_columns(
                new, commit_properties=CommitProperties(app_transactions=[fence(table)], max_commit_retries=0)
            )

    retried(f"add columns to {path}", attempt)


def fence(table: "DeltaTable") -> Any:
    """The transaction that makes this write fail if another was committed since `table` was opened."""
    from deltalake import Transaction

    version = table.transaction_version(FENCE)
    return Transaction(FENCE, 0 if version is None else version + 1)


def retried(what: str, attempt: Callable[[], T]) -> T:
    """Call `attempt` until no other writer came between; it must open its table anew each time."""
    from deltalake.exceptions import CommitFailedError

    for number in range(RETRIES):
        try:
            return attempt()
        except CommitFailedError as error:
            last = error
            time.sleep(min(2.0, 0.02 * 2**number))
    raise EnvironmentFailure(f"{what}: {RETRIES} writers came between; try again") from last


def landed(lake: Lake, path: str, version: int, token: str) -> bool:
    """Whether the commit that made a version of a table has this token in its metadata: its answer may have been lost."""
    try:
        return token.encode() in lake.store.get(f"{path}/_delta_log/{version:020d}.json")
    except FileNotFoundError:
        return False


def make_durable(table: "DeltaTable", version: int, *, files: bool = True) -> None:
    """Have a commit in a folder survive a loss of power, which deltalake leaves to the system; with the `files` that it
    added, unless they are durable already. Done before anything is told of the commit, or removed since it.
    """
    root = urlsplit(table.table_uri)
    if root.scheme not in ("", "file"):
        return  # an object store is durable as it answers
    folder = Path(unquote(root.path))
    log = folder / "_delta_log" / f"{version:020}.json"
    added = [json.loads(line)["add"]["path"] for line in log.read_text().splitlines() if files and line[:6] == '{"add"']
    paths = [log, *(folder / unquote(path) for path in added)]
    for path in dict.fromkeys([*paths, *(path.parent for path in paths), folder]):
        disk.sync(path)


def append(lake: Lake, path: str, rows: pa.Table, once: str | None = None) -> None:
    """Append rows to a table, made where there is none. What is appended `once` under a name is not appended again."""
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import DeltaError

    token = uuid.uuid4().hex

    def attempt() -> None:
        table = ensure_table(lake, path, rows.schema)
        transactions = [fence(table)]
        if once is not None:
            if table.transaction_version(once) is not None:
                return
            transactions.append(Transaction(once, 1))
        properties = CommitProperties(
            app_transactions=transactions, max_commit_retries=0, custom_metadata={"token": token}
        )
        following = table.version() + 1
        try:
            with storage(path):
                write_deltalake(table, rows, mode="append", commit_properties=properties)
        except (DeltaError, EnvironmentFailure):
            if not landed(lake, path, following, token):
                raise
        make_durable(table, following)

    if rows.num_rows:
        retried(f"append to {path}", attempt)


def upsert(
    lake: Lake,
    path: str,
    rows: pa.Table,
    key: str,
    *,
    none_in: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Insert rows, replacing those of the same key. The key must be unique in `rows`.

    `none_in` is a version of the table that is known to have none of the keys: while it is the last, rows are appended,
    since a merge costs as much as the table is long. `check` is called when the table is open: if what it looks at
    changes later, so does the fence.
    """
    from deltalake import CommitProperties, write_deltalake

    def attempt() -> None:
        table = ensure_table(lake, path, rows.schema)
        properties = CommitProperties(app_transactions=[fence(table)], max_commit_retries=0)
        following = table.version() + 1
        check()
        with storage(path):
            if table.version() == none_in:
                write_deltalake(table, rows, mode="append", commit_properties=properties)
                make_durable(table, following)
                return
            merge = table.merge(
                rows, f"t.{key} = s.{key}", source_alias="s", target_alias="t", commit_properties=properties
            )
            merge.when_matched_update_all().when_not_matched_insert_all().execute()
            make_durable(table, following)

    if rows.num_rows:
        retried(f"update {path}", attempt)


def remove(lake: Lake, path: str, key: str, values: Iterable[str]) -> None:
    """Delete the rows whose key is one of `values`, if there is such a table."""
    from deltalake import CommitProperties

    rows = pa.table({key: pa.array(sorted(set(values)), pa.string())})

    def attempt() -> None:
        table = open_table(lake, path)
        if table is None:
            return
        properties = CommitProperties(app_transactions=[fence(table)], max_commit_retries=0)
        following = table.version() + 1
        with storage(path):
            merge = table.merge(
                rows, f"t.{key} = s.{key}", source_alias="s", target_alias="t", commit_properties=properties
            )
            merge.when_matched_delete().execute()
            if table.version() == following:  # something was there
                make_durable(table, following)

    if rows.num_rows:
        retried(f"removal from {path}", attempt)


def files_of(table: "DeltaTable") -> list[dict[str, Any]]:
    """Path, size, rows and partition of each of a table's files, as `add_files` takes them."""
    found = pa.table(table.get_add_actions(flatten=False))
    columns = {"path", "size_bytes", "num_records", "partition"} & set(found.column_names)  # not all are partitioned
    return list(found.select(sorted(columns)).to_pylist())


def added_in(lake: Lake, path: str, version: int) -> set[str]:
    """Paths of the files that a version of a table added."""
    return _named(lake, f"{path}/_delta_log/{version:020}.json", "add")


def removed_since(lake: Lake, path: str, when: float) -> set[str]:
    """Paths of the files that a table has given up since a time, in seconds since 1970: readers may still be at them."""
    log = lake.store.found(f"{path}/_delta_log")
    commits = [f.path for f in log if f.modified >= when and f.path.endswith(".json")]
    return {name for commit in commits for name in _named(lake, commit, "remove")}


def _named(lake: Lake, commit: str, action: str) -> set[str]:
    """Paths that a commit adds or removes. Raises LakeError where it is damaged."""
    try:
        said = [json.loads(line) for line in lake.store.get(commit).splitlines()]
        return {unquote(entry[action]["path"]) for entry in said if action in entry}
    except (ValueError, KeyError, TypeError):
        raise LakeError(f"{commit} is damaged; restore it from a backup") from None


def raise_fence(lake: Lake, path: str) -> None:
    """Let every write fail whose table was opened before now."""

    def attempt() -> None:
        table = open_table(lake, path)
        if table is not None:
            add_files(table, [], fence(table))

    retried(f"fence of {path}", attempt)


def add_files(
    table: "DeltaTable",
    files: Iterable[Mapping[str, Any]],
    fence_taken: Any,
    gone: Iterable[Mapping[str, Any]] = (),
    *,
    rows_change: bool = True,
) -> None:
    """Bring files that lie in a table's folder into it, and take those that are `gone` out, in one step: `path`,
    `size_bytes` and `partition` of each, and `num_records` of each that comes. Fails if another wrote since the fence.

    Where the new hold the same rows as the old, no `rows_change`, and readers of changes see none.
    """
    from deltalake import CommitProperties
    from deltalake.transaction import AddAction, RemoveAction

    now = int(time.time() * 1000)
    actions: list[Any] = [
        RemoveAction(file["path"], rows_change, now, file["size_bytes"], file.get("partition") or {}) for file in gone
    ]
    actions += [
        AddAction(
            path=file["path"],
            size=file["size_bytes"],
            partition_values=file.get("partition") or {},
            modification_time=0,
            data_change=rows_change,
            stats=json.dumps({"numRecords": file["num_records"]}),
        )
        for file in files
    ]
    properties = CommitProperties(app_transactions=[fence_taken], max_commit_retries=0)
    columns, following = table.metadata().partition_columns, table.version() + 1
    with storage(table.table_uri):
        table.create_write_transaction(actions, "append", table.schema(), columns, commit_properties=properties)
        make_durable(table, following, files=False)


def overwrite(table: "DeltaTable", rows: Any, fence_taken: Any) -> None:
    """Replace all rows in one step; readers see the old table or the new. Fails if another wrote since the fence."""
    from deltalake import CommitProperties, write_deltalake

    properties = CommitProperties(app_transactions=[fence_taken], max_commit_retries=0)
    following = table.version() + 1
    with storage(table.table_uri):
        write_deltalake(table, rows, mode="overwrite", schema_mode="overwrite", commit_properties=properties)
        make_durable(table, following)


def dataset(table: "DeltaTable", only: Any = None) -> Any:
    """A table as a pyarrow dataset; `only` are the partitions to read, as (column, operator, value).

    In a folder and on S3 it is read by Arrow's own file systems. deltalake's is written in Python: a DuckDB thread that
    began a scan with Python's lock in its hand, and an Arrow thread that wanted it to open the next file, have waited for
    each other for ever.
    """
    root = urlsplit(table.table_uri)
    files = None
    if root.scheme in ("", "file"):
        files = fs.SubTreeFileSystem(unquote(root.path), fs.LocalFileSystem())
    elif root.scheme == "s3":
        files = fs.SubTreeFileSystem(f"{root.netloc}{unquote(root.path)}", _s3(os.environ.get("AWS_REGION"), *_said()))
    return table.to_pyarrow_dataset(filesystem=files, file_pruning_predicate=only)


def _said() -> tuple[str | None, ...]:
    """What the environment says of S3 in obstore's words, that Arrow does not read itself."""
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
    keys = (os.environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"))
    return endpoint, *keys


ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@cache
def _s3(
    region: str | None, endpoint: str | None, key: str | None, secret: str | None, session: str | None
) -> fs.S3FileSystem:
    """Arrow's S3, tried again for about as long as obstore's; what is silent for three seconds is tried again too."""
    scheme, separator, host = (endpoint or "").rpartition("://")
    return fs.S3FileSystem(
        region=region or os.environ.get("AWS_DEFAULT_REGION"),
        scheme=scheme or "https",
        endpoint_override=host.rstrip("/") if separator else endpoint,
        access_key=key if secret else None,  # neither: Arrow looks where the AWS SDK does
        secret_key=secret if key else None,
        session_token=session if key and secret else None,
        connect_timeout=CONNECT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def read(lake: Lake, path: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """All rows of a table; an empty table of `schema` where there is none."""
    table = open_table(lake, path)
    if table is None:
        if schema is None:
            raise FileNotFoundError(path)
        empty = schema.empty_table()
        return empty.select(columns) if columns else empty
    with storage(path):
        return dataset(table).to_table(columns=columns)
