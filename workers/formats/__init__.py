"""Readers of source formats, found by what a file begins with, never by its extension.

A reader is one module of this folder, or any object that another package names in the entry point group
`diastole.readers`, with the members of `Reader`. A later format (DICOM, VCF, …) is one more file here and one more
name in BUILT_IN. Readers run in the decoding child only: what they import and allocate never reaches the parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from diastole.lake.errors import ItemError, SpecError

from . import source

BUILT_IN = (
    "nifti", "dicom", "nrrd", "metaimage", "edf", "brainvision", "eeglab", "fif", "fasta", "genbank", "structure", "variants",
    "stack", "image", "tiff", "zip",
)  # fmt: skip
GROUP = "diastole.readers"
HEAD_BYTES = 4096
"""How much of a file, after gunzip, a reader is shown to recognise it."""


@dataclass(frozen=True)
class Limits:
    """What a source may cost."""

    item_bytes: int = 4 * 2**30
    """Decoded bytes of one source."""


@dataclass(frozen=True)
class ReadOptions:
    """What a reader is told beside the path."""

    limits: Limits = Limits()
    alphabet: str | None = None
    """dna, protein, or None: found out."""
    allow_burned_in: bool = False
    """Whether pictures may be read that have, or may have, a patient's name in their pixels."""
    parts: tuple[Path, ...] = ()
    """All files of the source, sorted, `path` among them; empty where it is that one file."""


@dataclass(frozen=True)
class Part:
    """What a file says of the source that it is a part of, told from its header alone.

    Texts of it are for the parent, which makes keyed hashes of them: none gets into the lake, a log or an error as it is.
    """

    key: str | None = None
    """Natural key of the source: files with the same key are read together. None: the file is a source by itself."""
    subject: str | None = None
    """Whom the source belongs to, as the file names it."""
    session: str | None = None
    """The visit or study, as the file names it."""
    beside: tuple[str, ...] = ()
    """Names of files in the same folder that are parts of this source and say nothing of themselves."""


class Reader(Protocol):
    """What a format module has."""

    name: str

    def sniff(self, head: bytes) -> bool:
        """Whether a file that begins so, after gunzip, is of this format."""

    # A reader of sources with several files has `part_of(path: Path) -> Part` too. Raises ItemError.

    def preflight(self, path: Path, limits: Limits) -> None:
        """Check the header alone, before anything is allocated. Raises ItemError."""

    def read(self, path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
        """Write canonical numbers into `folder` and describe them, one entry for each item. Raises ItemError.

        An entry is JSON: `kind` (volume, recording, sequences, images, contours, slide, variants), `file` (its name in
        `folder`), `suffix` (what tells
        it from the file's other items), `meta` (as lake.arrays wants it), `attributes`, `modality` or null. No text
        of the header that could name a subject may be in it. `sequences` also has `records`, a file with one JSON
        line [record id, length, letters that occur, attributes] for each, in the order of their letters in `file`.
        What the parent makes keyed hashes of, or shifts, may be there too: `key` (natural key, instead of the path),
        `subject`, `session`, `acquired_at` (ISO 8601), `derived_from` (natural key of an item of the same dataset); and
        `laterality` (L, R, B), which is kept. An archive says of an item what in it it is from, as `within`.
        `variants` has, instead of `file`, `arrays`: by the names of VCF Zarr {`file`, `dimensions`, and of texts `text`}, and
        `samples`, a file with the name of one sample as a JSON string on each line.
        `images` has (N, C, H, W) in `file`, and `numbered`: whether image n is an item of its own name, `#n`; its `meta` is
        `channels` (grey, RGB, … or null) and `spacing` (x, y in mm, or null).
        """


@cache
def readers() -> Mapping[str, Reader]:
    """All readers by name; those of this folder come first and cannot be replaced."""
    found = {name: cast(Reader, import_module(f"{__name__}.{name}")) for name in BUILT_IN}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        if point.name not in found:
            found[point.name] = cast(Reader, point.load())
    return found


def names() -> list[str]:
    """Names that `format` may have, found without importing a reader."""
    return list(dict.fromkeys([*BUILT_IN, *sorted(p.name for p in entry_points(group=GROUP))]))


def check_name(name: str) -> str:
    """The name of a reader. Raises SpecError for others."""
    if name not in names():
        raise SpecError(f"there is no reader for format {name!r}; use one of: {', '.join(names())}")
    return name


def part_of(path: Path, name: str | None, *, head_only: bool = False) -> tuple[Reader, Part | None]:
    """The reader of a file, and what the file is a part of; None where only its head is here, which does not tell.

    Raises ItemError.
    """
    reader = choose(path, name)
    tell = getattr(reader, "part_of", None)
    return reader, Part() if tell is None else None if head_only else tell(path)


def choose(path: Path, name: str | None) -> Reader:
    """The reader that was asked for, or that recognises the file. Raises ItemError."""
    if name is not None:
        return readers()[name]
    head = source.head(path, HEAD_BYTES)
    for reader in readers().values():
        if reader.sniff(head):
            return reader
    what = "it is empty" if not head else f"its first bytes are none of: {', '.join(readers())}"
    raise ItemError("unknown_format", f"{what}; name its format if it is one of these, or leave it out")
