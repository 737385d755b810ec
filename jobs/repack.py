"""What a dataset's items have in storage, after some of them are gone: packs without their rows, arrays that nobody has.

An item whose content changed has left its old row in a pack behind, and nothing says any more whose it was. So a pack
is written anew wherever it has rows that no item refers to.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..lake import delta, packs, sequences
from ..lake.errors import ItemError, LakeError
from ..lake.integrity import FileRecord
from ..lake.items import ITEMS
from ..lake.layout import Lake

ROOMS = ("arrays", "images", "sequences")
"""Where a dataset's items lie; in the last two, many of them in one pack."""
COLUMNS = ["item_id", "subject_id", "derived_from", "content_digest", "array", "row"]
PLACES = pa.schema([("array", pa.string()), ("row", pa.int64())])
"""Where something lies: the row of a pack, null where the array is the item."""


@dataclass
class Repacked:
    """Items that moved."""

    items: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    """The new pack of each."""
    rows: list[int] = field(default_factory=list)
    """Its row there."""
    files: list[FileRecord] = field(default_factory=list)
    packs: int = 0
    """That were written anew."""
    damaged: int = 0
    """Items of other subjects that could not be read: they stay where they were, and their pack goes."""


def rows_of(lake: Lake, dataset: str) -> pa.Table:
    """What the table says of where each item lies: `COLUMNS`. Raises LakeError where the table is damaged."""
    path = lake.dataset(dataset, "items")
    table = delta.open_table(lake, path)
    if table is None and any(lake.store.list(path)):
        raise LakeError(f"{path} cannot be read; mend it (diastole check), then run again")
    schema = pa.schema([ITEMS.field(name) for name in COLUMNS])
    return schema.empty_table() if table is None else delta.dataset(table).to_table(COLUMNS).cast(schema)


def with_holes(lake: Lake, left: pa.Table, planned: pa.Table) -> dict[str, pa.Table]:
    """Packs that have other rows than those of items that are `left`, or `planned` by an unfinished run, and what is left
    of each.
    """
    places = pa.concat_tables([left.select(PLACES.names), planned])
    counted = places.filter(places["row"].is_valid()).group_by("array").aggregate([("row", "count_distinct")])
    pairs = zip(counted["array"].to_pylist(), counted["row_count_distinct"].to_pylist(), strict=True)
    packs_of = [pack for pack, used in pairs if (length := _length(lake, pack)) is not None and used < length]
    return {pack: left.filter(pc.equal(left["array"], pack)) for pack in packs_of}


def repack(lake: Lake, holed: Mapping[str, pa.Table]) -> Repacked:
    """Write what is left of packs into new ones, each held to its digest. The old ones stay."""
    done = Repacked()
    for pack, left in holed.items():
        rows = left["row"].to_pylist()
        places = sorted(dict(zip(rows, left["content_digest"].to_pylist(), strict=True)).items())
        write = _letters if pack.endswith(".parquet") else _images
        path, kept, files = write(lake, pack, places) if places else (pack, [], [])
        now = {row: number for number, row in enumerate(kept)}
        for item, row in zip(left["item_id"].to_pylist(), rows, strict=True):
            if row in now:
                done.items.append(item)
                done.arrays.append(path)
                done.rows.append(now[row])
            else:
                done.damaged += 1
        done.files += files
        done.packs += bool(files)
    return done


def drop_unused(lake: Lake, dataset: str, used: Collection[str]) -> int:
    """Remove the arrays and packs of a dataset that are not in use. How many."""
    gone = [path for path in stored(lake, dataset) if path not in used]
    for path in gone:
        remove(lake, path)
    return len(gone)


def stored(lake: Lake, dataset: str) -> Iterator[str]:
    """Paths of all arrays and packs of a dataset."""
    for room in ROOMS:
        path = lake.dataset(dataset, room)
        names = lake.store.names(path) if room == "sequences" else lake.store.folders(path)
        yield from (f"{path}/{name}" for name in names)


def remove(lake: Lake, path: str) -> None:
    """Remove a file, or a folder with all that is in it."""
    local = lake.store.path(path) if lake.store.local is not None else None
    if local is not None and local.is_dir():
        shutil.rmtree(local)
        return
    for file, _ in [(path, 0)] if path.endswith(".parquet") else list(lake.store.list(path)):
        lake.store.delete(file)


def _length(lake: Lake, pack: str) -> int | None:
    """Rows of a pack; None where it cannot be read."""
    try:
        if pack.endswith(".parquet"):
            with lake.store.open(pack) as file:
                return int(pq.ParquetFile(file).metadata.num_rows)
        return int(json.loads(lake.store.get(f"{pack}/digests/zarr.json"))["shape"][0])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _letters(lake: Lake, pack: str, places: list[tuple[int, str]]) -> tuple[str, list[int], list[FileRecord]]:
    try:
        found = sequences.read_rows(lake, pack, [row for row, _ in places])
    except ItemError:
        found = {}
    kept = [(row, digest) for row, digest in places if row in found and _holds(digest, found[row])]
    if not kept:
        return pack, [], []
    prefix, digests = pack.rpartition("/")[0], [digest for _, digest in kept]
    path, file = sequences.write_pack(lake, prefix, digests, [found[row] for row, _ in kept])
    return path, [row for row, _ in kept], [file]


def _holds(digest: str, letters: bytes) -> bool:
    try:
        sequences.verified(digest, letters)
    except ItemError:
        return False
    return True


def _images(lake: Lake, pack: str, places: list[tuple[int, str]]) -> tuple[str, list[int], list[FileRecord]]:
    rows, digests = np.array([row for row, _ in places]), [digest for _, digest in places]
    try:
        opened = packs.Pack.open(lake, pack)
        images, bad = opened.take(rows, packs.raw_digests(digests))
    except ItemError:
        return pack, [], []
    if bad.all():
        return pack, [], []
    kept = [digest for digest, lost in zip(digests, bad, strict=True) if not lost]
    whole = images if not bad.any() else images[~bad]
    path, files = packs.write_pack(lake, pack.rpartition("/")[0], whole, kept, opened.meta)
    return path, rows[~bad].tolist(), files
