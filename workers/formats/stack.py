"""Stacks of images in a .npy file: (N, H, W), (N, H, W, C) or (N, C, H, W), stored as (N, C, H, W).

Which axis is the channels is told by size: at most CHANNELS, with rows and columns that are more. Where both could be, or
none, the stack is refused, not guessed. Three axes are always images of one channel: a single image of several has to be
saved as (1, H, W, C). Numbers are stored as they are: uint8, uint16, int16, float32, little-endian; others are refused,
since a conversion (float64 by rounding, bool by meaning) is the owner's to make.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source

name = "stack"

CHANNELS = 16
DTYPES = ("uint8", "uint16", "int16", "float32")
_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 2**16


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]  # as in the file
    dtype: np.dtype[Any]  # with its byte order
    offset: int
    channels: int | None  # the axis of the channels, None where there is none

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def stored(self) -> tuple[int, ...]:
        """(N, C, H, W)"""
        if self.channels is None:
            return (self.shape[0], 1, *self.shape[1:])
        rest = [size for axis, size in enumerate(self.shape) if axis not in (0, self.channels)]
        return (self.shape[0], self.shape[self.channels], *rest)


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a .npy file does."""
    return head.startswith(_MAGIC)


def preflight(path: Path, limits: Limits) -> None:
    """Hold the header to the limits and, where the file is not compressed, to the file's size."""
    header = _header(path)
    if header.nbytes > limits.item_bytes:
        raise ItemError(
            "too_large",
            f"its header claims {header.nbytes} bytes of images, more than {limits.item_bytes}; "
            "raise max_item_bytes if that is true, or split the stack",
        )
    if not source.is_gzip(path):
        size = path.stat().st_size
        if size < header.offset + header.nbytes:
            raise ItemError("truncated", f"it has {size} bytes, its header claims {header.offset + header.nbytes}")
        if size > header.offset + header.nbytes:
            raise ItemError("header_lies", f"it has {size} bytes, its header claims {header.offset + header.nbytes}")


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Copy the images into `folder`/images.npy as (N, C, H, W), some at a time."""
    header = _header(path)
    target = header.dtype.newbyteorder("<")
    one = header.nbytes // header.shape[0]
    some = max(source.PIECE // one, 1)
    with (
        source.opened(path, options.limits.item_bytes + _HEADER_BYTES) as stream,
        (folder / "images.npy").open("xb") as out,
    ):
        np.lib.format.write_array_header_1_0(out, {"descr": target.str, "fortran_order": False, "shape": header.stored})
        _exactly(stream, header.offset)
        left = header.shape[0]
        while left:
            count = min(some, left)
            piece = np.frombuffer(_exactly(stream, count * one), header.dtype).astype(target, copy=False)
            images = piece.reshape(count, *header.shape[1:])
            out.write(np.ascontiguousarray(np.moveaxis(images, 3, 1) if header.channels == 3 else images).data)
            left -= count
        if source.is_gzip(path):
            stream.drain()
    meta = {"channels": None, "spacing": None}
    return [
        {
            "kind": "images",
            "file": "images.npy",
            "suffix": "",
            "numbered": True,
            "meta": meta,
            "attributes": {"format": "npy"},
            "modality": None,
        }
    ]


def _header(path: Path) -> _Header:
    """The header, its dimensions and type checked. Raises ItemError."""
    with source.opened(path, _HEADER_BYTES) as stream:
        head = stream.read(_HEADER_BYTES)
    try:
        shape, fortran, dtype, offset = _parsed(head)
    except (ValueError, KeyError, TypeError, EOFError, SyntaxError, TokenError) as error:  # numpy parses it as Python
        raise ItemError("unreadable", "it begins as a .npy file, but its header cannot be read") from error
    if dtype.names is not None or dtype.name not in DTYPES:
        what = dtype.name if dtype.kind in "biufc" else "no numbers"
        raise ItemError("unsupported", f"its values are {what}; images are one of {', '.join(DTYPES)}: convert them")
    if any(size < 1 for size in shape):
        raise ItemError("unsupported", "it holds no image")
    if fortran and len(shape) > 1:
        raise ItemError("unsupported", "it is in Fortran order; save it in C order (numpy.ascontiguousarray)")
    return _Header(shape, dtype, offset, _channels(shape))


def _parsed(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    import io

    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = readers[version](file)
    return shape, fortran, dtype, file.tell()


def _channels(shape: tuple[int, ...]) -> int | None:
    if len(shape) == 3 and min(shape[1:]) > 4:
        return None
    if len(shape) == 4:
        first = shape[1] <= CHANNELS < min(shape[2:])
        last = shape[3] <= CHANNELS < min(shape[1:3])
        if first or last:  # never both
            return 1 if first else 3
    said = " × ".join(str(size) for size in shape)
    raise ItemError(
        "unsupported",
        f"its axes {said} cannot be told apart; a stack is (N, H, W), (N, H, W, C) or (N, C, H, W), "
        f"with at most {CHANNELS} channels and more rows and columns than that",
    )


def _exactly(stream: source.Stream, size: int) -> bytes:
    pieces = []
    while size:
        piece = stream.read(min(size, source.PIECE))
        if not piece:
            raise ItemError("truncated", "it ends before all of its images; copy it again")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
