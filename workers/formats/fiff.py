"""The tags of a FIF file: what is described in it, found without reading its samples.

A file is a sequence of tags (kind, type, size, where the next is) of big-endian numbers; two kinds of tag open and close
blocks. Ours, since mne gives floating-point volts only, and trusts each size that it is told.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diastole.lake.errors import ItemError

from . import source

MEAS, MEAS_INFO, CH_INFO_BLOCK, REF, PROJ_ITEM, BAD_CHANNELS, ANNOTATIONS = 100, 101, 113, 118, 314, 359, 3810
EVOKED, EPOCHS = 104, 373
RAW = (102, 112, 119)
"""Blocks of raw data, continuous data, and raw data under internal active shielding."""
NUMBERS = {2: ">i2", 3: ">i4", 4: ">f4", 5: ">f8", 16: ">i2"}
"""Types of samples, or of a tag's numbers, that are read."""
_START, _END, _BUFFER, _SKIP = 104, 105, 300, 301
_TEXT_BYTES = 2**24
_DEPTH = 32
_TAGS = 2**22
_HEAD = struct.Struct(">iiii")


@dataclass
class Found:
    """What the tags of one file say."""

    tags: list[tuple[tuple[int, ...], int, int, bytes]] = field(default_factory=list)
    """(kinds of the blocks around it, kind, type, content) of each tag that `wanted` names."""
    buffers: list[tuple[int, int, int]] = field(default_factory=list)
    """(position of its samples, type, bytes); a skip has type 0 and, instead of bytes, its number of buffers."""
    blocks: set[int] = field(default_factory=set)

    def one(self, kind: int, *, within: int) -> tuple[int, bytes] | None:
        """(type, content) of the first tag of a kind whose innermost block is of that kind."""
        return next((tag[2:] for tag in self.tags if tag[1] == kind and tag[0][-1:] == (within,)), None)


def scan(path: Path, wanted: frozenset[int], limit: int) -> Found:
    """Go through all tags of a file; contents of those that are not wanted are passed over.

    Raises ItemError: truncated, header_lies, too_large; checksum where it is a damaged gzip file.
    """
    found, at, kept = Found(), 0, 0
    around: list[int] = []
    with _opened(path, limit) as file:
        for number in range(_TAGS):
            head = file.read(_HEAD.size)
            if not head and number:
                break
            if len(head) < _HEAD.size:
                raise ItemError("truncated", "it ends inside of a tag; copy it again")
            kind, type_, size, following = _HEAD.unpack(head)
            at += _HEAD.size
            if size < 0:
                raise ItemError("header_lies", "a tag of it has a negative size")
            raw = bool(around) and around[-1] in RAW
            if kind == _BUFFER and raw:
                found.buffers.append((at, type_, size))
                file.skip(size)
                at += size
            elif kind in wanted or kind in (_START, _END) or (kind == _SKIP and raw):
                kept += size + 64
                if kept > _TEXT_BYTES:
                    raise ItemError("too_large", f"its header has more than {_TEXT_BYTES} bytes")
                content = file.read(size)
                if len(content) < size:
                    raise ItemError("truncated", "it ends inside of a tag; copy it again")
                at += size
                if kind == _START:
                    around.append(integer(content))
                    found.blocks.add(around[-1])
                elif kind == _END:
                    del around[-1:]
                elif kind == _SKIP:
                    found.buffers.append((at, 0, integer(content)))
                else:
                    found.tags.append((tuple(around), kind, type_, content))
                if len(around) > _DEPTH:
                    raise ItemError("header_lies", f"its blocks are nested deeper than {_DEPTH}")
            else:
                file.skip(size)
                at += size
            if following == -1:
                break
            if following and following != at:
                if following < at:
                    raise ItemError("header_lies", "a tag of it points back")
                file.skip(following - at)
                at = following
        else:
            raise ItemError("too_large", f"it has more than {_TAGS} tags")
        if around:
            raise ItemError("truncated", "it ends inside of a block; copy it again")
    return found


def samples(path: Path, found: Found, channels: int, limit: int, most: int) -> Iterator[np.ndarray]:
    """(time, channel) of each buffer, in pieces of at most about `most` bytes."""
    with _opened(path, limit) as file:
        at = 0
        for place, type_, size in found.buffers:
            if not type_:
                continue
            file.skip(place - at)
            at = place
            dtype = np.dtype(NUMBERS[type_])
            width = channels * dtype.itemsize
            for first in range(0, size, max(1, most // width) * width):
                raw = file.read(min(size - first, max(1, most // width) * width))
                if len(raw) % width or not raw:
                    raise ItemError("truncated", "it became shorter while it was read")
                at += len(raw)
                yield np.frombuffer(raw, dtype).reshape(-1, channels)


def integer(content: bytes) -> int:
    """A number of four bytes. Raises ItemError."""
    if len(content) != 4:
        raise ItemError("header_lies", "a number in its header has not four bytes")
    return int.from_bytes(content, "big", signed=True)


def numbers(tag: tuple[int, bytes]) -> np.ndarray:
    """Numbers of a tag. Raises ItemError."""
    dtype = NUMBERS.get(tag[0])
    if dtype is None or len(tag[1]) % np.dtype(dtype).itemsize:
        raise ItemError("header_lies", "what should be numbers in its header are none")
    return np.frombuffer(tag[1], dtype)


def text(content: bytes) -> str:
    """A text; FIF's are Latin-1, mne's are too."""
    return content.split(b"\0")[0].decode("latin-1")


class _File:
    """A file that is read and passed over from its beginning to its end, unpacked where it is gzip."""

    def __init__(self, stream: source.Stream, path: Path) -> None:
        self._stream = stream
        self._plain = None if source.is_gzip(path) else path.open("rb")
        self._size = path.stat().st_size

    def read(self, size: int) -> bytes:
        return self._stream.read(size) if self._plain is None else self._plain.read(size)

    def skip(self, size: int) -> None:
        """Raises ItemError where the file ends before."""
        if self._plain is not None:
            if self._plain.seek(size, 1) > self._size:
                raise ItemError("truncated", "it ends inside of a tag; copy it again")
            return
        while size:
            piece = self._stream.read(min(size, source.PIECE))
            if not piece:
                raise ItemError("truncated", "it ends inside of a tag; copy it again")
            size -= len(piece)

    def close(self) -> None:
        if self._plain is None:
            self._stream.drain()  # to the end, where its checksum is
        else:
            self._plain.close()


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[_File]:
    with source.opened(path, limit) as stream:
        file = _File(stream, path)
        yield file
        file.close()
