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

BUILT_IN = ("nifti", "edf", "fasta", "stack", "image", "tiff")
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


class Reader(Protocol):
    """What a format module has."""

    name: str

    def sniff(self, head: bytes) -> bool:
        """Whether a file that begins so, after gunzip, is of this format."""

    def preflight(self, path: Path, limits: Limits) -> None:
        """Check the header alone, before anything is allocated. Raises ItemError."""

    def read(self, path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
        """Write canonical numbers into `folder` and describe them, one entry for each item. Raises ItemError.

        An entry is JSON: `kind` (volume, recording, sequences, images), `file` (its name in `folder`), `suffix` (what tells
        it from the file's other items), `meta` (as lake.arrays wants it), `attributes`, `modality` or null. No text
        of the header that could name a subject may be in it. `sequences` also has `records`, a file with one JSON
        line [record id, length, letters that occur, attributes] for each, in the order of their letters in `file`.
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
