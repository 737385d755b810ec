"""Arrays of a lake: Zarr v3, sharded, immutable, at a path that holds their content digest.

Volumes and maps are OME-Zarr 0.5 groups, recordings are `(channel, time)` arrays that xarray opens. Every chunk is
written, also an empty one, and has a checksum. An array is read whole and held to its digest, so a chunk that is
missing, empty, damaged or changed is an error, never fill values.
"""

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import integrity, mapped
from .errors import EnvironmentFailure, ItemError, LakeError
from .ids import begun_digest, content_digest
from .layout import Lake
from .plain_json import from_json
from .shard_reader import layout, read_sharded
from .shards import write_sharded

SHARD_BYTES = 256 * 2**20
"""Upper bound of one shard before compression."""


UNPACKED = 2**16
"""How many times its size a chunk may unpack to: zstd makes of zeros a thirty-thousandth at best."""


@dataclass(frozen=True)
class StoredArray:
    """Where an array went, and what it is."""

    path: str
    content_digest: str
    files: list[integrity.FileRecord]
    healed: bool = False
    """Whether it was there, damaged, and was written anew."""


def write_volume(
    lake: Lake,
    prefix: str,
    data: np.ndarray,
    meta: Mapping[str, Any],
    recorded: integrity.Recorded | None = None,
    *,
    durable: bool = True,
) -> StoredArray:
    """Write a volume as an OME-Zarr 0.5 group.

    `data` is (z, y, x) or (t, z, y, x), that is, the first voxel axis of the source last. `meta` has `spacing` in mm
    and `affine` in the order x, y, z, and may have `rescale` (slope, intercept) and more. What is at its path already
    is left as it is; with `recorded` it is read, and written anew where it is not the same. What is not `durable` is so
    only after the caller has synced its folder.
    """
    axes = [{"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"]
    scale = [float(s) for s in reversed(meta["spacing"])]
    if data.ndim == 4:
        axes = [{"name": "t", "type": "time", "unit": "second"}, *axes]
        scale = [float(meta.get("time_step") or 1.0), *scale]
    multiscale = {
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
        "name": "0",
    }
    chunks = tuple([1] * (data.ndim - 3) + [min(n, 64) for n in data.shape[-3:]])
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
    return _write_group(
        lake, prefix, "0", data, [a["name"] for a in axes], chunks, meta, attributes, recorded, durable=durable
    )


def write_recording(
    lake: Lake, prefix: str, data: np.ndarray, meta: Mapping[str, Any], recorded: integrity.Recorded | None = None
) -> StoredArray:
    """Write a recording (channel, time). `meta` has `rate` in Hz, `channels`, `units`, and `gain` and `offset` that
    turn stored numbers into those units. `recorded` as for volumes.
    """
    chunks = (1, min(max(data.shape[1], 1), 2**16))
    return _write_group(lake, prefix, "signal", data, ["channel", "time"], chunks, meta, {}, recorded)


def write_contours(
    lake: Lake, prefix: str, data: np.ndarray, meta: Mapping[str, Any], recorded: integrity.Recorded | None = None
) -> StoredArray:
    """Write outlines (N, 4) float64: x, y, z in RAS mm, and the contour that a point is of, counted from 0.

    `meta` has `contours`, [number of the structure, first point, number of points, kind] for each, and `rois`.
    `recorded` as for volumes.
    """
    chunks = (min(max(data.shape[0], 1), 2**16), data.shape[1])
    return _write_group(lake, prefix, "points", data, ["point", "value"], chunks, meta, {}, recorded)


def _write_group(
    lake: Lake,
    prefix: str,
    name: str,
    data: np.ndarray,
    dimensions: Sequence[str],
    chunks: tuple[int, ...],
    meta: Mapping[str, Any],
    attributes: Mapping[str, Any],
    recorded: integrity.Recorded | None,
    *,
    durable: bool = True,
) -> StoredArray:
    data = np.ascontiguousarray(data)
    running = begun_digest(header(data.shape, data.dtype, meta))
    for band in mapped.bands(data):
        running.update(band.data)
    digest = running.hexdigest()[:32]

    def write(path: str) -> None:
        sharded = shards(data.shape, chunks, data.dtype.itemsize)
        write_sharded(lake, f"{path}/{name}", data, chunks, sharded, dimensions)

    said = {**attributes, "diastole": dict(meta)}
    return store_group(lake, prefix, digest, write, said, recorded, read_whole, durable=durable)


def store_group(
    lake: Lake,
    prefix: str,
    digest: str,
    write: Callable[[str], None],
    attributes: Mapping[str, Any],
    recorded: integrity.Recorded | None,
    hold: Callable[[Lake, str, str], object],
    *,
    durable: bool = True,
) -> StoredArray:
    """Have a group whose content has this digest written, unless it is there; `hold` reads one, and raises ItemError."""
    path = f"{prefix}/{digest}.zarr"
    with writing(path):
        healed = recorded is not None and _damaged(lake, path, digest, recorded, hold)
        if healed:
            lake.store.delete(f"{path}/zarr.json")  # first, so that a kill in between leaves no whole array
            for file, _ in lake.store.list(path):
                lake.store.delete(file)
        if lake.store.size(f"{path}/zarr.json") is None:  # written last: where it is, the array is whole
            write(path)
            if durable:
                lake.store.sync(path)
            group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
            lake.store.put(f"{path}/zarr.json", json.dumps(group).encode(), durable=durable)
    return StoredArray(path, digest, integrity.hashed(lake, path), healed)


def _damaged(
    lake: Lake,
    path: str,
    digest: str,
    recorded: integrity.Recorded,
    hold: Callable[[Lake, str, str], object],
) -> bool:
    """Whether something is at an array's path that is not the array, or not the files that were recorded."""
    files, expected = integrity.hashed(lake, path), recorded.below(path)
    if expected and files != expected:
        return True
    try:
        hold(lake, path, digest)
    except ItemError:
        return bool(files)
    return False


def read_meta(lake: Lake, path: str) -> dict[str, Any]:
    """What is known of an array beside its numbers. Raises ItemError where the array is not whole."""
    try:
        return dict(from_json(lake.store.get(f"{path}/zarr.json"))["attributes"]["diastole"])
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError) as error:
        raise ItemError("array_missing", f"its array is missing or damaged; {integrity.how_to_heal(path)}") from error


def read_whole(lake: Lake, path: str, expected_digest: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The whole array and its meta, held to the digest of its content.

    Raises ItemError where a chunk is missing, empty or damaged, or the content is not what was planned;
    EnvironmentFailure where storage fails.
    """
    meta = read_meta(lake, path)
    if "levels" in meta:
        raise ItemError(
            "unsupported", "it is a slide with levels, which no task reads whole; leave slides out of the job"
        )
    name = "signal" if "rate" in meta else "points" if "contours" in meta else "0"
    with decoding(lake, path):
        found = layout(lake.store.get(f"{path}/{name}/zarr.json"))
        if found is not None:
            data = read_sharded(lake, f"{path}/{name}", found)
        else:
            array = with_pipeline("open_array", READ, lake.store.zarr(path, read_only=True), path=name, mode="r")
            believe(lake, f"{path}/{name}", array)
            data = np.ascontiguousarray(array[...])
        found_digest = content_digest(header(data.shape, data.dtype, meta), data)
    if found_digest != expected_digest:
        raise ItemError(
            "digest_mismatch",
            f"its array is not what was planned: damaged, or changed meanwhile; {integrity.how_to_heal(path)}",
        )
    return data, meta


def believe(lake: Lake, path: str, array: Any) -> None:
    """Raise ValueError where an array claims more than its files can unpack to: zarrs ends the process for want of memory."""
    there = sum(size for _, size in lake.store.list(path))
    for shape in (array.shape, array.chunks, array.shards or array.chunks):
        if math.prod(shape) * array.dtype.itemsize > UNPACKED * max(there, 2**10):
            raise ValueError("it claims more than it has")


@contextmanager
def decoding(lake: Lake, path: str) -> Iterator[None]:
    """What fails while an array is read: EnvironmentFailure where it is storage, else ItemError."""
    try:
        with lake.store.reading(path):
            yield
    except MemoryError as error:
        raise ItemError(
            "out_of_memory", "its array does not fit the memory; if it should: diastole check --deep"
        ) from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        # An OSError that is left is one of a codec, or: not found
        if said := _OS_ERROR.search(str(error)):
            raise EnvironmentFailure(f"storage failed at {path}: {said[1]}") from error
        raise ItemError(
            "array_unreadable", f"its array cannot be read ({type(error).__name__}); {integrity.how_to_heal(path)}"
        ) from error


_OS_ERROR = re.compile(r"([^:]*) \(os error (?!2\))\d+\)")
"""How Rust's libraries (zarrs) name an error of the system, but for 'not found'."""

_PATHS: dict[str, threading.Lock] = {}
_PATHS_LOCK = threading.Lock()


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Two threads with the same content take turns; otherwise the second would delete what the first has written."""
    with _PATHS_LOCK:
        lock = _PATHS.setdefault(path, threading.Lock())
    with lock:
        yield
    with _PATHS_LOCK:
        _PATHS.pop(path, None)  # the array is there by now, so a third thread that makes a new lock writes nothing


_PIPELINE = threading.Lock()


def with_pipeline(make: str, pipeline: str, *args: Any, **options: Any) -> Any:
    """Make or open an array with a codec pipeline, which zarr takes from its global configuration at that moment."""
    import zarr

    with _PIPELINE:
        zarr.config.set({"codec_pipeline.path": pipeline})
        return getattr(zarr, make)(*args, zarr_format=3, **options)


WRITE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
"""zarrs 0.2.3 leaves out chunks that hold only zeros, whatever `write_empty_chunks` says; zarr's own writes them."""
READ = WRITE
"""Of layouts that are not ours. zarrs takes half of the time, but ends the process where an index without a checksum claims more
than there is memory."""


def header(shape: Sequence[int], dtype: np.dtype[Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """What is hashed of an array before its bytes."""
    return {"shape": list(shape), "dtype": dtype.newbyteorder("<").str, "meta": dict(meta)}


def shards(shape: Sequence[int], chunks: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The largest shard of whole chunks that covers the array, or that fits SHARD_BYTES."""
    shard = [-(-max(n, 1) // c) * c for n, c in zip(shape, chunks, strict=True)]
    for axis in range(len(shard)):
        while int(np.prod(shard)) * itemsize > SHARD_BYTES and shard[axis] > chunks[axis]:
            shard[axis] = -(-shard[axis] // (2 * chunks[axis])) * chunks[axis]
    return tuple(shard)


def check_dtype(data: np.ndarray) -> np.ndarray:
    """Numbers that Zarr v3 and torch both know, little-endian. Raises LakeError for others."""
    if data.dtype.kind not in "iuf" or data.dtype.itemsize > 8:
        raise LakeError(f"arrays of {data.dtype} cannot be stored")
    return data.astype(data.dtype.newbyteorder("<"), copy=False)
