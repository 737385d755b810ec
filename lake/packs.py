"""Packs of images: small 2D images of one shape, dtype and meta as one Zarr v3 array (N, C, H, W), written once.

A pack lies at a path that holds the digest of its content digests. Its inner chunks hold whole images, about CHUNK_BYTES
of them, so that a run of rows is read with few decodes. Hashing each image again when it is read would cost more than
reading it, so a pack keeps the content digest of each row (`digests`, (N, 16) uint8) and, of each chunk, an xxh3 of header,
digests and images. What is missing, damaged or another's fails its chunk's rows alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from . import integrity
from .arrays import header
from .chunks import Chunks, ForeignChunks, open_chunks
from .errors import ItemError
from .ids import canonical_json, digest
from .layout import Lake
from .plain_json import from_json
from .shards import ZSTD_LEVEL, write_sharded

CHUNK_BYTES = 2**20
"""Images in one inner chunk at about: what is read to get at one image."""
PACK_BYTES = 256 * 2**20
"""Images in one pack at most, unless one image is larger: so a pack is one shard of Zarr, one object."""
MOST_ROWS = 2**40
"""Images in one inner chunk: more are of no pack."""
TAKEN = 16
"""Chunks that are read in one go where rows are scattered."""
SAMPLES = 8
"""Chunks that are compressed to see whether it pays."""
WORTH = 0.8
"""Images that zstd makes no smaller than this share are stored as they are, with a crc32c. One core decodes a gigabyte per
second, whatever is saved, and reads what is not compressed at six: less than a fifth only pays on storage that gives a core
less than 200 MB per second."""


def write_pack(
    lake: Lake,
    prefix: str,
    images: np.ndarray,
    digests: Sequence[str],
    meta: Mapping[str, Any],
    *,
    anew: bool = False,
) -> tuple[str, list[integrity.FileRecord]]:
    """Write images (n, C, H, W) whose content digests are `digests`; the row of each is its place.

    A pack that is there is left as it is, but with `anew`, which replaces a damaged one.
    """
    path = pack_path(prefix, digests)
    if anew:
        lake.store.delete(f"{path}/zarr.json")  # first, so that a kill in between leaves no whole pack
        for file, _ in lake.store.list(path):
            lake.store.delete(file)
    if lake.store.size(f"{path}/zarr.json") is None:  # written last: where it is, the pack is whole
        images = np.ascontiguousarray(images)
        rows = _rows_of_a_chunk(images)
        raw = raw_digests(digests)
        chunk, shard = (rows, *images.shape[1:]), (-(-len(images) // rows) * rows, *images.shape[1:])
        hard = _hard(images, rows)
        write_sharded(lake, f"{path}/images", images, chunk, shard, ["row", "c", "y", "x"], plain=hard)
        write_sharded(lake, f"{path}/digests", raw, raw.shape, raw.shape, ["row", "byte"], plain=True)
        start = canonical_json(header(images.shape[1:], images.dtype, meta))
        checks = [_check(start, raw[at : at + rows], images[at : at + rows]) for at in range(0, len(images), rows)]
        lake.store.sync(path)
        attributes = {"diastole": {"meta": dict(meta), "rows": rows, "checks": [check.hex() for check in checks]}}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        lake.store.put(f"{path}/zarr.json", json.dumps(group).encode())
    return path, integrity.hashed(lake, path)


def pack_path(prefix: str, digests: Sequence[str]) -> str:
    """Where a pack of images of these contents lies."""
    return f"{prefix}/{digest(list(digests))}.zarr"


def raw_digests(digests: Sequence[str]) -> np.ndarray:
    """Content digests as they lie in a pack: (n, 16) uint8."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), 16)


@dataclass(frozen=True)
class Pack:
    """A pack that is open for reading; opened once for all rows that are wanted of it."""

    lake: Lake
    path: str
    meta: dict[str, Any]
    """What is known of each of its images."""
    digests: np.ndarray
    """(N, 16) uint8: content digests by row."""
    _images: Chunks | ForeignChunks
    _rows: int
    _checks: list[bytes]
    _start: bytes

    @classmethod
    def open(cls, lake: Lake, path: str) -> "Pack":
        """Raises ItemError where the pack cannot be read at all, EnvironmentFailure where storage fails."""
        try:
            found = from_json(lake.store.get(f"{path}/zarr.json"))["attributes"]["diastole"]
            meta, rows, checks = dict(found["meta"]), int(found["rows"]), [bytes.fromhex(c) for c in found["checks"]]
        except (FileNotFoundError, NotADirectoryError, ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(path) from error
        if rows < 1 or rows > MOST_ROWS:
            raise _unreadable(path)
        images, known = open_chunks(lake, f"{path}/images", rows), open_chunks(lake, f"{path}/digests")
        fits = len(images.shape) == 4 and known.shape == (images.shape[0], 16) and images.dtype.kind in "iuf"
        if not fits or len(checks) != -(-images.shape[0] // rows):
            raise _unreadable(path)
        digests, lost = known.read(0, 1)
        if lost.any():
            raise _unreadable(path)
        try:
            start = canonical_json(header(images.shape[1:], images.dtype, meta))
        except ValueError as error:
            raise _unreadable(path) from error
        return cls(lake, path, meta, digests, images, rows, checks, start)

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return int(np.prod(self.shape)) * int(self._images.dtype.itemsize)

    def read(self, start: int, stop: int, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, C, H, W) of rows `start` to `stop`, and which of them are bad: (n,) bool.

        `expected` (n, 16) uint8 are the content digests that were planned. The values of bad images mean nothing: their
        chunk is missing or damaged, or they are not what was planned. Raises EnvironmentFailure where storage fails.
        """
        if not 0 <= start < stop <= len(self):
            return self._nothing(stop - start)
        first, last = start // self._rows, -(-stop // self._rows)
        images, damaged = self._chunks(first, last)
        begin = start - first * self._rows
        bad = np.repeat(damaged, self._rows)[begin : begin + stop - start]
        return images[begin : begin + stop - start], bad | (self.digests[start:stop] != expected).any(1)

    def take(self, rows: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, of rows in any order; each chunk is read once. Rows that follow each other are read with no copy."""
        rows = np.asarray(rows)
        if len(rows) and (np.diff(rows) == 1).all():
            return self.read(int(rows[0]), int(rows[-1]) + 1, expected)
        images, bad = self._nothing(len(rows))
        inside = (rows >= 0) & (rows < len(self))
        chunks = np.unique(rows[inside] // self._rows)
        for first, last in _runs(chunks):
            data, damaged = self._chunks(first, last)
            here = np.flatnonzero((rows >= first * self._rows) & (rows < last * self._rows))
            at = rows[here] - first * self._rows
            images[here] = data[at]
            bad[here] = damaged[at // self._rows] | (self.digests[rows[here]] != expected[here]).any(1)
        return images, bad

    def _nothing(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((count, *self.shape), self._images.dtype), np.ones(count, bool)

    def _chunks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of chunks `first` to `last`, and which of these chunks are damaged."""
        images, damaged = self._images.read(first, last)
        for chunk in np.flatnonzero(~damaged).tolist():
            inside = slice(chunk * self._rows, (chunk + 1) * self._rows)
            digests = self.digests[first * self._rows :][inside]
            damaged[chunk] = _check(self._start, digests, images[inside]) != self._checks[first + chunk]
        return images, damaged


def _runs(chunks: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of chunks that follow each other, TAKEN at most."""
    start = 0
    for at in range(1, len(chunks) + 1):
        if at == len(chunks) or chunks[at] != chunks[at - 1] + 1 or at - start == TAKEN:
            yield int(chunks[start]), int(chunks[at - 1]) + 1
            start = at


def _rows_of_a_chunk(images: np.ndarray) -> int:
    return int(min(max(CHUNK_BYTES // max(images[0].nbytes, 1), 1), len(images)))


def _hard(images: np.ndarray, rows: int) -> bool:
    """Whether zstd does not pay, tried on chunks that lie evenly over the pack."""
    from numcodecs import Zstd

    chunks = range(0, len(images), rows)
    tried = [images[at : at + rows] for at in chunks[:: max(len(chunks) // SAMPLES, 1)]]
    packed = sum(len(Zstd(level=ZSTD_LEVEL).encode(piece)) for piece in tried)
    return bool(packed > WORTH * sum(piece.nbytes for piece in tried))


def _check(start: bytes, digests: np.ndarray, images: np.ndarray) -> bytes:
    """xxh3 of what a chunk holds: the header of its images, their digests and their bytes."""
    running = xxhash.xxh3_128(start)
    running.update(np.ascontiguousarray(digests).data)
    running.update(images.data)
    return running.digest()


def _unreadable(path: str) -> ItemError:
    return ItemError("pack_unreadable", f"its pack of images is missing or damaged; {integrity.how_to_heal(path)}")
