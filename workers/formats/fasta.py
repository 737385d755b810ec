"""FASTA of nucleotides or amino acids, plain or gzip, read as a stream: neither a line nor a record must fit memory."""

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source

name = "fasta"

SAMPLE = 2**20
"""Letters looked at to find out the alphabet."""
_HEADER_BYTES = 2**16
_SPACE = b" \t\r\n\v\f"
_UPPER = bytes(range(256)).upper()
_U_TO_T = bytes(range(256)).replace(b"U", b"T").replace(b"u", b"t")
_LETTERS = {
    "dna": frozenset(b"ACGTRYSWKMBDHVN"),  # IUPAC, U turned to T
    "protein": frozenset(string.ascii_uppercase.encode()),
}


def sniff(head: bytes) -> bool:
    """Whether the first thing that is not white is '>'."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE).startswith(b">")


def preflight(path: Path, limits: Limits) -> None:
    """Hold a plain file to the limit; a gzip file is held to it as it is read."""
    if not source.is_gzip(path) and path.stat().st_size > limits.item_bytes:
        raise ItemError("too_large", f"it has more than {limits.item_bytes} bytes; raise max_item_bytes if it may")


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Write all letters without white space, one after the other, and one line for each record.

    Nucleotides keep their case, since lower case says that a stretch is masked; amino acids become upper case.
    """
    alphabet = options.alphabet or _guess(path, options.limits)
    with (
        source.opened(path, options.limits.item_bytes) as stream,
        (folder / "letters.bin").open("xb") as letters,
        (folder / "records.jsonl").open("x", encoding="utf-8") as lines,
    ):
        records = _Records(alphabet, letters, lines)
        for header, block in _events(stream):
            if header is not None:
                records.begin(header)
            else:
                records.add(block)
        records.end()
    attributes = {"format": "fasta"}
    entry = {"kind": "sequences", "file": "letters.bin", "records": "records.jsonl", "count": records.number}
    return [{**entry, "suffix": "", "meta": {"alphabet": alphabet}, "attributes": attributes, "modality": alphabet}]


def _events(stream: source.Stream) -> Iterator[tuple[bytes | None, bytes]]:
    """(header, b"") for each header line, (None, letters) for each piece between them."""
    line_start, in_header, header = True, False, b""
    first = True
    while piece := stream.read():
        if first:
            piece, first = piece.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE), False
        at = 0
        while at < len(piece):
            if in_header:
                stop = piece.find(b"\n", at)
                header += piece[at:] if stop < 0 else piece[at:stop]
                if len(header) > _HEADER_BYTES:
                    raise ItemError("unreadable", f"a header line is longer than {_HEADER_BYTES} bytes")
                at = len(piece) if stop < 0 else stop + 1
                if stop >= 0:
                    yield header, b""
                    in_header, line_start = False, True
            elif line_start and piece[at] == ord(">"):
                in_header, header, at = True, b"", at + 1
            else:
                stop = piece.find(b"\n>", at)
                stop = len(piece) if stop < 0 else stop + 1
                yield None, piece[at:stop]
                line_start, at = piece[stop - 1] == ord("\n"), stop
    if in_header:
        yield header, b""


def _guess(path: Path, limits: Limits) -> str:
    """Dna where at least 90 % of the first letters are ACGTUN, else protein."""
    bases = letters = 0
    with source.opened(path, limits.item_bytes) as stream:
        for _, block in _events(stream):
            upper = block.translate(_UPPER, _SPACE)
            letters += len(upper)
            bases += sum(upper.count(base) for base in b"ACGTUN")
            if letters >= SAMPLE:
                break
    return "dna" if bases >= 0.9 * letters else "protein"


@dataclass
class _Records:
    """Writes records as their pieces come. Raises ItemError with the number of the record that cannot be."""

    alphabet: str
    letters: BinaryIO
    lines: TextIO
    number: int = 0
    _id: str = ""
    _u: int = 0
    _stops: int = 0
    _length: int = 0
    _stopped: bool = False
    _seen: bytearray = field(default_factory=bytearray)

    def begin(self, header: bytes) -> None:
        """Start a record."""
        if self.number:
            self.end()
        self.number += 1
        words = header.split(maxsplit=1)
        if not words:
            raise self._bad("has no id after its '>'")
        try:
            self._id = words[0].decode("utf-8")
        except UnicodeDecodeError:
            self._id = words[0].decode("latin-1")
        self._length, self._stopped, self._seen = 0, False, bytearray()
        self._u = self._stops = 0

    def add(self, block: bytes) -> None:
        """Letters of the current record."""
        if not self.number:
            raise ItemError("unreadable", "it does not begin with '>'")
        dna = self.alphabet == "dna"
        clean = block.translate(_U_TO_T if dna else _UPPER, _SPACE)
        if not clean:
            return
        if not dna and b"*" in clean:
            kept = clean.rstrip(b"*")
            self._stops += len(clean) - len(kept)
            stopped, clean = self._stopped, kept
            self._stopped = True
        else:
            stopped = self._stopped
        if stopped and clean:
            raise self._bad("has letters after '*'")
        if dna:
            self._u += block.count(b"U") + block.count(b"u")
        new = set(clean.translate(None, bytes(self._seen)))
        self._check(new)
        self._seen.extend(sorted(new))
        self.letters.write(clean)
        self._length += len(clean)

    def end(self) -> None:
        """Finish the last record."""
        if not self.number:
            raise ItemError("unreadable", "it holds no record")
        if not self._length:
            raise self._bad("is empty")
        counts = {"u_as_t": self._u, "stops_dropped": self._stops}
        said = {key: count for key, count in counts.items() if count}
        self.lines.write(
            json.dumps([self._id, self._length, "".join(sorted(set(self._seen.decode("ascii").upper()))), said]) + "\n"
        )

    def _check(self, new: set[int]) -> None:
        strange = set(bytes(new).upper()) - _LETTERS[self.alphabet]
        if strange & set(b"-."):
            raise ItemError("unsupported", f"record {self.number} has gaps ('-' or '.'): ingest unaligned sequences")
        if strange and all(chr(c) in string.ascii_uppercase for c in strange):
            raise self._bad("has letters that no nucleotide has; say alphabet protein if it is one")
        if strange:
            raise self._bad("has characters that are not letters")

    def _bad(self, what: str) -> ItemError:
        return ItemError("unreadable", f"record {self.number} {what}")
