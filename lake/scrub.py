"""Every file of a lake held to what was written, in parallel and in bounded memory: what `diastole check` finds."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import dataset as datasets

from . import delta, integrity
from .database import database
from .errors import EnvironmentFailure
from .layout import Lake

if TYPE_CHECKING:
    from deltalake import DeltaTable

THREADS = 8
"""Files that are looked at at a time; of each, a few megabytes are in memory."""
AHEAD = 256
"""Files of which the records are in memory."""
Progress = Callable[[int], None]
"""Called with the number of files that were looked at."""


@dataclass(frozen=True)
class Finding:
    """A file, or a table, that is not as it was written."""

    path: str
    problem: str


@dataclass(frozen=True)
class Scrubbed:
    """What was looked at, and what is wrong."""

    files: int
    findings: list[Finding]


def scrub(lake: Lake, *, deep: bool, progress: Progress | None = None) -> Scrubbed:
    """Look at every file that is recorded, of every model, and that a table lists: is it there, of its size and, when deep,
    of its bytes? Raises EnvironmentFailure where storage fails.

    Files that deltalake wrote (items, sources, quarantine, integrity) have no sha256; deep, they are read whole.
    """
    findings: list[Finding] = []
    files = 0
    for path, problem in _looked_at(lake, deep=deep):
        files += 1
        if problem is not None:
            findings.append(Finding(path, problem))
        if progress is not None and files % 64 == 0:
            progress(files)
    for path in tables(lake):
        findings += _table(lake, path, deep=deep)
    known = {finding.path for finding in findings}
    for output in lake.store.folders("current"):
        findings += [found for found in _current(lake, output, deep=deep) if found.path not in known]
    return Scrubbed(files, sorted(set(findings), key=lambda finding: finding.path))


def _looked_at(lake: Lake, *, deep: bool) -> Iterator[tuple[str, str | None]]:
    """(path, what is wrong) of what is recorded, and of the models."""

    def look(row: tuple[str, int | None, str | None]) -> tuple[str, str | None]:
        return row[0], integrity.problem(lake, row[0], row[1], row[2] if deep else None)

    rows = _recorded(lake)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="diastole-scrub") as threads:
        while some := list(islice(rows, AHEAD)):
            yield from threads.map(look, some)
    yield from integrity.models(lake, deep=deep)


def _recorded(lake: Lake) -> Iterator[tuple[str, int, str]]:
    table = delta.open_table(lake, integrity.PATH)
    if table is None:
        return
    with delta.storage(integrity.PATH):
        for batch in delta.dataset(table).to_batches(columns=["path", "bytes", "sha256"], batch_size=65536):
            yield from zip(*(batch[name].to_pylist() for name in ("path", "bytes", "sha256")), strict=True)


def tables(lake: Lake) -> list[str]:
    """Paths of all Delta tables of a lake."""
    named = [lake.dataset(name, part) for name in lake.datasets() for part in ("items", "sources")]
    named += [f"{room}/{name}" for room in ("predictions", "current") for name in lake.store.folders(room)]
    return [
        path for path in [*named, "quarantine", integrity.PATH] if next(lake.store.names(f"{path}/_delta_log"), None)
    ]


def _table(lake: Lake, path: str, *, deep: bool) -> list[Finding]:
    """Whether a table opens, and has its files; deep, whether those that have no sha256 can be read."""
    table = delta.open_table(lake, path)
    if table is None:
        return [Finding(f"{path}/_delta_log", "is not the log of a table")]
    listed = list(listed_files(table))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="diastole-scrub") as threads:
        problems = threads.map(lambda file: integrity.problem(lake, f"{path}/{file[0]}", file[1], None), listed)
        found = [Finding(f"{path}/{file[0]}", said) for file, said in zip(listed, problems, strict=True) if said]
    if deep and not path.startswith("predictions/"):  # those are recorded
        bad = {finding.path for finding in found}
        found += [
            Finding(f"{path}/{name}", "cannot be read")
            for name, _ in listed
            if f"{path}/{name}" not in bad and not _decodes(table, name)
        ]
    return found


def _decodes(table: "DeltaTable", name: str) -> bool:
    try:
        for fragment in fragments(table, {name}):
            for _ in fragment.to_batches(batch_size=65536):
                pass
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise EnvironmentFailure(f"storage failed at a file of a table: {error.strerror}") from error
        if "AWS Error" in str(error):
            raise EnvironmentFailure("storage failed at a file of a table") from error
        return False
    return True


def _current(lake: Lake, output: str, *, deep: bool) -> list[Finding]:
    """Rows of `current/OUTPUT` that are not those of the predictions, of which they are copies; files that were linked
    are held to the sha256 of what they were linked to.
    """
    path, source = lake.current(output), lake.predictions(output)
    shown, predicted = delta.open_table(lake, path), delta.open_table(lake, source)
    if not deep or shown is None or predicted is None:
        return []
    found, written = [], set()
    recorded = sha256s(lake, source)
    for name, _ in listed_files(shown):
        if name not in recorded:
            written.add(name)
        elif lake.store.size(f"{path}/{name}") and lake.store.sha256(f"{path}/{name}") != recorded[name]:
            found.append(Finding(f"{path}/{name}", integrity.CHANGED))
    lost = {name for name in written if not lake.store.size(f"{path}/{name}") or not _decodes(shown, name)}
    if left := sorted(written - lost):
        files = [name for name, _ in listed_files(predicted)]
        whole = {name for name in files if _holds(lake, f"{source}/{name}", recorded.get(name))}
        others = ((name, _unlike(shown, name, predicted, whole)) for name in left)
        found += [Finding(f"{path}/{name}", f"{n} of its rows are not those of {source}") for name, n in others if n]
    return found


def _holds(lake: Lake, path: str, sha256: str | None) -> bool:
    return integrity.problem(lake, path, None, sha256) is None


def _unlike(shown: "DeltaTable", name: str, predicted: "DeltaTable", whole: set[str]) -> int:
    """Rows of a file of `shown` that are in no whole file of `predicted`."""
    with delta.storage("current"), database() as opened:
        opened.register("shown", part_of(shown, {name}))
        opened.register("predicted", part_of(predicted, whole))
        columns = ", ".join(f'"{field}"' for field in delta.dataset(shown).schema.names)
        query = f"select count(*) from (select hash({columns}) as h from shown where h not in (select hash({columns}) from predicted))"  # noqa: S608 - names of columns
        return int(opened.sql(query).fetchall()[0][0])


def sha256s(lake: Lake, root: str) -> dict[str, str]:
    """Of each recorded file below a folder: path below it → sha256."""
    return {path.removeprefix(f"{root}/"): sha256 for path, _, sha256 in _recorded(lake) if path.startswith(f"{root}/")}


def listed_files(table: "DeltaTable") -> Iterator[tuple[str, int]]:
    """(path below its root, bytes) of each file of a table."""
    actions = pa.table(table.get_add_actions(flatten=False))
    yield from zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)


def part_of(table: "DeltaTable", names: set[str]) -> Any:
    """Some files of a table as a pyarrow dataset."""
    whole = delta.dataset(table)
    return datasets.FileSystemDataset(list(fragments(table, names)), whole.schema, whole.format, whole.filesystem)


def fragments(table: "DeltaTable", names: set[str]) -> Iterator[Any]:
    """Some files of a table, as pyarrow reads them."""
    for fragment in delta.dataset(table).get_fragments():
        if fragment.path.lstrip("/") in names:
            yield fragment
