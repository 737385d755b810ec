"""Mending what a scrub found: what can be redone is taken out of its table, so that the next run scores it again."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..lake import delta, integrity, scrub, statistics
from ..lake.database import database
from ..lake.ids import digest
from ..lake.layout import Lake
from ..lake.scrub import Finding
from .parts import write_part
from .receipts import Part

if TYPE_CHECKING:
    from deltalake import DeltaTable

WRITTEN_BY = "repair"
UNITS = pa.schema([("unit", pa.string()), ("known", pa.bool_())])
"""item_id/run_id of what is taken out, and whether its item row is there."""


@dataclass
class Repaired:
    """What was mended, and what cannot be from here."""

    mended: list[tuple[str, str]] = field(default_factory=list)
    """(path, what was done)."""
    left: list[tuple[str, str]] = field(default_factory=list)
    """(path, what to do)."""
    outputs: dict[str, int] = field(default_factory=dict)
    """Outputs of which results were taken out or `current/` was rebuilt, and how many units their jobs have to score again."""


def repair(lake: Lake, findings: Sequence[Finding]) -> Repaired:
    """Take results whose rows or maps are damaged or missing out of predictions, and what is not theirs out of `current/`.

    Raises EnvironmentFailure where storage fails; done again, it goes on.
    """
    done = Repaired()
    sorted_out: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        room, name, *rest = finding.path.split("/")
        if room in ("predictions", "maps", "current") and rest and rest[0] != "_delta_log":
            sorted_out[name].append(finding)
        elif room == statistics.ROOM:
            integrity.forget(lake, [finding.path])
            lake.store.delete(finding.path)
            done.mended.append((finding.path, f"removed; {integrity.how_to_heal(finding.path)}"))
        else:
            done.left.append((finding.path, f"{finding.problem}; {_advice(finding.path)}"))
    for output, found in sorted(sorted_out.items()):
        done.outputs[output] = take_out(lake, output, [f for f in found if not f.path.startswith("current/")])
        rebuild_current(lake, output, {f.path.removeprefix(f"{lake.current(output)}/") for f in found})
        for finding in found:
            rebuilt = finding.path.startswith("current/")
            done.mended.append((finding.path, "rebuilt from predictions" if rebuilt else "its results were taken out"))
    return done


def _advice(path: str) -> str:
    room, *_ = path.split("/")
    return "restore it from a backup" if room != "datasets" or "/_delta_log" in path else integrity.how_to_heal(path)


def take_out(lake: Lake, output: str, findings: Sequence[Finding]) -> int:
    """Take all rows of units out whose item row, detail rows or map is hurt, in one commit. How many units these were that
    could still be told; rows of a lost file can not, but are as many as are missing.
    """
    path, hurt = lake.predictions(output), {finding.path for finding in findings}

    def attempt() -> int:
        table = delta.open_table(lake, path)
        if table is None or not hurt:
            return 0
        files, fence = delta.files_of(table), delta.fence(table)
        lost = {file["path"] for file in files if f"{path}/{file['path']}" in hurt}
        units = _hurt(table, [file for file in files if file["path"] not in lost], hurt)
        gone = [file for file in files if file["path"] in lost]
        added: list[Part] = []
        without = digest(sorted(units["unit"].to_pylist()))[:12]  # one that was killed may find more the next time
        for file in files if units.num_rows else ():
            if file["path"] not in lost and (left := _without(lake, path, file["path"], units)) is not None:
                gone.append(file)
                stem = f"{file['path'].removesuffix('.parquet')}-repair{without}"
                added += [write_part(lake, path, stem, left, file["partition"]["level"])] if left.num_rows else []
        if gone:
            integrity.renew(
                lake, [integrity.FileRecord(f"{path}/{p.path}", p.bytes, p.sha256) for p in added], WRITTEN_BY
            )
            places = {file["path"].rpartition("/")[0]: file["partition"] for file in files}
            new = [
                {"path": p.path, "size_bytes": p.bytes, "num_records": p.rows}
                | {"partition": places[p.path.rpartition("/")[0]]}
                for p in added
            ]
            delta.add_files(table, new, fence, gone)
        lost_units = sum(file["num_records"] or 0 for file in gone if file["path"] in lost and _is_item(file))
        return lost_units + int(pc.sum(units["known"], min_count=0).as_py())

    count = delta.retried(f"repair of {output}", attempt)
    integrity.forget(lake, hurt)
    return count


def _is_item(file: dict[str, Any]) -> bool:
    return bool(file["partition"]["level"] == "item")


def _hurt(table: "DeltaTable", files: Sequence[dict[str, Any]], hurt: set[str]) -> pa.Table:
    """Units of whole files whose rows are not all there, or whose maps are hurt."""
    folders = sorted({f"{path.partition('.zarr')[0]}.zarr" for path in hurt if path.startswith("maps/")})
    items = {file["path"] for file in files if _is_item(file)}
    rows = {file["path"] for file in files} - items
    with delta.storage("predictions"), database() as opened:
        opened.register("items", scrub.part_of(table, items))
        opened.register("details", scrub.part_of(table, rows))
        opened.register("folders", pa.table({"path": pa.array(folders, pa.string())}))
        found = opened.sql(_HURT).to_arrow_table()
        return found.cast(UNITS)


_HURT = """
    with counted as (select item_id, run_id, count(*) as n from details group by all),
         mapped as (select item_id, run_id, unnest(maps).path as path from items)
    select item_id || '/' || run_id as unit, true as known from items left join counted using (item_id, run_id)
      where coalesce(n_rows, 0) <> coalesce(n, 0)
    union select item_id || '/' || run_id, false from counted anti join items using (item_id, run_id)
    union select item_id || '/' || run_id, true from mapped semi join folders using (path)
"""


def _without(lake: Lake, root: str, name: str, units: pa.Table) -> pa.Table | None:
    """A file's rows without those of some units; None where it has none of them."""
    rows = pq.ParquetFile(io.BytesIO(lake.store.get(f"{root}/{name}")), page_checksum_verification=True).read()
    keys = pc.binary_join_element_wise(rows["item_id"], rows["run_id"], "/")
    theirs = pc.is_in(keys, value_set=units["unit"].combine_chunks())
    return rows.filter(pc.invert(theirs)) if pc.any(theirs).as_py() else None


def rebuild_current(lake: Lake, output: str, hurt: set[str]) -> None:
    """Make `current/OUTPUT` hold the rows that predictions have of what its whole files show."""
    path = lake.current(output)

    def attempt() -> None:
        shown, predicted = delta.open_table(lake, path), delta.open_table(lake, lake.predictions(output))
        if shown is None or predicted is None:
            return
        fence = delta.fence(shown)
        predicted.update_incremental()
        schema = delta.dataset(predicted).schema
        whole = {name for name, _ in scrub.listed_files(shown)} - hurt
        with delta.storage(path), database() as opened:
            opened.register("shown", scrub.part_of(shown, whole))
            opened.register("predicted", delta.dataset(predicted))
            query = "select * from predicted semi join shown using (item_id, input_digest, model_digest, spec_digest, run_id)"
            batches = (batch.cast(schema) for batch in opened.sql(query).to_arrow_reader(65536))
            delta.overwrite(shown, pa.RecordBatchReader.from_batches(schema, batches), fence)

    delta.retried(f"repair of {path}", attempt)
