"""GenBank and GenPept flat files, plain or gzip, read as a stream: no record must fit the memory.

Kept of a record: its sequence, accession and version, the type and the topology of the molecule, the taxon's number, and
where its genes are. Definition, source, references, comments and the words of all features are left out.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source
from .feature_places import Place, places
from .records import Records

name = "genbank"

FEATURES = frozenset(
    {"CDS", "gene", "mRNA", "rRNA", "tRNA", "ncRNA", "tmRNA", "exon", "intron", "mat_peptide", "sig_peptide"}
)
FEATURES_KEPT = 1000
"""Most places of features that a record keeps; of more only the numbers are kept."""
LINE_BYTES, LOCATION_BYTES = 2**16, 2**18
_UPPER = bytes(range(256)).upper()
_NOT_LETTERS = b"0123456789 \t\r\n"
_LOCUS = re.compile(rb"LOCUS\s+(\S+)?\s+(\d{1,12}) (bp|aa)\b(.*)")
_MOLECULE = re.compile(r"(?:[sdm]s-)?((?:genomic|m|r|t|u|sn|sno|c|tm|nc|pre-)?(?:DNA|RNA))")
_TAXON = re.compile(rb'/db_xref="taxon:(\d{1,9})"')


def sniff(head: bytes) -> bool:
    """Whether it begins with a LOCUS line, or as the files of a GenBank release do."""
    first = head.lstrip().partition(b"\n")[0]
    return _LOCUS.match(first) is not None or b"Genetic Sequence Data Bank" in first


def preflight(path: Path, limits: Limits) -> None:
    """Hold a plain file to the limit; a gzip file is held to it as it is read. A bgzip file must have its end."""
    if not source.is_gzip(path) and path.stat().st_size > limits.item_bytes:
        raise ItemError("too_large", f"it has more than {limits.item_bytes} bytes; raise max_item_bytes if it may")
    source.check_bgzip_end(path)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Write all sequences, in upper case, one after the other, and one line for each record."""
    with (
        source.opened(path, options.limits.item_bytes) as stream,
        (folder / "letters.bin").open("xb") as letters,
        (folder / "records.jsonl").open("x", encoding="utf-8") as lines,
    ):
        text, records = _Text(stream), None
        for line in text.lines():
            found = _LOCUS.match(line)
            if found is None:
                if line.strip() and records is not None:
                    raise ItemError("unreadable", "there is text between its records that is not a record")
                continue
            alphabet = "protein" if found[3] == b"aa" else "dna"
            records = records or Records(alphabet, letters, lines)
            _record(text, records, found, alphabet)
        if records is None:
            raise ItemError("unreadable", "it holds no record")
    entry = {"kind": "sequences", "file": "letters.bin", "records": "records.jsonl", "count": records.number}
    meta, attributes = {"alphabet": records.alphabet}, {"format": "genbank"}
    return [{**entry, "suffix": "", "meta": meta, "attributes": attributes, "modality": records.alphabet}]


class _Text:
    """A stream in lines, and in pieces where a sequence is."""

    def __init__(self, stream: source.Stream) -> None:
        self._stream, self._rest = stream, b""

    def lines(self) -> Iterator[bytes]:
        """Lines, each without its end."""
        while True:
            at = self._rest.find(b"\n")
            while at < 0:
                if len(self._rest) > LINE_BYTES:
                    raise ItemError("unreadable", f"a line is longer than {LINE_BYTES} bytes")
                piece = self._stream.read()
                if not piece:
                    if self._rest:
                        line, self._rest = self._rest, b""
                        yield line
                    return
                self._rest += piece
                at = self._rest.find(b"\n")
            if at > LINE_BYTES:
                raise ItemError("unreadable", f"a line is longer than {LINE_BYTES} bytes")
            line, self._rest = self._rest[:at], self._rest[at + 1 :]
            yield line.rstrip(b"\r")

    def sequence(self) -> Iterator[bytes]:
        """Pieces up to the line that ends the record. Raises ItemError where there is none."""
        line_start = True
        while True:
            at = 0 if line_start and self._rest.startswith(b"//") else self._rest.find(b"\n//") + 1
            if at or (line_start and self._rest.startswith(b"//")):
                yield self._rest[:at]
                self._rest = self._rest[at + 2 :]
                return
            kept = self._rest[-2:]
            if self._rest[:-2]:
                yield self._rest[:-2]
                line_start = False
            piece = self._stream.read()
            if not piece:
                raise ItemError("truncated", "its last record has no end ('//'); copy it again")
            self._rest = kept + piece


def _record(text: _Text, records: Records, locus: re.Match[bytes], alphabet: str) -> None:
    """One record, whose LOCUS line was read."""
    head = _Head(locus)
    for line in text.lines():
        if line.startswith(b"ORIGIN"):
            break
        if line.startswith(b"//"):
            raise ItemError("unsupported", f"record {records.number + 1} has no sequence; fetch it with its sequence")
        head.add(line)
    else:
        raise ItemError("truncated", f"record {records.number + 1} ends before its sequence; copy it again")
    records.begin(head.record_id)
    if alphabet != records.alphabet:
        raise records.bad("is of another alphabet than the first; ingest proteins and nucleotides apart")
    for piece in text.sequence():
        records.add(piece.translate(_UPPER, _NOT_LETTERS))
    if records.length != head.length:
        code = "truncated" if records.length < head.length else "header_lies"
        said = f"has {records.length} letters, its LOCUS line says {head.length}"
        raise ItemError(code, f"record {records.number} {said}; copy it again")
    records.end(head.attributes())


class _Head:
    """What is kept of a record before its sequence."""

    def __init__(self, locus: re.Match[bytes]) -> None:
        self.length = int(locus[2])
        self._ids = {b"LOCUS": locus[1] or b""}
        words = locus[4].decode("latin-1").split()
        self._topology = next((word for word in words[:2] if word in ("linear", "circular")), None)
        found = _MOLECULE.fullmatch(words[0]) if words else None
        self._molecule = found[1] if found else None
        self._taxon: int | None = None
        self._counts: Counter[str] = Counter()
        self._features: list[tuple[str, Place]] = []
        self._table = False
        self._key, self._location = "", b""

    @property
    def record_id(self) -> bytes:
        """Accession and version, else the accession, else the name of the locus."""
        return next((self._ids[key] for key in (b"VERSION", b"ACCESSION", b"LOCUS") if self._ids.get(key)), b"")

    def add(self, line: bytes) -> None:
        """A line of it."""
        if line[:1].isalpha():
            self._end_feature()
            self._table = line.startswith(b"FEATURES")
            word, *rest = line.split(maxsplit=2)
            if word in (b"VERSION", b"ACCESSION"):
                self._ids[word] = rest[0] if rest else b""
        elif self._table:
            key, value = line[:21].strip(), line[21:].strip()
            if key:
                self._end_feature()
                self._key, self._location = key.decode("latin-1"), value
            elif value.startswith(b"/"):
                if self._key == "source" and self._taxon is None and (found := _TAXON.match(value)):
                    self._taxon = int(found[1])
                self._end_location()
            elif self._location and len(self._location) < LOCATION_BYTES:
                self._location += value

    def attributes(self) -> dict[str, Any]:
        """What the lake keeps: how many features of each type, and of FEATURES_KEPT at most where they are, those left out
        whose location is of another record or vague: `features` are [type, [[first base from 0, end, strand], …]].
        """
        self._end_feature()
        said: dict[str, Any] = {"molecule": self._molecule, "topology": self._topology, "taxon": self._taxon}
        said["feature_counts"] = dict(sorted(self._counts.items()))
        if sum(self._counts.values()) <= FEATURES_KEPT:
            said["features"] = [[kind, place] for kind, place in self._features]
        return {key: value for key, value in said.items() if value}

    def _end_location(self) -> None:
        if self._location and self._key in FEATURES:
            self._counts[self._key] += 1
            if len(self._features) < FEATURES_KEPT and (place := places(self._location.decode("latin-1"), self.length)):
                self._features.append((self._key, place))
        self._location = b""

    def _end_feature(self) -> None:
        self._end_location()
        self._key = ""
