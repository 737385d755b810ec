"""What nothing in a lake refers to, place by place. What cannot be known, because a table is damaged, is no orphan."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from ..lake import delta, integrity, quarantine
from ..lake.errors import DiastoleError, LakeError
from ..lake.layout import Lake
from ..lake.store import Found
from . import runs

if TYPE_CHECKING:
    from deltalake import DeltaTable

ARRAYS = {"arrays": "arrays", "images": "packs", "sequences": "packs"}
"""Folders of a dataset, each with the word for what lies there."""
ROOMS = (
    "datasets",
    "predictions",
    "current",
    "maps",
    "quarantine",
    "integrity",
    "suppressed",
    "runs",
    "models",
    "tuned",
    "statistics",
)
"""Where a killed writer may have left a file that it had not finished; leases end by themselves."""
UNFINISHED = 3600.0
"""Seconds that such a file stays at least, whatever the grace is: one who only slept may be about to give it its name."""


@dataclass(frozen=True)
class Orphan:
    """A file, or the folder of an array, that nothing refers to."""

    path: str
    files: tuple[Found, ...]

    @property
    def order(self) -> list[Found]:
        """Its files as they are to go: an array's own metadata first, since where it is, the array counts as whole."""
        return sorted(self.files, key=lambda f: f.path != f"{self.path}/zarr.json")


@dataclass(frozen=True)
class Place:
    """A part of the lake that is judged alone."""

    path: str
    kind: str
    table: str | None
    """The table whose rows or files refer to what lies here."""
    find: Callable[[], list[Orphan]]
    """Raises where it cannot be said what nothing refers to."""


@dataclass(frozen=True)
class Needed:
    """What runs that have not ended may still need: all that they wrote, and the arrays that they planned."""

    runs: frozenset[str]
    arrays: frozenset[str]
    versions: dict[str, int] = field(default_factory=dict)
    """The newest version of each output's table that a run has recorded."""


def needed(lake: Lake) -> Needed:
    """Look at all runs. Raises LakeError where the plan of one that has not ended cannot be read: then nothing is an orphan."""
    unended: set[str] = set()
    arrays: set[str] = set()
    versions: dict[str, int] = {}
    for run in runs.list_runs(lake):
        record = runs.read_record(lake, run)
        if record is None:
            unended.add(run)
            arrays |= _planned_arrays(lake, run)
        elif record.get("table_version") is not None:
            versions[record["output"]] = max(record["table_version"], versions.get(record["output"], 0))
    return Needed(frozenset(unended), frozenset(arrays), versions)


def _planned_arrays(lake: Lake, run: str) -> set[str]:
    inputs = runs.read_plan(lake, run).units["inputs"]  # where it cannot be read, the sweep ends here
    return set(pc.unique(pc.struct_field(pc.list_flatten(inputs), "array")).to_pylist())


def places(lake: Lake, kept: Needed, before: float) -> Iterator[Place]:
    """All places; in each, only what was last modified before a time, in seconds since 1970, counts."""
    for room in ("predictions", "current"):
        for output in lake.store.folders(room):
            find = partial(_files_of_table, lake, f"{room}/{output}", kept, before)
            yield Place(f"{room}/{output}", room, f"{room}/{output}", find)
    for output in lake.store.folders("maps"):
        yield Place(f"maps/{output}", "maps", lake.predictions(output), partial(_maps, lake, output, kept, before))
    for dataset in lake.datasets():
        own = lake.dataset(dataset, "items")
        for part, kind in ARRAYS.items():
            path = lake.dataset(dataset, part)
            yield Place(path, kind, own, partial(_arrays, lake, path, own, kept, before))
        for table in (own, lake.dataset(dataset, "sources")):
            yield Place(table, "tables", table, partial(_files_of_table, lake, table, kept, before))
    for table in (quarantine.PATH, integrity.PATH):
        yield Place(table, "tables", table, partial(_files_of_table, lake, table, kept, before))
    for room in ROOMS:
        yield Place(room, "unfinished", None, partial(_unfinished, lake, room, min(before, time.time() - UNFINISHED)))


def _files_of_table(lake: Lake, path: str, kept: Needed, before: float) -> list[Orphan]:
    """Data files that the table does not have, nor has given up lately, and that no run may still publish."""
    found = {file.path.removeprefix(f"{path}/"): file for file in lake.store.found(path) if file.modified <= before}
    data = {name for name in found if _is_data(name)}
    old = {name for name in data if name.rsplit("/", 1)[-1].partition("-")[0] not in kept.runs}  # as parts are called
    if not old:
        return []
    table = _table(lake, path)
    if table.version() < kept.versions.get(path.removeprefix("predictions/"), 0):
        raise LakeError(f"{path} has lost commits that runs have recorded; restore it from a backup")
    old -= {file["path"] for file in delta.files_of(table)} | delta.removed_since(lake, path, before)
    return [Orphan(found[name].path, (found[name],)) for name in sorted(old)]


def _is_data(relative: str) -> bool:
    return relative.endswith(".parquet") and not relative.startswith("_delta_log/")


def _arrays(lake: Lake, path: str, own: str, kept: Needed, before: float) -> list[Orphan]:
    """Arrays and packs that no item has or had, and that no run has planned to read."""
    found = _old(_grouped(lake, path, re.compile(re.escape(path) + "/[^/]+")), before)
    if not found:
        return []
    column = delta.dataset(_table(lake, own)).to_table(columns=["array"])["array"]
    referred = set(pc.unique(column).to_pylist()) | kept.arrays
    return [orphan for orphan in found if orphan.path not in referred]


def _maps(lake: Lake, output: str, kept: Needed, before: float) -> list[Orphan]:
    """Maps that no item row names, and that no run may still publish."""
    found = _old(_grouped(lake, lake.maps(output), re.compile(r".*?\.zarr")), before)
    found = [orphan for orphan in found if orphan.path.split("/")[2] not in kept.runs]
    if not found:
        return []
    _table(lake, lake.predictions(output))
    referred: set[str] = set()
    for path in (lake.predictions(output), lake.current(output)):
        table = delta.open_table(lake, path)
        rows = delta.dataset(table, [("level", "=", "item")]).to_batches(columns=["maps"]) if table else ()
        for batch in rows:
            referred.update(pc.struct_field(pc.list_flatten(batch["maps"]), "path").to_pylist())
    return [orphan for orphan in found if orphan.path not in referred]


def _unfinished(lake: Lake, room: str, before: float) -> list[Orphan]:
    """Files that a writer was killed over, before they had their name."""
    found = lake.store.found(room) if lake.store.local is not None else ()
    return [Orphan(f.path, (f,)) for f in found if _is_part(f.path) and f.modified <= before]


def _is_part(path: str) -> bool:
    return path.rsplit("/", 1)[1].startswith(".part-")


def _grouped(lake: Lake, path: str, unit: re.Pattern[str]) -> dict[str, list[Found]]:
    """The files below a folder by what they belong to."""
    grouped: dict[str, list[Found]] = {}
    for file in lake.store.found(path):
        if not _is_part(file.path) and (match := unit.match(file.path)):
            grouped.setdefault(match[0], []).append(file)
    return grouped


def _old(grouped: dict[str, list[Found]], before: float) -> list[Orphan]:
    return [Orphan(n, tuple(files)) for n, files in grouped.items() if max(f.modified for f in files) <= before]


def _table(lake: Lake, path: str) -> "DeltaTable":
    table = delta.open_table(lake, path)
    if table is None:
        raise LakeError(f"{path} has no table that could say what is needed")
    return table


def size(orphans: Iterable[Orphan]) -> tuple[int, int]:
    """(files, bytes)."""
    files = list(chain.from_iterable(orphan.files for orphan in orphans))
    return len(files), sum(file.bytes for file in files)


def why(error: BaseException) -> str:
    """One line."""
    said = str(error).strip().splitlines()
    return said[0] if isinstance(error, DiastoleError) and said else f"it cannot be read ({type(error).__name__})"
