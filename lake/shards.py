"""Writing an array of the lake: Zarr v3 metadata, and shards whose every chunk is there and has a checksum.

zarr's own pipeline takes several times as long for a small array, most of it between its threads, and zarrs 0.2.3 leaves
out chunks that hold only zeros. The layout is that of the `sharding_indexed` codec of the Zarr v3 specification: chunks one
after the other, then the index of (offset, size) pairs with its crc32c. Tests read it back with zarr and with zarrs.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from . import mapped
from .layout import Lake

ZSTD_LEVEL = 3
MISSING = 2**64 - 1
"""Offset and size, in the index, of a chunk that lies wholly outside of the array."""


def write_sharded(
    lake: Lake,
    path: str,
    data: np.ndarray,
    chunks: Sequence[int],
    shards: Sequence[int],
    dimensions: Sequence[str],
    *,
    plain: bool = False,
) -> None:
    """Write `data` as an array at `path`: `shards` are multiples of `chunks`. Not durable before the store is synced.

    `plain` chunks are stored as they are, with a crc32c, instead of in zstd.
    """
    for place in product(*(range(-(-size // shard)) for size, shard in zip(data.shape, shards, strict=True))):
        key = "/".join(map(str, place))
        shard = shard_pieces(_encoded(data, place, chunks, shards, plain=plain))
        lake.store.put(f"{path}/c/{key}", shard, durable=False)
    described = json.dumps(describe(data.shape, data.dtype, chunks, shards, dimensions, plain=plain)).encode()
    lake.store.put(f"{path}/zarr.json", described, durable=False)  # indented, it would be Python's slow encoder


def _encoded(
    data: np.ndarray, place: Sequence[int], chunks: Sequence[int], shards: Sequence[int], *, plain: bool
) -> Iterator[Any]:
    """The chunks of a shard in C order, encoded; None for those outside of the array."""
    import google_crc32c
    from numcodecs import Zstd

    zstd = Zstd(level=ZSTD_LEVEL, checksum=True).encode
    for chunk in _chunks(data, place, chunks, shards):
        if chunk is None or not plain:
            yield None if chunk is None else zstd(chunk)
        else:
            values = bytes(chunk.data)
            yield values + struct.pack("<I", google_crc32c.value(values))


def join_chunks(encoded: Iterable[Any]) -> bytes:
    """A shard of chunks that are encoded, in C order; None for those outside of the array."""
    return b"".join(shard_pieces(encoded))


def shard_pieces(encoded: Iterable[Any]) -> Iterator[Any]:
    """As `join_chunks`, piece by piece: the chunks, then the index."""
    import google_crc32c

    index, offset = [], 0
    for piece in encoded:
        if piece is None:
            index.append((MISSING, MISSING))
            continue
        index.append((offset, len(piece)))
        offset += len(piece)
        yield piece
    table = np.array(index, "<u8").tobytes()
    yield table + struct.pack("<I", google_crc32c.value(table))


def _chunks(
    data: np.ndarray, place: Sequence[int], chunks: Sequence[int], shards: Sequence[int]
) -> Iterator[np.ndarray | None]:
    """The chunks of a shard, whole, filled up with zeros where the array ends; None for those outside of it."""
    axes, band = list(zip(place, chunks, shards, strict=True)), 0
    for inner in product(*(range(shard // chunk) for _, chunk, shard in axes)):
        if inner[0] != band:
            mapped.let_go(data)
            band = inner[0]
        starts = [at * shard + one * chunk for (at, chunk, shard), one in zip(axes, inner, strict=True)]
        if any(start >= size for start, size in zip(starts, data.shape, strict=True)):
            yield None
            continue
        piece = data[tuple(slice(start, start + chunk) for start, chunk in zip(starts, chunks, strict=True))]
        if piece.shape != tuple(chunks):
            whole = np.zeros(chunks, data.dtype)
            whole[tuple(map(slice, piece.shape))] = piece
            piece = whole
        yield np.ascontiguousarray(piece)


def describe(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunks: Sequence[int],
    shards: Sequence[int],
    dimensions: Sequence[str],
    *,
    plain: bool,
) -> dict[str, Any]:
    """What zarr.json says of an array that `write_sharded` wrote."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}
    inner = {
        "chunk_shape": list(chunks),
        "codecs": [little, {"name": "crc32c"} if plain else zstd],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shards)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": {"f": 0.0, "b": False}.get(dtype.kind, 0),
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        "attributes": {},
        "dimension_names": list(dimensions),
        "storage_transformers": [],
    }
