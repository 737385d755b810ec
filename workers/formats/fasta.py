"""FASTA of nucleotides or amino acids, plain or gzip, read as a stream: neither a line nor a record must fit memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source
from .records import Records

name = "fasta"

SAMPLE = 2**20
"""Letters looked at to find out the alphabet."""
_HEADER_BYTES = 2**16
_SPACE = b" \t\r\n\v\f"
_UPPER = bytes(range(256)).upper()


def sniff(head: bytes) -> bool:
    """Whether the first thing that is not white is '>'."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE).startswith(b">")


def preflight(path: Path, limits: Limits) -> None:
    """Hold a plain file to the limit; a gzip file is held to it as it is read. A bgzip file must have its end."""
    if not source.is_gzip(path) and path.stat().st_size > limits.item_bytes:
        raise ItemError("too_large", f"it has more than {limits.item_bytes} bytes; raise max_item_bytes if it may")
    source.check_bgzip_end(path)


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
        records = Records(alphabet, letters, lines)
        for header, block in _events(stream):
            if header is not None:
                if records.number:
                    records.end()
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
