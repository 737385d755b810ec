"""Which files are ingested, what the user said of each, and what their BIDS names say."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from diastole.lake.errors import SpecError
from diastole.lake.ids import digest

from .formats import check_name

VERSION = 1
"""Raised when the same source would give another item, so that the next ingest reads all sources again."""
COLUMNS = (
    "path", "key", "name", "subject", "session", "modality", "site", "laterality", "acquired_at", "licence",
    "permitted_use", "derived_from",
)  # fmt: skip
"""What a manifest may have; only `path` must be there."""
_SIDECARS = (".json", ".tsv", ".bval", ".bvec")
"""BIDS puts these beside images and recordings. In a folder they are no sources; named one by one, they are tried."""
_BIDS = re.compile(
    r"sub-(?P<sub>[A-Za-z0-9]+)(?:_ses-(?P<ses>[A-Za-z0-9]+))?(?:_[A-Za-z]+-[A-Za-z0-9+]+)*(?:_(?P<suffix>[A-Za-z0-9]+))?"
)
_SUFFIXES = {
    **dict.fromkeys(("T1w", "T2w", "FLAIR", "bold", "dwi"), "MR"),
    "eeg": "EEG",
    "ct": "CT",
    "pet": "PT",
}


@dataclass(frozen=True)
class IngestOptions:
    """What a user says of all sources of one ingest."""

    format: str | None = None
    """Name of a reader; None: found by content."""
    modality: str | None = None
    alphabet: str | None = None
    """dna or protein; None: found out."""
    assembly: str | None = None
    public: bool = False
    """Whether names of the source may be kept as `name`."""
    manifest: Path | None = None
    """CSV with `path` and any of COLUMNS. `acquired_at` is stored as it is given: shift it before."""
    licence: str | None = None
    permitted_use: str | None = None
    workers: int = 2
    """Files decoded at the same time."""
    max_item_bytes: int = 4 * 2**30
    """Decoded bytes of one source."""
    deadline_s: float = 300.0
    """Seconds that decoding one source may take."""
    retry: bool = False
    """Whether sources in quarantine are tried again though nothing changed."""
    verify: bool = False
    """Whether all sources are read again, and what is stored of them is held to them and written anew where damaged."""

    def __post_init__(self) -> None:
        if self.format is not None:
            check_name(self.format)
        if self.alphabet not in (None, "dna", "protein"):
            raise SpecError(f"alphabet {self.alphabet!r} is none of: dna, protein")
        for name, value in (
            ("workers", self.workers),
            ("max_item_bytes", self.max_item_bytes),
            ("deadline_s", self.deadline_s),
        ):
            if not value > 0:
                raise SpecError(f"{name} is {value}; it must be more than 0")


@dataclass(frozen=True)
class Source:
    """One file to be ingested."""

    path: Path
    """Absolute."""
    relative: str
    """Path below the ingested root, without extension."""
    refused: str | None = None
    """Why the file may not be opened."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Its row of the manifest, without `path` and empty cells."""

    @property
    def natural_key(self) -> str:
        """The manifest's key, else the BIDS entities, else the relative path."""
        return self.said.get("key") or (self._stem if self._bids else self.relative)

    @property
    def subject(self) -> str | None:
        """As the manifest or BIDS name it, without `sub-`, so that both mean the same subject."""
        return self._entity("subject", "sub")

    @property
    def session(self) -> str | None:
        """As the manifest or BIDS name it, without `ses-`."""
        return self._entity("session", "ses")

    def modality(self, options: IngestOptions) -> str | None:
        """By the manifest, else the option, else the BIDS suffix."""
        by_name = _SUFFIXES.get(self._bids["suffix"] or "") if self._bids else None
        return self.said.get("modality") or options.modality or by_name

    def options_digest(self, options: IngestOptions, *, with_limits: bool) -> str:
        """Digest of all that was said and changes the item; with the limits for what failed, as they may be why."""
        said = [options.format, options.modality, options.alphabet, options.assembly, options.public]
        limits = [options.max_item_bytes, options.deadline_s] if with_limits else []
        return digest([VERSION, said, options.licence, options.permitted_use, dict(self.said), limits])

    @property
    def _stem(self) -> str:
        return self.relative.rpartition("/")[2]

    @property
    def _bids(self) -> re.Match[str] | None:
        return _BIDS.fullmatch(self._stem)

    def _entity(self, column: str, entity: str) -> str | None:
        said = self.said.get(column) or (self._bids[entity] if self._bids else None)
        return said.removeprefix(f"{entity}-") if said else None


def absolute(path: Path | str) -> Path:
    """The path that a source's key is made of: absolute, without '..', links as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - absolute() keeps '..'


def find(paths: Sequence[Path | str], options: IngestOptions) -> tuple[list[Source], list[Path]]:
    """All files at and below `paths`, sorted within each, each once, with their rows of the manifest; and the folders.

    What may not be opened or listed is a source that says why. Raises SpecError where a path or all files are missing,
    or the manifest cannot be meant. Messages hold no paths.
    """
    roots = [absolute(path) for path in paths]
    manifest = None if options.manifest is None else absolute(options.manifest)
    found: dict[Path, Source] = {}
    folders: list[Path] = []
    for number, root in enumerate(roots, 1):
        which = f"path {number} of {len(roots)}"
        try:
            there, plain = root.exists(), root.is_file()
        except OSError as error:
            raise SpecError(f"{which} cannot be looked at ({error.strerror}); check the permissions there") from None
        if not there:
            raise SpecError(f"{which} does not exist; check how it is written")
        for source in [Source(root, _plain(root.name))] if plain else _walk(root, folders):
            if source.path != manifest:
                found.setdefault(source.path, source)
    if not found:
        raise SpecError("there is no file to ingest at these paths; hidden files are left out")
    said = {} if manifest is None else _manifest(manifest, roots, set(found))
    sources = [Source(s.path, s.relative, s.refused, said.get(s.path, {})) for s in found.values()]
    return sources, [folder for folder in folders if folder not in found]


def _walk(root: Path, listed: list[Path]) -> Iterator[Source]:
    """The files below a folder, and the folders that cannot be listed; those that can are added to `listed`."""
    real_root = root.resolve()
    closed: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=closed.append):  # does not follow links to folders
        listed.append(Path(folder))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and not name.endswith(_SIDECARS):
                yield Source(path, _plain(path.relative_to(root).as_posix()), _refusal(path, real_root))
        for name in folders:
            if (Path(folder) / name).is_symlink() and (why := _refusal(Path(folder) / name, real_root)):
                yield Source(Path(folder) / name, _plain((Path(folder) / name).relative_to(root).as_posix()), why)
    for error in closed:
        path = Path(error.filename)
        why = f"it is a folder that cannot be listed ({error.strerror}); check its permissions"
        yield Source(path, _plain(path.relative_to(root).as_posix()), why)


def _refusal(path: Path, real_root: Path) -> str | None:
    try:
        if path.is_symlink():
            if not path.resolve().is_relative_to(real_root):
                return "it is a link that leaves the ingested folder; name what it leads to, or copy it here"
            if not path.exists():
                return "it is a link to something that is not there; fetch its content"
        return None if path.is_file() or path.is_dir() else "it is not a plain file"
    except OSError as error:
        return f"it cannot be looked at ({error.strerror}); check the permissions of its folder"
    except RuntimeError:  # before Python 3.13, of `resolve`
        return "it is a link that leads to itself; remove it"


def _plain(relative: str) -> str:
    """Without `.gz` and one extension of letters, so that `scan.v2` keeps its version."""
    return re.sub(r"(?<=[^/])\.[A-Za-z]{2,5}$", "", relative.removesuffix(".gz"))


def _manifest(manifest: Path, roots: Sequence[Path], found: set[Path]) -> dict[Path, dict[str, str]]:
    """Rows by file. A path is absolute, or relative to the manifest's folder or an ingested root."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(
            f"the manifest cannot be read ({type(error).__name__}); it must be a CSV file in UTF-8"
        ) from error
    if "path" not in columns:
        raise SpecError("the manifest needs a first line with the names of its columns; path must be one of them")
    if unknown := [c for c in columns if c not in COLUMNS]:
        named = [c if re.fullmatch("[A-Za-z_]{1,20}", c) else f"column {columns.index(c) + 1}" for c in unknown[:9]]
        raise SpecError(f"the manifest has unknown columns: {', '.join(named)}; known are: {', '.join(COLUMNS)}")
    said: dict[Path, dict[str, str]] = {}
    for line, row in enumerate(rows, 2):
        if None in row:
            raise SpecError(
                f"line {line} of the manifest has more cells than there are columns; quote what holds a comma"
            )
        bases = [manifest.parent, *roots]
        places = [absolute(base / (row["path"] or "")) for base in bases]
        path = next((place for place in places if place in found), None)
        if path is None:
            raise SpecError(
                f"the path in line {line} of the manifest is none of the ingested files; correct or remove it"
            )
        if path in said:
            raise SpecError(f"line {line} of the manifest names a file that an earlier line names; remove one")
        said[path] = {c: v.strip() for c, v in row.items() if c != "path" and v and v.strip()}
        _check_time(said[path].get("acquired_at"), line)
    return said


def _check_time(text: str | None, line: int) -> None:
    try:
        acquired_at(text)
    except (ValueError, OverflowError):
        raise SpecError(f"acquired_at in line {line} of the manifest is not like 2020-01-31T12:00:00") from None


def acquired_at(text: str | None) -> datetime | None:
    """The time that a manifest gives; without a zone it is UTC."""
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
