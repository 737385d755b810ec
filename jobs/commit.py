"""The one place that publishes: receipts checked against the plan, then one Delta transaction per wave.

Whatever dies and whenever, every planned unit ends in exactly one item row, and a reader never sees part of a wave.
"""

import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..lake import crash, delta, integrity, predictions
from ..lake.errors import CommitError, EnvironmentFailure
from ..lake.ids import sha256_bytes
from ..lake.layout import Lake
from .ledger import Ledger
from .plan import Plan
from .receipts import Part, Receipt
from .select import suppressed

if TYPE_CHECKING:
    from deltalake import DeltaTable

WAVE_PARTS = 10_000
"""Parts in one transaction at most."""


@dataclass(frozen=True)
class Committed:
    """What a commit did."""

    version: int
    """Version of the output's table that has the run."""
    parts: int
    rows: int
    dropped: int
    """Units that others had published, or whose subject was withdrawn, since the plan."""
    already: bool
    """Whether an earlier driver had committed all of it."""


def commit(lake: Lake, plan: Plan, ledger: Ledger, schema: pa.Schema) -> Committed:
    """Publish a run whose shards all have receipts. Doing it again changes nothing.

    Raises CommitError where files, rows and plan do not agree: then nothing is published.
    """
    if not ledger.finished:
        raise CommitError(f"run {plan.run_id[:8]}: shards are missing; run again to finish them")
    results = [receipt for _, receipt in sorted(ledger.done.items()) if receipt.children is None]
    check_receipts(lake, plan, results)
    crash.point("before-wave")
    parts = [part for receipt in results for part in receipt.parts]
    waves = [parts[i : i + WAVE_PARTS] for i in range(0, len(parts), WAVE_PARTS)]
    already, dropped = True, 0
    for number, wave in enumerate(waves, start=1):
        fixed = _fix_wave(lake, plan.run_id, str(number), wave)
        fresh, lost = _commit_wave(lake, plan, number, fixed, schema)
        already, dropped = already and not fresh, dropped + lost
    return _verify(lake, plan, results, dropped, already=already)


def check_receipts(lake: Lake, plan: Plan, results: Sequence[Receipt]) -> None:
    """Every planned unit has one item row in a file that is there, whole, and inside the table's folder."""
    seen: list[Any] = []
    details: list[Any] = []
    root = lake.predictions(plan.output)
    for receipt in results:
        for part in receipt.parts:
            own = f"level={part.level}/key_group={plan.key_group}/{plan.run_id}-{receipt.shard}-"
            if not part.path.startswith(own) or "/" in part.path.removeprefix(own):
                raise CommitError(
                    f"receipt of shard {receipt.shard} names a file outside of its table; nothing is published"
                )
            size = lake.store.size(f"{root}/{part.path}")
            if size != part.bytes:
                raise CommitError(
                    f"shard {receipt.shard}: its file is {'gone' if size is None else f'of {size} bytes, not {part.bytes}'}; "
                    f"delete runs/{plan.run_id}/receipts/{receipt.shard}.json and run again: the shard is redone"
                )
            table = _read_part(
                lake, root, part, ["item_id"] if part.level == "row" else ["item_id", "input_digest", "n_rows"]
            )
            if table.num_rows != part.rows:
                raise CommitError(f"shard {receipt.shard}: {table.num_rows} rows in a file, {part.rows} in its receipt")
            (seen if part.level == "item" else details).append(table)
    rows = pa.concat_tables(seen) if seen else pa.table({"item_id": [], "input_digest": [], "n_rows": []})
    planned = sorted(zip(plan.units["item_id"].to_pylist(), plan.units["input_digest"].to_pylist(), strict=True))
    found = sorted(zip(rows["item_id"].to_pylist(), rows["input_digest"].to_pylist(), strict=True))
    if planned != found:
        raise CommitError(
            f"run {plan.run_id[:8]}: {len(planned)} units planned, {len(found)} item rows; nothing is published"
        )
    counted = Counter(name for table in details for name in table["item_id"].to_pylist())
    said = {item: n for item, n in zip(rows["item_id"].to_pylist(), rows["n_rows"].to_pylist(), strict=True) if n}
    if counted != said:
        raise CommitError(
            f"run {plan.run_id[:8]}: {counted.total()} detail rows, but the item rows count others; nothing is published"
        )


def _fix_wave(lake: Lake, run_id: str, name: str, parts: Sequence[Part]) -> list[Part]:
    """Write which files a wave holds; if another driver did, its word counts."""
    path = f"{lake.run(run_id)}/waves/{name}.json"
    if not lake.store.put_if_absent(path, json.dumps([part.__dict__ for part in parts], indent=1).encode()):
        return [Part(**part) for part in json.loads(lake.store.get(path))]
    return list(parts)


def _commit_wave(lake: Lake, plan: Plan, number: int, parts: list[Part], schema: pa.Schema) -> tuple[bool, int]:
    """(whether this call committed it, units dropped). Exactly one of any number of racing calls commits a wave."""
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError

    path, dropped = lake.predictions(plan.output), 0
    for attempt in range(delta.RETRIES):
        table = delta.ensure_table(lake, path, schema, predictions.PARTITIONS)
        last = table.transaction_version(plan.run_id)
        if last is not None and last >= number:
            return False, dropped
        if (last or 0) != number - 1:
            raise CommitError(f"run {plan.run_id[:8]}: wave {number} follows {number - 1}, the table has {last}")
        parts, gone = _without_published(lake, plan, table, number, parts)
        dropped += gone
        crash.point("before-commit")
        transactions = [Transaction(plan.run_id, number), delta.fence(table)]
        properties = CommitProperties(
            app_transactions=transactions,
            max_commit_retries=0,
            custom_metadata={"run_id": plan.run_id, "wave": str(number)},
        )
        try:
            actions = [_action(plan, part) for part in parts]
            table.create_write_transaction(
                actions, "append", table.schema(), predictions.PARTITIONS, commit_properties=properties
            )
        except CommitFailedError:
            time.sleep(
                min(2.0, 0.02 * 2**attempt)
            )  # another writer came between, or this one's answer was lost: look again
            continue
        crash.point("after-commit")
        return True, dropped
    raise EnvironmentFailure(f"{delta.RETRIES} writers came between the commit of run {plan.run_id[:8]}; run again")


def _action(plan: Plan, part: Part) -> Any:
    from deltalake.transaction import AddAction

    return AddAction(
        path=part.path,
        size=part.bytes,
        partition_values={"level": part.level, "key_group": plan.key_group},
        modification_time=0,
        data_change=True,
        stats=json.dumps({"numRecords": part.rows}),
    )


def _without_published(
    lake: Lake, plan: Plan, table: "DeltaTable", number: int, parts: list[Part]
) -> tuple[list[Part], int]:
    """Leave out units that others published since the plan, and those of withdrawn subjects, by rewriting their parts."""
    drop = _published_since(plan, table) | _withdrawn_since(lake, plan)
    if not drop:
        return parts, 0
    root, kept, gone = lake.predictions(plan.output), [], 0
    values = pa.array(sorted(drop))
    for part in parts:
        rows = _read_part(lake, root, part, None)
        mask = pc.is_in(rows["item_id"], values)
        if not pc.any(mask).as_py():
            kept.append(part)
            continue
        left = rows.filter(pc.invert(mask))
        gone += rows.num_rows - left.num_rows if part.level == "item" else 0
        if left.num_rows:
            kept.append(
                write_part(lake, root, part.path.removesuffix(".parquet") + f"-v{table.version()}", left, part.level)
            )
    successor = f"{number}.{table.version()}"
    return _fix_wave(lake, plan.run_id, successor, kept), gone


def _published_since(plan: Plan, table: "DeltaTable") -> set[str]:
    """Items of the plan whose key another run has committed since the plan was made."""
    import duckdb

    if table.version() == plan.table_version:
        return set()
    done = table.to_pyarrow_dataset()  # noqa: F841 - duckdb finds it by name
    planned = plan.units.select(["item_id", "input_digest", "attempt"])  # noqa: F841
    rows = duckdb.execute(
        """
        select distinct item_id from done join planned using (item_id, input_digest)
        where level = 'item' and key_group = $group and model_digest = $model and spec_digest = $spec
          and run_id <> $run and done.attempt >= planned.attempt
        """,
        {"group": plan.key_group, "model": plan.model_digest, "spec": plan.spec_digest, "run": plan.run_id},
    )
    return {row[0] for row in rows.fetchall()}


def _withdrawn_since(lake: Lake, plan: Plan) -> set[str]:
    withdrawn = suppressed(lake)
    pairs = zip(plan.units["item_id"].to_pylist(), plan.units["subject_id"].to_pylist(), strict=True)
    return {item for item, subject in pairs if subject in withdrawn} if withdrawn else set()


def write_part(lake: Lake, root: str, stem: str, rows: pa.Table, level: str) -> Part:
    """Write rows as a part file with page checksums, read it back, and say what it is."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
    data, path = buffer.getvalue(), f"{root}/{stem}.parquet"
    if not lake.store.put_if_absent(path, data) and lake.store.get(path) != data:
        raise EnvironmentFailure(f"{path} is there already with other bytes")
    digest = sha256_bytes(lake.store.get(path))
    if digest != sha256_bytes(data):
        raise EnvironmentFailure(f"{path} reads back other bytes than were written; check the disk")
    return Part(f"{stem}.parquet", len(data), digest, rows.num_rows, level)


def _read_part(lake: Lake, root: str, part: Part, columns: list[str] | None) -> pa.Table:
    data = lake.store.get(f"{root}/{part.path}")
    if sha256_bytes(data) != part.sha256:
        raise CommitError(f"{part.path} is damaged; delete its receipt and run again: its shard is redone")
    try:
        return pq.read_table(io.BytesIO(data), columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise CommitError(f"{part.path} is damaged; delete its receipt and run again: its shard is redone") from error


def _verify(lake: Lake, plan: Plan, results: Sequence[Receipt], dropped: int, *, already: bool) -> Committed:
    """Reopen the table and hold it to what was fixed for each wave; then record what was written."""
    table = delta.open_table(lake, lake.predictions(plan.output))
    root = lake.predictions(plan.output)
    there = set() if table is None else {uri.split(f"{root}/", 1)[1] for uri in table.file_uris()}
    published: dict[str, list[Part]] = {}
    waves = set()
    for path, _ in lake.store.list(f"{lake.run(plan.run_id)}/waves"):
        number = path.rsplit("/", 1)[1].split(".")[0]
        waves.add(number)
        fixed = [Part(**part) for part in json.loads(lake.store.get(path))]
        if {part.path for part in fixed} <= there and len(fixed) >= len(published.get(number, [])):
            published[number] = fixed
    if table is None or waves - set(published):
        raise CommitError(
            f"run {plan.run_id[:8]}: files of {len(waves - set(published))} waves are not in the table; run check"
        )
    parts = [part for fixed in published.values() for part in fixed]
    files = [integrity.FileRecord(f"{root}/{p.path}", p.bytes, p.sha256) for p in parts]
    maps = [integrity.FileRecord(**file) for receipt in results for file in receipt.files]
    integrity.record(lake, files + maps, plan.run_id, once=True)
    rows = sum(part.rows for part in parts if part.level == "item")
    return Committed(table.version(), len(parts), rows, dropped, already)
