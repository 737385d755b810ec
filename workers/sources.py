"""One source: what the user said of it, and what its BIDS name says."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diastole.lake.errors import SpecError
from diastole.lake.ids import digest

from .formats import check_name

VERSION = 3
"""Raised when the same source would give another item, so that the next ingest reads all sources again."""
COLUMNS = (
    "path", "key", "name", "subject", "session", "modality", "site", "laterality", "acquired_at", "licence",
    "permitted_use", "derived_from",
)  # fmt: skip
"""What a manifest may have; only `path` must be there."""
NOTHING: Mapping[str, str] = MappingProxyType({})
DATES = ("shift", "keep", "drop")
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
    dates: str = "shift"
    """What becomes of times that a source gives: shift (by some days, the same for all of a subject), keep, or drop."""
    allow_burned_in: bool = False
    """Whether pictures may be taken that have, or may have, a patient's name written into their pixels."""
    each_file: bool = False
    """Whether a file that holds what another does is an item of its own: blank images, empty masks."""
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
        if self.dates not in DATES:
            raise SpecError(f"dates {self.dates!r} is none of: {', '.join(DATES)}")
        for name, value in (
            ("workers", self.workers),
            ("max_item_bytes", self.max_item_bytes),
            ("deadline_s", self.deadline_s),
        ):
            if not value > 0:
                raise SpecError(f"{name} is {value}; it must be more than 0")


@dataclass(frozen=True, slots=True)
class Source:
    """One file to be ingested. There may be millions of them."""

    path: str
    """Absolute, or a URL."""
    relative: str
    """Path below the ingested root, without extension."""
    root: str
    """The path that was named, at or below which it lies."""
    size: int
    """Bytes; -1 where it may not be opened."""
    modified: int
    """In ns since 1970, as its storage says."""
    refused: str | None = None
    """Why the file may not be opened."""
    said: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """Its row of the manifest, without `path` and empty cells."""
    sidecar: bool = False
    """Whether it is a source only as a part of another."""

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

    @property
    def _stem(self) -> str:
        return self.relative.rpartition("/")[2]

    @property
    def _bids(self) -> re.Match[str] | None:
        return _BIDS.fullmatch(self._stem)

    def _entity(self, column: str, entity: str) -> str | None:
        said = self.said.get(column) or (self._bids[entity] if self._bids else None)
        return said.removeprefix(f"{entity}-") if said else None


class OptionsDigests:
    """Digests of all that was said of a source, and whose it is, and that changes its item."""

    def __init__(self, options: IngestOptions) -> None:
        self._options = options
        self._known: dict[tuple[Any, ...], str] = {}

    def of(self, source: Source, *, with_limits: bool) -> str:
        """With the limits for what failed, as they may be why."""
        said = tuple(sorted(source.said.items())) if source.said else ()
        whose = (source.subject, source.session) if "sub-" in source.relative else ()
        key = (said, whose, with_limits)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._digest(source.said, whose, with_limits)
        return found

    def _digest(self, said: Mapping[str, str], whose: tuple[Any, ...], with_limits: bool) -> str:
        options = self._options
        about = [options.format, options.modality, options.alphabet, options.assembly, options.public, options.dates]
        about.append(options.each_file)
        limits = [options.max_item_bytes, options.deadline_s, options.allow_burned_in] if with_limits else []
        return digest([VERSION, about, options.licence, options.permitted_use, dict(said), list(whose), limits])


def read_manifest(manifest: str, roots: Sequence[str]) -> dict[str, tuple[int, Mapping[str, str]]]:
    """File → the line that names it, and what it says of it.

    A path is absolute, or relative to the manifest's folder or an ingested root. Raises SpecError for what cannot be meant.
    """
    try:
        with Path(manifest).open(newline="", encoding="utf-8-sig") as file:
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
    found: dict[str, tuple[int, Mapping[str, str]]] = {}
    bases = [str(Path(manifest).parent), *roots]
    for line, row in enumerate(rows, 2):
        if None in row:
            raise SpecError(
                f"line {line} of the manifest has more cells than there are columns; quote what holds a comma"
            )
        said = {c: v.strip() for c, v in row.items() if c != "path" and v and v.strip()}
        _check_time(said.get("acquired_at"), line)
        places = [_place(base, row["path"] or "") for base in bases]
        path = next((place for place in places if "://" in place or os.path.isfile(place)), "")  # noqa: PTH113
        if not path:
            raise not_in(line)
        if path in found:
            raise SpecError(f"line {line} of the manifest names a file that an earlier line names; remove one")
        found[path] = line, said
    return found


def not_in(line: int) -> SpecError:
    """A line of the manifest names what is not ingested."""
    return SpecError(f"the path in line {line} of the manifest is none of the ingested files; correct or remove it")


def _place(base: str, path: str) -> str:
    if "://" in path or "://" in base:
        return path if "://" in path else f"{base}/{path}"
    return os.path.abspath(Path(base, path).expanduser())  # noqa: PTH100 - absolute() keeps '..'


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
