"""The one place that publishes: receipts checked against the plan, then one Delta transaction per wave.

Whatever dies and whenever, every planned unit ends in exactly one item row, and a reader never sees part of a wave.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..lake import crash, delta, integrity, predictions, suppressed
from ..lake.database import database
from ..lake.errors import CommitError, EnvironmentFailure
from ..lake.ids import digest
from ..lake.layout import Lake
from .check import check_receipts
from .ledger import Ledger
from .merge import merge
from .parts import read_part, write_part
from .plan import Plan, holds
from .receipts import Part, Receipt, part_of

if TYPE_CHECKING:
    from deltalake import DeltaTable

WAVE_PARTS = 100_000
"""Parts that one transaction publishes at most; small ones go into few files."""


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


def commit(
    lake: Lake, plan: Plan, ledger: Ledger, schema: pa.Schema, check: Callable[[], None] = lambda: None
) -> Committed:
    """Publish a run whose shards all have receipts. Doing it again changes nothing.

    Raises CommitError where files, rows and plan do not agree: then nothing is published. `check` is called when the
    table is open: it raises where files of the run may have been swept since they were looked at.
    """
    if not ledger.finished:
        raise CommitError(f"run {plan.run_id[:8]}: shards are missing; run again to finish them")
    check_receipts(lake, plan, ledger)
    crash.point("before-wave")
    maps: list[integrity.FileRecord] = []
    already, dropped = True, 0
    for number, wave in enumerate(_waves(ledger.results(), maps), start=1):
        if not _is_committed(lake, plan, number):
            wave = merge(lake, plan, number, wave)
            crash.point("after-merge")
            _fix_wave(lake, plan.run_id, number, wave)
        fresh, lost = _commit_wave(lake, plan, number, wave, schema, check)
        already, dropped = already and not fresh, dropped + lost
    return _verify(lake, plan, maps, dropped, already=already)


def _waves(results: Iterable[Receipt], maps: list[integrity.FileRecord]) -> Iterator[list[Part]]:
    """Parts, as many as a wave takes, in the order of the shards; and, on the way, the files of `maps`."""

    def parts() -> Iterator[Part]:
        for receipt in results:
            maps.extend(integrity.FileRecord(**file) for file in receipt.files)
            yield from receipt.parts

    left = parts()
    while wave := list(islice(left, WAVE_PARTS)):
        yield wave


def _fix_wave(lake: Lake, run_id: str, number: int, parts: Sequence[Part]) -> None:
    """Write which files a wave holds, or, where other files were fixed before, a successor named by its content.

    The transaction decides which of them is published; verifying finds it by its files.
    """
    listed = [part.__dict__ for part in parts]
    data, folder = json.dumps(listed, indent=1).encode(), f"{lake.run(run_id)}/waves"
    if (
        not lake.store.put_if_absent(f"{folder}/{number}.json", data)
        and lake.store.get(f"{folder}/{number}.json") != data
    ):
        lake.store.put_if_absent(f"{folder}/{number}.{digest(listed)[:12]}.json", data)


def _commit_wave(
    lake: Lake, plan: Plan, number: int, parts: list[Part], schema: pa.Schema, check: Callable[[], None]
) -> tuple[bool, int]:
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
        check()
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
            actions, following = [_action(plan, part) for part in parts], table.version() + 1
            with delta.storage(path):
                table.create_write_transaction(
                    actions, "append", table.schema(), predictions.PARTITIONS, commit_properties=properties
                )
                delta.make_durable(table, following, files=False)
        except CommitFailedError:
            time.sleep(
                min(2.0, 0.02 * 2**attempt)
            )  # another writer came between, or this one's answer was lost: look again
            continue
        crash.point("after-commit")
        return True, dropped
    raise EnvironmentFailure(f"{delta.RETRIES} writers came between the commit of run {plan.run_id[:8]}; run again")


def _fixed(lake: Lake, path: str) -> list[Part]:
    """The parts that a wave file names. Raises CommitError where it is not one."""
    try:
        return [part_of(part) for part in json.loads(lake.store.get(path))]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CommitError(f"{path} is damaged; delete it and run again") from error


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
    published = _published_since(plan, table)
    withdrawn = _withdrawn_since(lake, plan)
    if not published and not withdrawn:
        return parts, 0
    root, kept, gone = lake.predictions(plan.output), [], 0
    for part in parts:
        if part.level == "item":  # what failed elsewhere does not keep out what was scored here
            rows = read_part(lake, root, part, ["item_id", "status"])
            scored = set(rows.filter(pc.equal(rows["status"], "scored"))["item_id"].to_pylist())
            published = {item: status for item, status in published.items() if status == "scored" or item not in scored}
    values = pa.array(sorted(set(published) | withdrawn), pa.string())
    without = digest(values.to_pylist())[:12]  # a run that was killed here may drop more when it goes on
    for part in parts:
        rows = read_part(lake, root, part, None)
        left = rows.filter(pc.invert(pc.is_in(rows["item_id"], values)))
        gone += rows.num_rows - left.num_rows if part.level == "item" else 0
        if left.num_rows == rows.num_rows:
            kept.append(part)
        elif left.num_rows:
            stem = f"{part.path.removesuffix('.parquet')}-v{table.version()}-{without}"
            kept.append(write_part(lake, root, stem, left, part.level))
    _fix_wave(lake, plan.run_id, number, kept)
    return kept, gone


def _published_since(plan: Plan, table: "DeltaTable") -> dict[str, str]:
    """Items of the plan whose key another run has committed since the plan was made, with the status there."""
    group = [("level", "=", "item"), ("key_group", "=", plan.key_group)]
    if table.version() == plan.table_version or not table.file_uris(file_pruning_predicate=group):
        return {}
    key = {"model": plan.model_digest, "spec": plan.spec_digest, "run": plan.run_id}
    with delta.storage(f"predictions/{plan.output}"), database() as opened:
        opened.register("own", predictions.item_rows(table, plan.key_group))
        opened.register("planned", plan.units.select(["item_id", "input_digest", "attempt"]))
        rows = opened.execute(
            """
            select item_id, max(status) from own join planned using (item_id, input_digest)
            where model_digest = $model and spec_digest = $spec and run_id <> $run and own.attempt >= planned.attempt
            group by item_id
            """,  # scored comes after failed
            key,
        ).fetchall()
    return {row[0]: row[1] for row in rows}


def _withdrawn_since(lake: Lake, plan: Plan) -> set[str]:
    gone = suppressed.read(lake)
    return set(plan.units["item_id"].filter(holds(plan, gone)).to_pylist()) if gone else set()


def _is_committed(lake: Lake, plan: Plan, number: int) -> bool:
    """Whether the table has a wave."""
    table = delta.open_table(lake, lake.predictions(plan.output))
    last = None if table is None else table.transaction_version(plan.run_id)
    return last is not None and last >= number


def is_published(lake: Lake, plan: Plan) -> bool:
    """Whether the table has all, or for a run of several waves some, of a run's rows."""
    table = delta.open_table(lake, lake.predictions(plan.output))
    return table is not None and table.transaction_version(plan.run_id) is not None


def _verify(lake: Lake, plan: Plan, maps: Sequence[integrity.FileRecord], dropped: int, *, already: bool) -> Committed:
    """Reopen the table and hold it to what was fixed for each wave; then record what was written."""
    table = delta.open_table(lake, lake.predictions(plan.output))
    root = lake.predictions(plan.output)
    there = set() if table is None else {uri.rsplit(f"{root}/", 1)[1] for uri in table.file_uris()}
    published: dict[str, list[Part]] = {}
    waves: dict[str, list[list[Part]]] = {}
    for path, _ in lake.store.list(f"{lake.run(plan.run_id)}/waves"):
        number = path.rsplit("/", 1)[1].split(".")[0]
        fixed = _fixed(lake, path)
        waves.setdefault(number, []).append(fixed)
        if {part.path for part in fixed} <= there and len(fixed) >= len(published.get(number, [])):
            published[number] = fixed
    if table is not None and set(waves) - set(published):
        published |= _as_committed(lake, plan, table, waves)
    if table is None or set(waves) - set(published):
        raise CommitError(
            f"run {plan.run_id[:8]}: files of {len(set(waves) - set(published))} waves are not in the table; run check"
        )
    parts = [part for fixed in published.values() for part in fixed]
    files = [integrity.FileRecord(f"{root}/{p.path}", p.bytes, p.sha256) for p in parts]
    integrity.record(lake, [*files, *maps], plan.run_id, once=True)
    rows = sum(part.rows for part in parts if part.level == "item")
    return Committed(table.version(), len(parts), rows, dropped, already)


def _as_committed(
    lake: Lake, plan: Plan, table: "DeltaTable", waves: dict[str, list[list[Part]]]
) -> dict[str, list[Part]]:
    """What was fixed for each wave and is what its own commit added, wherever a compaction has put the rows since."""
    found: dict[str, list[Part]] = {}
    for said in table.history():
        if said.get("run_id") == plan.run_id:
            added, number = delta.added_in(lake, lake.predictions(plan.output), said["version"]), str(said["wave"])
            for fixed in waves.get(number, []):
                if {part.path for part in fixed} == added:
                    found[number] = fixed
    return found
