"""The elements of a DICOM file, walked over before a library sees them: where its pixels lie, and whether all is there.

Lengths are held to the file's end, sequences to a depth and elements to a number, so that what is parsed afterwards neither
asks for more memory than the file has bytes nor recurses without end. Nothing of a value is kept but the transfer syntax.
"""

import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from diastole.lake.errors import ItemError

from .. import source

HEADER_BYTES = 2**28
"""All that a file may have before its pixels."""
DEPTH = 64
"""Sequences within sequences, at most; the standard's own stay below twenty."""
ELEMENTS = 2**22
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
EXPLICIT = "1.2.840.10008.1.2.1"

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_PIECE = 2**20


@dataclass(frozen=True)
class Pixels:
    """Where the value of the pixel data lies."""

    keyword: str
    vr: str | None
    offset: int
    length: int | None
    """Bytes; None where they are in fragments."""
    fragments: int = 0


@dataclass(frozen=True)
class Opened:
    """A file that was walked over; `file` begins with, or holds, its data set."""

    file: IO[bytes]
    syntax: str
    """UID of the transfer syntax."""
    dataset_at: int
    implicit: bool
    little: bool
    pixels: Pixels | None


@contextmanager
def opened(path: Path, limit: int, *, whole: bool = True) -> Iterator[Opened]:
    """Walk over a file and hold it open. Not `whole`: what comes before the pixels is enough, and may itself be cut.

    Raises ItemError: truncated, too_large, header_lies, unreadable.
    """
    if source.is_gzip(path):
        raise ItemError("unsupported", "it is a DICOM file inside of a gzip file; gunzip it")
    with path.open("rb") as plain:
        syntax, at = _meta(plain)
        if syntax != DEFLATED:
            yield _walked(plain, syntax, at, whole=whole)
            return
        with tempfile.TemporaryFile() as inflated:
            _inflate(plain, inflated, limit, whole=whole)
            yield _walked(inflated, DEFLATED, 0, whole=whole)


def begins_as_dataset(head: bytes) -> bool:
    """Whether the bytes may be a data set without a preamble: an element of group 2 or 8 of a length that can be."""
    if len(head) < 12:
        return False
    group, _, vr, short = struct.unpack("<HH2sH", head[:8])
    if group == 2 and vr in (b"UL", b"OB", b"UI"):
        return True
    return group == 8 and (vr in (b"UL", b"CS", b"UI", b"DA", b"TM", b"SH", b"LO") or (vr[1:] == b"\0" and short == 0))


def _meta(file: IO[bytes]) -> tuple[str, int]:
    """Transfer syntax, and where the data set begins."""
    head = file.read(132)
    at = 132 if head[128:132] == b"DICM" else 0
    if at == 0 and not begins_as_dataset(head):
        raise ItemError("unreadable", "it does not begin as a DICOM file does")
    file.seek(at)
    syntax = None
    while (raw := file.read(8))[:2] == b"\2\0" and len(raw) == 8:
        _, element, vr, length = struct.unpack("<HH2sH", raw)
        if vr in _LONG:
            length = int.from_bytes(file.read(4), "little")
        if element == 0x10 and length < 128:
            syntax = file.read(length).rstrip(b"\0 ").decode("ascii", "replace")
        else:
            file.seek(length, 1)
        at = file.tell()
    if syntax is None:
        syntax = _guess(raw)
    return syntax, at


def _guess(raw: bytes) -> str:
    """The transfer syntax of a file that does not say it."""
    explicit = len(raw) == 8 and raw[4:6].isalpha() and raw[4:6].isupper()
    return IMPLICIT if not explicit else BIG_ENDIAN if raw[:1] == b"\0" else EXPLICIT


def _inflate(deflated: IO[bytes], out: IO[bytes], limit: int, *, whole: bool) -> None:
    """Inflate the data set, a piece at a time, up to a limit. Raises ItemError."""
    engine, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
    deflated.seek(_meta(deflated)[1] if deflated.seek(0) == 0 else 0)
    try:
        while not engine.eof and (count <= limit or whole):
            more = engine.unconsumed_tail or deflated.read(_PIECE)
            piece = engine.decompress(more, _PIECE)
            if not piece and not more and not engine.eof:
                raise ItemError("truncated", "its deflated data set ends too early; copy it again")
            count += len(piece)
            if count > limit and whole:
                raise ItemError("too_large", f"it inflates to more than {limit} bytes; raise max_item_bytes if it may")
            out.write(piece)
    except zlib.error as error:
        raise ItemError("checksum", "its deflated data set is damaged; copy it again") from error
    out.seek(0)


def _walked(file: IO[bytes], syntax: str, at: int, *, whole: bool) -> Opened:
    little = syntax != BIG_ENDIAN
    size = file.seek(0, 2)
    file.seek(at)
    walk = _Walk(file, size, little)
    pixels = walk.to_pixels(at, implicit=syntax == IMPLICIT, whole=whole)
    if pixels is not None and pixels.length is None and whole:
        pixels = Pixels(pixels.keyword, pixels.vr, pixels.offset, None, walk.fragments(pixels.offset))
    return Opened(file, syntax, at, walk.implicit, little, pixels)


class _Walk:
    """From element to element; only their heads are read."""

    def __init__(self, file: IO[bytes], size: int, little: bool) -> None:
        self._file, self._size = file, size
        order = "<" if little else ">"
        self._explicit, self._plain = struct.Struct(order + "HH2sH").unpack, struct.Struct(order + "HHL").unpack
        self._number = struct.Struct(order + "L").unpack
        self.implicit = False
        """Whether the data set is so in truth, whatever the transfer syntax says."""

    def to_pixels(self, at: int, *, implicit: bool, whole: bool) -> Pixels | None:
        """The first pixel data outside of sequences, or None at the file's end."""
        self.implicit = implicit = self._look(at, implicit)
        start, count = at, 0
        inside: list[tuple[str, bool, int | None]] = []  # sequence, item or fragments; the implicit of outside; end
        while True:
            while inside and inside[-1][2] is not None and at >= inside[-1][2]:
                implicit = inside.pop()[1]
            head = self._file.read(8)
            if len(head) < 8:
                if inside or head.strip(b"\0"):
                    raise _cut()
                return None
            count += 1
            kind = inside[-1][0] if inside else "item"
            tag, vr, length, at = self._element(head, at, implicit=implicit or kind != "item")
            if tag in _PIXELS and not inside:
                if length != _UNDEFINED and at + length > self._size and whole:
                    raise _cut()
                return Pixels(_PIXELS[tag], vr, at, None if length == _UNDEFINED else length)
            if tag in (_ITEM_END, _SEQUENCE_END) and inside:
                implicit = inside.pop()[1]
            elif kind == "sequence" and tag == _ITEM:
                self._fits(at, length)
                inside.append(("item", implicit, None if length == _UNDEFINED else at + length))
                implicit = implicit or self._look(at, implicit)
            elif length == _UNDEFINED and tag != _ITEM:
                inside.append(("fragments" if vr in ("OB", "OW") else "sequence", implicit, None))
                implicit = implicit or vr == "UN"
            else:
                self._fits(at, length)
                at += length
            if len(inside) > 2 * DEPTH:
                raise ItemError("header_lies", f"its sequences are nested more than {DEPTH} deep")
            if count > ELEMENTS or at - start > HEADER_BYTES:
                raise ItemError("too_large", "what comes before its pixels is larger than any header is")
            self._file.seek(at)

    def fragments(self, at: int) -> int:
        """The number of fragments of pixels, without the table before them."""
        count = -1
        while at < self._size:
            self._file.seek(at)
            head = self._file.read(8)
            if len(head) < 8:
                raise _cut()
            tag, _, length, at = self._element(head, at, implicit=True)
            if tag != _ITEM:
                if tag != _SEQUENCE_END:
                    raise ItemError("header_lies", "its pixels are not in fragments, as its header says they are")
                break
            self._fits(at, length)
            at += length
            count += 1
        return count

    def _element(self, head: bytes, at: int, *, implicit: bool) -> tuple[int, str | None, int, int]:
        """Tag, VR, length, and where the value begins."""
        group, element, vr, length = self._explicit(head)
        tag = group << 16 | element
        if implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
            return tag, None, self._plain(head)[2], at + 8
        if vr not in _LONG:
            return tag, vr.decode(), length, at + 8
        more = self._file.read(4)
        if len(more) < 4:
            raise _cut()
        return tag, vr.decode(), self._number(more)[0], at + 12

    def _look(self, at: int, implicit: bool) -> bool:
        """Whether the next element has no VR, whatever was announced."""
        self._file.seek(at)
        head = self._file.read(8)
        self._file.seek(at)
        if len(head) < 8 or self._plain(head)[0] == 0xFFFE:
            return implicit
        return not (head[4:6].isalpha() and head[4:6].isupper())

    def _fits(self, at: int, length: int) -> None:
        if length != _UNDEFINED and at + length > self._size:
            raise _cut()


def _cut() -> ItemError:
    return ItemError("truncated", "it ends before what its header announces; copy it again")
