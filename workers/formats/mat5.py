"""MATLAB 5 files (.mat, EEGLAB's .set), read as a stream: what is wanted is kept, a large array goes where it is told to.

scipy loads a variable as a whole, also one that unpacks to more than there is memory, and follows any nesting.
"""

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diastole.lake.errors import ItemError

from . import source

Wanted = Mapping[str, Any]
"""Names of fields to keep, each with those that are wanted of a structure in it, or None for a plain value."""
Sink = Callable[[tuple[int, ...], "np.dtype[Any]", Iterator[np.ndarray]], None]
"""Takes (dimensions, type, pieces in MATLAB's order) of the field `data`."""
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_VALUE_BYTES = 2**20
"""A value with more is not kept; none that is wanted is as long."""
_MOST = 2**20
"""Elements of one structure array."""
_FIELDS = 1000
_PIECE = 2**22


class _Stream:
    """Bytes of an element, unpacked where it is packed. Raises ItemError: truncated, checksum, too_large."""

    def __init__(self, file: BinaryIO, size: int, limit: int, *, packed: bool, order: str) -> None:
        self._file, self._left, self._limit = file, size, limit
        self._unpack = zlib.decompressobj() if packed else None
        self.order = order
        self.at = 0

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        pieces, left = [], size
        self.at += size
        if self.at > self._limit:
            raise ItemError("too_large", f"it unpacks to more than {self._limit} bytes; raise max_item_bytes if it may")
        while left:
            piece = self._some(min(left, _PIECE))
            if not piece:
                raise ItemError("truncated", "it ends inside of a variable; copy it again")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def skip(self, size: int) -> None:
        if size < 0:
            raise ItemError("header_lies", "a part of a variable is longer than the variable")
        if self._unpack is None:
            self._file.seek(size, 1)
            self._left -= size
            self.at += size
            if self._left < 0:
                raise ItemError("header_lies", "a part of a variable is longer than the variable")
            return
        for first in range(0, size, _PIECE):
            self.read(min(_PIECE, size - first))

    def finish(self) -> None:
        """Read to the end of what is packed, where its checksum is."""
        while self._unpack is not None and not self._unpack.eof:
            if self.at > self._limit:
                raise ItemError(
                    "too_large", f"it unpacks to more than {self._limit} bytes; raise max_item_bytes if it may"
                )
            piece = self._some(_PIECE)
            self.at += len(piece)
            if not piece and not self._unpack.eof:
                raise ItemError("truncated", "it ends inside of a variable; copy it again")

    def _some(self, size: int) -> bytes:
        if self._unpack is None:
            piece = self._file.read(min(size, self._left))
            self._left -= len(piece)
            return piece
        try:
            while True:
                piece = self._unpack.decompress(self._unpack.unconsumed_tail or self._packed(), size)
                if piece or self._unpack.eof or not (self._left or self._unpack.unconsumed_tail):
                    return piece
        except zlib.error as error:
            raise ItemError("checksum", "a variable of it is damaged; copy it again") from error

    def _packed(self) -> bytes:
        piece = self._file.read(min(self._left, source.PIECE))
        self._left = self._left - len(piece) if piece else 0
        return piece


def read(path: Path, wanted: Wanted, limit: int, sink: Sink | None) -> dict[str, Any]:
    """Values of the wanted variables. Arrays are (dimensions, numbers), texts str, structures lists of dict by field.

    `data` goes to `sink`; without one it is only described: its dimensions, in place of its numbers. Raises ItemError.
    """
    found: dict[str, Any] = {}
    with path.open("rb") as file:
        head = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        if len(head) < 128 or order is None:
            raise ItemError(
                "truncated" if len(head) < 128 else "header_lies", "it does not begin with a whole MATLAB header"
            )
        size_of_file = path.stat().st_size
        while tag := file.read(8):
            if len(tag) < 8:
                raise ItemError("truncated", "it ends inside of a variable; copy it again")
            type_, size = struct.unpack(f"{order}II", tag)
            following = file.tell() + size
            if following > size_of_file:
                raise ItemError("truncated", "it ends inside of a variable; copy it again")
            if type_ in (_MATRIX, _COMPRESSED):
                stream = _Stream(file, size, limit, packed=type_ == _COMPRESSED, order=order)
                if type_ == _COMPRESSED:
                    type_, size = struct.unpack(f"{order}II", stream.read(8))
                if type_ == _MATRIX and size:
                    name, value = _matrix(stream, size, wanted, None, sink)
                    if name in wanted:
                        found[name] = value
                stream.finish()
            file.seek(following)
    return found


def _matrix(stream: _Stream, size: int, wanted: Wanted | None, field: str | None, sink: Sink | None) -> tuple[str, Any]:
    """(name, value) of an array; `wanted` are the fields of it, or, where it is no field itself, the variables."""
    end = stream.at + size
    flags = _element(stream, 8, (6,))
    raw = _element(stream, 4 * 32, (5,))
    dims = tuple(int(n) for n in np.frombuffer(raw[: len(raw) // 4 * 4], f"{stream.order}i4"))
    name = field if field is not None else ""
    given = _element(stream, 256, (1, 2)).decode("latin-1")
    if field is None:
        name = given
        if wanted is None or name not in wanted:
            stream.skip(end - stream.at)
            return name, None
        wanted = wanted[name]
    if len(flags) != 8 or len(dims) < 2 or min(dims) < 0:
        raise ItemError("header_lies", "a variable of it has no dimensions")
    kind, count = int.from_bytes(flags[:4], "little" if stream.order == "<" else "big"), math.prod(dims)
    value: Any = None
    if kind & 0xFF == _STRUCT and isinstance(wanted, Mapping):
        value = _structures(stream, count, wanted, sink)
    elif kind & 0xFF == _CELL and isinstance(wanted, Mapping) and field:  # none in a cell, so that nesting ends
        value = [row for _ in range(min(count, _MOST)) for row in _cell(stream, end, wanted)]
    elif kind & 0xFF == _CHAR and count <= _VALUE_BYTES:
        value = _text(stream)
    elif kind & 0xFF in _CLASSES and not kind & 0x800:
        dtype = np.dtype(_CLASSES[kind & 0xFF])
        value = _numbers(stream, end, dims, dtype, sink if name == "data" else None, keep=name != "data")
    stream.skip(end - stream.at)
    return name, value


def _structures(stream: _Stream, count: int, wanted: Wanted, sink: Sink | None) -> list[dict[str, Any]]:
    length = int.from_bytes(_element(stream, 8, (5,)), "little" if stream.order == "<" else "big")
    raw = _element(stream, 64 * _FIELDS, (1, 2))
    if not 0 < length <= 64 or count > _MOST or (raw and len(raw) % length):
        raise ItemError("header_lies", "a structure of it has impossible names or too many elements")
    names = [raw[at : at + length].split(b"\0")[0].decode("latin-1") for at in range(0, len(raw), length)]
    rows = []
    for _ in range(count if names else 0):
        row = {}
        for name in names:
            type_, size = struct.unpack(f"{stream.order}II", stream.read(8))
            if type_ != _MATRIX:
                raise ItemError("header_lies", "a field of a structure is no array")
            if name in wanted and size:
                _, row[name] = _matrix(stream, size, wanted[name], name, sink)
            else:
                stream.skip(size)
        rows.append(row)
    return rows


def _cell(stream: _Stream, end: int, wanted: Wanted) -> list[dict[str, Any]]:
    """The structures of one cell; none where something else is in it."""
    type_, size = struct.unpack(f"{stream.order}II", stream.read(8))
    if type_ != _MATRIX or size > end - stream.at:
        raise ItemError("header_lies", "a cell of it holds no array")
    _, value = _matrix(stream, size, wanted, "", None) if size else ("", None)
    return value if isinstance(value, list) else []


def _numbers(
    stream: _Stream, end: int, dims: tuple[int, ...], dtype: "np.dtype[Any]", sink: Sink | None, *, keep: bool
) -> Any:
    type_, size, small = _tag(stream)
    stored = np.dtype(stream.order + _TYPES.get(type_, "V1")) if type_ in _TYPES else None
    if stored is None or size != math.prod(dims) * stored.itemsize:
        raise ItemError("header_lies", "an array of it has another size than its dimensions say")
    if not small and size > end - stream.at:
        raise ItemError("header_lies", "a part of a variable is longer than the variable")
    if sink is not None:
        sink(dims, dtype, _pieces(stream, size, stored))
        return dims, None
    if not keep or size > _VALUE_BYTES:
        stream.skip(size)
        return dims, None
    return dims, np.frombuffer(stream.read(size), stored).astype(dtype)


def _pieces(stream: _Stream, size: int, stored: "np.dtype[Any]") -> Iterator[np.ndarray]:
    for first in range(0, size, _PIECE):
        yield np.frombuffer(stream.read(min(_PIECE, size - first)), stored)


def _text(stream: _Stream) -> str:
    type_, size, small = _tag(stream)
    raw = stream.read(size)
    stream.skip((4 - size) if small else -size % 8)
    coding = _TEXTS.get(type_, "latin-1")
    if coding in ("utf-16", "utf-32"):
        coding += "-le" if stream.order == "<" else "-be"
    return raw.decode(coding, "replace")


def _tag(stream: _Stream) -> tuple[int, int, bool]:
    """(type, bytes, whether they follow in the tag itself)."""
    raw = stream.read(4)
    first = struct.unpack(f"{stream.order}I", raw)[0]
    if first >> 16:
        if first >> 16 > 4:
            raise ItemError("header_lies", "a short value of it is too long")
        return first & 0xFFFF, first >> 16, True
    return first, struct.unpack(f"{stream.order}I", stream.read(4))[0], False


def _element(stream: _Stream, most: int, types: Sequence[int]) -> bytes:
    """Content of a small element, its padding passed over."""
    type_, size, small = _tag(stream)
    if type_ not in types or size > most:
        raise ItemError("header_lies", "a variable of it is not laid out as MATLAB does")
    content = stream.read(size)
    stream.skip((4 - size) if small else -size % 8)
    return content
