"""Whole slides: OME-Zarr 0.5 multiscale groups, one (c, y, x) array for each level, sharded and with checksums as all arrays.

A slide need not fit the memory: it is written shard by shard, and held to its digest in bands of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import integrity
from .arrays import READ, StoredArray, believe, decoding, read_meta, shards, store_group, with_pipeline
from .errors import ItemError
from .ids import begun_digest
from .layout import Lake
from .shards import write_sharded

TILE = 512
SAMPLES = 4
"""Channels up to which a chunk has all of them; of more, each has its own chunks."""
BAND_BYTES = 2**26


def write_slide(
    lake: Lake,
    prefix: str,
    levels: Sequence[np.ndarray],
    meta: Mapping[str, Any],
    recorded: integrity.Recorded | None = None,
) -> StoredArray:
    """Write a slide; each of `levels` is (c, y, x), the largest first, and may be mapped.

    `meta` has `spacing` (x, y in mm of the first level, or None), `channels` (RGB, grey, None) and `levels`, their number.
    `recorded` as for volumes. Raises ValueError for levels that do not belong together.
    """
    kinds = {(one.dtype, one.shape[0], one.ndim) for one in levels}
    if len(kinds) != 1 or levels[0].ndim != 3 or meta["levels"] != len(levels) or not all(one.size for one in levels):
        raise ValueError("levels")

    def write(path: str) -> None:
        for number, level in enumerate(levels):
            chunks = (level.shape[0] if level.shape[0] <= SAMPLES else 1, *(min(n, TILE) for n in level.shape[1:]))
            sharded = shards(level.shape, chunks, level.dtype.itemsize)
            write_sharded(lake, f"{path}/{number}", level, chunks, sharded, "cyx")

    said = {"ome": _multiscale([one.shape for one in levels], meta), "diastole": dict(meta)}
    return store_group(lake, prefix, slide_digest(levels, meta), write, said, recorded, hold_slide)


def slide_digest(levels: Sequence[np.ndarray], meta: Mapping[str, Any]) -> str:
    """Digest of what a slide is: shapes, dtype, meta, and each level's bytes row by row, all channels of a row together."""
    return _digest([one.shape for one in levels], levels[0].dtype, meta, _bands(levels))


def hold_slide(lake: Lake, path: str, expected_digest: str) -> None:
    """Read all levels of a slide, a band at a time, and hold them to the digest of its content.

    Raises ItemError where a chunk is missing or damaged, or the content is another; EnvironmentFailure where storage fails.
    """
    meta = read_meta(lake, path)
    with decoding(lake, path):
        levels = []
        for number in range(int(meta["levels"])):
            array = with_pipeline("open_array", READ, lake.store.zarr(path, read_only=True), path=str(number), mode="r")
            believe(lake, f"{path}/{number}", array)
            levels.append(array)
        found = _digest([one.shape for one in levels], levels[0].dtype, meta, _bands(levels))
    if found != expected_digest:
        said = f"its levels are not what was written: damaged, or changed; {integrity.how_to_heal(path)}"
        raise ItemError("digest_mismatch", said)


def _digest(
    shapes: Sequence[Sequence[int]], dtype: np.dtype[Any], meta: Mapping[str, Any], bands: Iterator[np.ndarray]
) -> str:
    kind = {"levels": [list(shape) for shape in shapes], "dtype": dtype.newbyteorder("<").str, "meta": dict(meta)}
    running = begun_digest(kind)
    for band in bands:
        running.update(np.ascontiguousarray(np.moveaxis(band, 0, 1)).data)
    return running.hexdigest()[:32]


def _bands(levels: Sequence[Any]) -> Iterator[np.ndarray]:
    """Rows of each level, some chunks high."""
    for level in levels:
        channels, height, width = level.shape
        rows = max(BAND_BYTES // (channels * width * level.dtype.itemsize) // TILE, 1) * TILE
        for top in range(0, height, rows):
            yield np.asarray(level[:, top : top + rows, :])


def _multiscale(shapes: Sequence[Sequence[int]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The group's OME metadata; without a known size of pixels the scale is in pixels of the first level."""
    known = meta["spacing"] is not None
    x, y = meta["spacing"] if known else (1.0, 1.0)
    unit = {"unit": "millimeter"} if known else {}
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", **unit} for n in "yx")]
    datasets = []
    for number, (_, height, width) in enumerate(shapes):
        scale = [1.0, float(y) * shapes[0][1] / height, float(x) * shapes[0][2] / width]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    return {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets, "name": "0"}]}
