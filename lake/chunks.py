"""Reading rows of an array by its chunks: straight from its shard where `shards` wrote it, else through zarr.

For small images zarr's way, through its threads and those of zarrs and a copy of each chunk, takes several times as long as
the reading itself. Here a chunk that is stored as it is goes from storage to its place in the array. Checksums are not
looked at, and of a damaged chunk any values may come: packs hold each chunk, with its digests, to an xxh3 of their own, which
finds all that a crc32c finds.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import READ, UNPACKED, believe, decoding, with_pipeline
from .errors import ItemError
from .layout import Lake
from .shard_reader import DECODERS, layout

_ENTRY, _CRC32C = 16, 4
"""Bytes of an entry of the index, and of a checksum."""


@dataclass(frozen=True)
class _Rows:
    """An array that is read some chunks of whole rows at a time."""

    lake: Lake
    path: str
    """Of the array, or of its only shard."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    """In one chunk."""


@dataclass(frozen=True)
class Chunks(_Rows):
    """An array that `write_sharded` wrote as one shard."""

    plain: bool
    index: np.ndarray
    """(chunks, 2) int64: offset and size in bytes of each chunk; size 0 where none is there that could be one."""

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of chunks `first` to `last`, and which of these chunks are lost: (chunks,) bool; theirs are zeros.

        What is not lost may be damaged. Raises EnvironmentFailure where storage fails.
        """
        images = np.empty(((last - first) * self.rows, *self.shape[1:]), self.dtype)
        chunks = images.reshape(last - first, -1).view(np.uint8)
        there = self.index[first:last, 1] > 0
        fill = self._fill if self.plain else self._decode
        if there.any():
            there[there] = fill(self.index[first:last][there], [chunks[at] for at in np.flatnonzero(there)])
        chunks[~there] = 0
        return images[: self.shape[0] - first * self.rows], ~there

    def _fill(self, index: np.ndarray, into: Sequence[np.ndarray]) -> np.ndarray:
        """From storage into buffers; which are filled."""
        try:
            return self.lake.store.fill(self.path, list(zip(index[:, 0].tolist(), into, strict=True)))
        except (FileNotFoundError, NotADirectoryError):
            return np.zeros(len(into), bool)

    def _decode(self, index: np.ndarray, into: Sequence[np.ndarray]) -> np.ndarray:
        """From zstd into buffers; which could be decoded."""
        from numcodecs import Zstd

        stored = np.split(np.empty(int(index[:, 1].sum()), np.uint8), np.cumsum(index[:-1, 1]))
        filled = self._fill(index, stored)

        def decode(at: int) -> bool:
            try:
                Zstd().decode(stored[at], into[at])
            except (RuntimeError, ValueError):
                return False
            return bool(filled[at])

        with ThreadPoolExecutor(max(DECODERS, 1), thread_name_prefix="diastole-decode") as threads:
            return np.array(list(threads.map(decode, range(len(into)))), bool)


@dataclass(frozen=True)
class ForeignChunks(_Rows):
    """An array in any other layout, which zarr reads."""

    array: Any

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """As of `Chunks`: what cannot be read is halved until it is one chunk that is lost."""
        begin, end = first * self.rows, min(last * self.rows, self.shape[0])
        try:
            with decoding(self.lake, self.path):
                return np.ascontiguousarray(self.array[begin:end]), np.zeros(last - first, bool)
        except ItemError:
            if last - first == 1:
                return np.zeros((end - begin, *self.shape[1:]), self.dtype), np.ones(1, bool)
        middle = (first + last) // 2
        images, lost = zip(self.read(first, middle), self.read(middle, last), strict=True)
        return np.concatenate(images), np.concatenate(lost)


def open_chunks(lake: Lake, path: str, rows: int | None = None) -> Chunks | ForeignChunks:
    """An array, to be read so many rows at a time, or all. Raises ItemError where it cannot be, EnvironmentFailure."""
    found = _ours(lake, path)
    if found is not None and found[2] == (rows or found[0][0]):
        shard = "/".join([path, "c", *["0"] * len(found[0])])
        with decoding(lake, path):
            return Chunks(lake, shard, *found, _index(lake, shard, *found))
    with decoding(lake, path):
        try:
            array = with_pipeline("open_array", READ, lake.store.zarr(path, read_only=True), mode="r")
            believe(lake, path, array)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"zarr cannot make sense of {path}/zarr.json") from error
    return ForeignChunks(lake, path, array.shape, array.dtype, rows or max(array.shape, default=1), array)


def _ours(lake: Lake, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int, bool] | None:
    """Shape, dtype, rows of a chunk and whether they are plain, where the array is one shard in chunks of whole rows."""
    try:
        found = layout(lake.store.get(f"{path}/zarr.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None  # zarr says why
    if found is None:
        return None
    (count, *rest), rows = found.shape, found.chunks[0]
    if found.chunks[1:] != tuple(rest) or found.shards != (-(-count // rows) * rows, *rest):
        return None
    return found.shape, found.dtype, rows, found.plain


def _index(lake: Lake, shard: str, shape: tuple[int, ...], dtype: np.dtype[Any], rows: int, plain: bool) -> np.ndarray:
    """The index at the end of a shard. What in it lies outside of the shard, or has no size of a chunk, is set to 0."""
    count, size = -(-shape[0] // rows), rows * int(np.prod(shape[1:], dtype=int)) * dtype.itemsize
    end = (lake.store.size(shard) or 0) - count * _ENTRY - _CRC32C
    if end <= 0:
        return np.broadcast_to(np.int64(0), (count, 2))  # however many it says, they take no memory
    if math.prod((rows, *shape[1:])) * dtype.itemsize > UNPACKED * end:
        raise ValueError("a chunk claims more than its shard has")
    entries = np.zeros((count, 2), "<u8")
    lake.store.fill(shard, [(end, entries.reshape(-1).view(np.uint8))])
    offsets, sizes = entries.T
    fits = sizes == size + _CRC32C if plain else (sizes > 0) & (sizes <= 2 * size + 2**10)
    inside = (sizes <= end) & (offsets <= end - np.minimum(sizes, end))
    return np.where((fits & inside)[:, None], entries, 0).astype(np.int64)
