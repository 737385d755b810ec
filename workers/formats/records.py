"""Sequences that a reader writes: all letters in one file, and one line of JSON for each record in another."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TextIO

from diastole.lake.errors import ItemError

_SPACE = b" \t\r\n\v\f"
_UPPER = bytes(range(256)).upper()
_U_TO_T = bytes(range(256)).replace(b"U", b"T").replace(b"u", b"t")
_LETTERS = {
    "dna": frozenset(b"ACGTRYSWKMBDHVN"),  # IUPAC, U turned to T
    "protein": frozenset(string.ascii_uppercase.encode()),
}


@dataclass
class Records:
    """Writes records as their pieces come. Raises ItemError with the number of the record that cannot be."""

    alphabet: str
    letters: BinaryIO
    lines: TextIO
    number: int = 0
    length: int = 0
    """Letters of the current record so far."""
    _id: str = ""
    _u: int = 0
    _stops: int = 0
    _stopped: bool = False
    _seen: bytearray = field(default_factory=bytearray)

    def begin(self, header: bytes) -> None:
        """Start a record."""
        self.number += 1
        words = header.split(maxsplit=1)
        if not words:
            raise self.bad("has no id")
        try:
            self._id = words[0].decode("utf-8")
        except UnicodeDecodeError:
            self._id = words[0].decode("latin-1")
        self.length, self._stopped, self._seen = 0, False, bytearray()
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
            raise self.bad("has letters after '*'")
        if dna:
            self._u += block.count(b"U") + block.count(b"u")
        new = set(clean.translate(None, bytes(self._seen)))
        self._check(new)
        self._seen.extend(sorted(new))
        self.letters.write(clean)
        self.length += len(clean)

    def end(self, attributes: Mapping[str, Any] | None = None) -> None:
        """Finish the last record; `attributes` are what else is kept of it."""
        if not self.number:
            raise ItemError("unreadable", "it holds no record")
        if not self.length:
            raise self.bad("is empty")
        counts = {"u_as_t": self._u, "stops_dropped": self._stops}
        said = {**(attributes or {}), **{key: count for key, count in counts.items() if count}}
        self.lines.write(
            json.dumps([self._id, self.length, "".join(sorted(set(self._seen.decode("ascii").upper()))), said]) + "\n"
        )

    def _check(self, new: set[int]) -> None:
        strange = set(bytes(new).upper()) - _LETTERS[self.alphabet]
        if strange & set(b"-."):
            raise ItemError("unsupported", f"record {self.number} has gaps ('-' or '.'): ingest unaligned sequences")
        if strange and all(chr(c) in string.ascii_uppercase for c in strange):
            raise self.bad("has letters that no nucleotide has; say alphabet protein if it is one")
        if strange:
            raise self.bad("has characters that are not letters")

    def bad(self, what: str) -> ItemError:
        """An error of the current record."""
        return ItemError("unreadable", f"record {self.number} {what}")
