"""Path, size and SHA-256 of every file that diastole wrote, so that a later change of one is found."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from . import delta
from .errors import ModelError
from .layout import Lake

PATH = "integrity"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("written_by", pa.string()),  # ingest, or a run's id
    ]
)


@dataclass(frozen=True)
class FileRecord:
    """One file as it was when it was written."""

    path: str
    bytes: int
    sha256: str


def record(lake: Lake, files: Iterable[FileRecord], written_by: str, *, once: bool = False) -> None:
    """Add files to the integrity table; `once` per writer, if said. A path is written once, but see `renew`."""
    rows = [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256, "written_by": written_by} for f in files]
    delta.append(lake, PATH, pa.Table.from_pylist(rows, SCHEMA), once=written_by if once else None)


def renew(lake: Lake, files: Iterable[FileRecord], written_by: str) -> None:
    """Put files in place of what is recorded of their paths: damaged ones that were written anew, with other bytes."""
    rows = [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256, "written_by": written_by} for f in files]
    delta.upsert(lake, PATH, pa.Table.from_pylist(rows, SCHEMA), "path")


def forget(lake: Lake, paths: Iterable[str]) -> None:
    """Take files out of the integrity table that are about to be removed."""
    delta.remove(lake, PATH, "path", paths)


class Recorded:
    """What is recorded of each file, as it was when this was made."""

    def __init__(self, lake: Lake) -> None:
        self._files = {row["path"]: row for row in read(lake).to_pylist()}
        self._paths = sorted(self._files)

    def get(self, path: str) -> FileRecord | None:
        """One file; None where it is not recorded."""
        row = self._files.get(path)
        return None if row is None else FileRecord(row["path"], row["bytes"], row["sha256"])

    def below(self, folder: str) -> list[FileRecord]:
        """The files below a folder, sorted by path."""
        start, stop = bisect_left(self._paths, f"{folder}/"), bisect_left(self._paths, f"{folder}0")  # '0' follows '/'
        return [file for path in self._paths[start:stop] if (file := self.get(path)) is not None]


def how_to_heal(path: str) -> str:
    """What a user can do for a damaged file of a lake."""
    room, name = path.split("/")[:2]
    if room == "datasets":
        return f"heal it with: diastole ingest {name} SOURCES --verify"
    if room == "statistics":
        return f"make it anew with: diastole stats {name}"
    return "restore it from a backup"


def read(lake: Lake) -> pa.Table:
    """All recorded files."""
    return delta.read(lake, PATH, schema=SCHEMA)


def hashed(lake: Lake, prefix: str) -> list[FileRecord]:
    """The files below a folder, read back from storage and hashed."""
    return [FileRecord(path, size, lake.store.sha256(path)) for path, size in lake.store.list(prefix)]


def check(lake: Lake, *, deep: bool) -> list[tuple[str, str]]:
    """(path, what is wrong) of each file of the lake that is missing, of another size or, when deep, of other bytes."""
    from .scrub import scrub

    return [(finding.path, finding.problem) for finding in scrub(lake, deep=deep).findings]


def count(lake: Lake) -> int:
    """How many files are recorded, and belong to models."""
    return read(lake).num_rows + len(models(lake, deep=False))


CHANGED = "bytes changed since they were written"


def problem(lake: Lake, path: str, expected: int | None, sha256: str | None) -> str | None:
    """What is wrong with a file that should be of so many bytes, and of this sha256; None is not looked at."""
    size = lake.store.size(path)
    if size is None:
        return "missing"
    if expected is not None and size != expected:
        return f"{size} bytes instead of {expected}"
    if sha256 is not None and lake.store.sha256(path) != sha256:
        return CHANGED
    return None


def models(lake: Lake, *, deep: bool) -> list[tuple[str, str | None]]:
    """Each file of a model, which its manifest pins, and what is wrong with it."""
    from .models import parse_manifest  # pydantic is slow to import, and only check needs it

    found: list[tuple[str, str | None]] = []
    for name in lake.store.folders("models"):
        for version in lake.store.folders(f"models/{name}"):
            folder = lake.model(name, version)
            if lake.store.size(f"{folder}/model.yaml") is None:
                continue  # being added, or given up before it was whole
            try:
                manifest = parse_manifest(lake.store.get(f"{folder}/model.yaml"), f"{name}@{version}")
            except ModelError as error:
                found.append((f"{folder}/model.yaml", str(error)))
                continue
            found.append((f"{folder}/model.yaml", None))
            for file in manifest.files.values():
                path = f"{folder}/{file.path}"
                found.append((path, problem(lake, path, None, file.sha256 if deep else None)))
    return found
