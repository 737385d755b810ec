"""Reading an array of the lake whole, straight from the shards that `shards` wrote.

Through zarr, its event loop and the threads of zarrs, a volume of 4 MB takes 11 ms of CPU; so it takes 8, of which 5 are
zstd's and 2 the digest's. Arrays in any other layout are left to zarr.
"""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .layout import Lake
from .plain_json import from_json

DECODERS = min(4, (os.cpu_count() or 1) // 2)
"""Threads that decode: one gives less than a gigabyte per second, and a GPU may want more. Where there are but two cores,
the network needs them, and threads cost a tenth of the reading.
"""
ALONE = 2**20
"""Bytes of an array up to which it is decoded without any threads beside."""
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}
_CRC_BYTES = 4


Piece = tuple[tuple[int, int], tuple[slice, ...]]
"""Offset and size of a chunk in its shard, and where it goes in the array."""


@dataclass(frozen=True)
class Sharded:
    """An array as its metadata have it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    plain: bool
    """Whether chunks are stored as they are, with a crc32c, or else in zstd."""


def layout(metadata: bytes) -> Sharded | None:
    """What a zarr.json says, if `shards` could have written it; else None."""
    try:
        found = from_json(metadata)
        [codec] = found["codecs"]
        inner, shards = codec["configuration"], tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
        [first, second] = inner["codecs"]
        ours = (
            (found["zarr_format"], found["node_type"], found["chunk_grid"]["name"]) == (3, "array", "regular")
            and found["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and (codec["name"], inner["index_location"]) == ("sharding_indexed", "end")
            and (first, inner["index_codecs"]) == (_LITTLE, [_LITTLE, _CRC32C])
            and (second == _CRC32C or second["name"] == "zstd")
            and not (found.get("storage_transformers") or found["fill_value"])
        )
        one = Sharded(
            tuple(found["shape"]),
            np.dtype(found["data_type"]).newbyteorder("<"),
            tuple(inner["chunk_shape"]),
            shards,
            second == _CRC32C,
        )
        sizes = zip(one.shape, one.chunks, one.shards, strict=True)
        whole = (all(type(size) is int and size > 0 for size in axis) for axis in sizes)
        fits = all(whole) and all(shard % chunk == 0 for chunk, shard in zip(one.chunks, one.shards, strict=True))
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return one if ours and fits and one.dtype.kind in "iuf" else None


def read_sharded(lake: Lake, path: str, of: Sharded) -> np.ndarray:
    """The array at `path`. Raises ValueError or RuntimeError where a chunk is missing or damaged, FileNotFoundError where a
    shard is; EnvironmentFailure where storage fails.
    """
    whole: np.ndarray | None = None
    for place in product(*(range(-(-size // shard)) for size, shard in zip(of.shape, of.shards, strict=True))):
        shard = memoryview(lake.store.get(f"{path}/c/{'/'.join(map(str, place))}"))
        index = _index(shard, of)
        if whole is None:
            whole = np.empty(of.shape, of.dtype)  # not before there is something to fill it
        _fill(whole, shard, list(_pieces(index, place, of)), of)
    if whole is None:
        raise ValueError("it has no shard")
    return whole


def _index(shard: memoryview, of: Sharded) -> np.ndarray:
    """(chunks, 2) uint64: offset and size of each chunk. Raises ValueError where it is damaged."""
    import google_crc32c

    count = math.prod(shard // chunk for shard, chunk in zip(of.shards, of.chunks, strict=True))
    table = shard[len(shard) - 16 * count - _CRC_BYTES : -_CRC_BYTES] if len(shard) > 16 * count else shard[:0]
    if len(table) != 16 * count or shard[-_CRC_BYTES:] != google_crc32c.value(bytes(table)).to_bytes(4, "little"):
        raise ValueError("the index of a shard is damaged")
    return np.frombuffer(table, "<u8").reshape(count, 2)


def _pieces(index: np.ndarray, place: Sequence[int], of: Sharded) -> Iterator[Piece]:
    """Those chunks of a shard that do not lie wholly outside of the array."""
    axes = list(zip(place, of.chunks, of.shards, of.shape, strict=True))
    inside = product(*(range(shard // chunk) for _, chunk, shard, _ in axes))
    for entry, inner in zip(index.tolist(), inside, strict=True):
        starts = [at * shard + one * chunk for (at, chunk, shard, _), one in zip(axes, inner, strict=True)]
        if all(start < size for start, size in zip(starts, of.shape, strict=True)):
            ends = [min(start + chunk, size) for start, (_, chunk, _, size) in zip(starts, axes, strict=True)]
            yield tuple(entry), tuple(map(slice, starts, ends))


def _fill(whole: np.ndarray, shard: memoryview, pieces: Sequence[Piece], of: Sharded) -> None:
    """Chunks into their places."""

    def fill(piece: Piece) -> None:
        (offset, size), where = piece
        if offset + size > len(shard):
            raise ValueError("a chunk is missing")
        there, data = whole[where], shard[offset : offset + size]
        if there.flags.c_contiguous and there.shape == of.chunks:
            _decode(data, there, of)
            return
        chunk = np.empty(of.chunks, of.dtype)
        _decode(data, chunk, of)
        there[...] = chunk[tuple(map(slice, there.shape))]

    if DECODERS < 2 or whole.nbytes <= ALONE or len(pieces) == 1:
        for piece in pieces:
            fill(piece)
        return
    with ThreadPoolExecutor(min(DECODERS, len(pieces)), thread_name_prefix="diastole-decode") as threads:
        list(threads.map(fill, pieces))


def _decode(data: memoryview, into: np.ndarray, of: Sharded) -> None:
    """A chunk, held to its checksum."""
    import google_crc32c
    from numcodecs import Zstd

    if not of.plain:
        Zstd().decode(data, into)  # the checksum is the frame's
        return
    values = data[:-_CRC_BYTES]
    if len(values) != into.nbytes or data[-_CRC_BYTES:] != google_crc32c.value(bytes(values)).to_bytes(4, "little"):
        raise ValueError("a chunk is damaged")
    into[...] = np.frombuffer(values, of.dtype).reshape(into.shape)
