"""Stacks written as volumes, slice by slice, each at its place in the file."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from .. import Limits, lean
from . import dataset, pixels, series
from .pixels import Layout
from .slices import Slice


class Voxels:
    """An array (z, y, x) or (t, z, y, x) in a .npy file, zero where nothing was written."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._out = path.open("xb")
        self.dtype = dtype
        np.lib.format.write_array_header_1_0(
            self._out, {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        )
        self._out.flush()
        self._at, self._slice = self._out.tell(), math.prod(shape[-2:]) * dtype.itemsize
        os.ftruncate(self._out.fileno(), self._at + math.prod(shape) * dtype.itemsize)

    def put(self, place: int, data: np.ndarray) -> None:
        """Write the slice (y, x) at a place, counted through time and z."""
        raw = np.ascontiguousarray(data, self.dtype).data.cast("B")
        if raw.nbytes != self._slice:
            raise ItemError("header_lies", "its slices differ in shape")
        done = 0
        while done < raw.nbytes:
            done += os.pwrite(self._out.fileno(), raw[done:], self._at + place * self._slice + done)

    def close(self) -> None:
        """Close the file."""
        self._out.close()


@contextmanager
def voxels(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> Iterator[Voxels]:
    """A new array in a file."""
    out = Voxels(path, shape, dtype)
    try:
        yield out
    finally:
        out.close()


def digests(paths: Sequence[Path], limits: Limits) -> series.Digest:
    """A hash of the pixels of a slice, which is read again for that."""

    def digest(one: Slice) -> str:
        with _frames(paths[one.file], one.layout, limits, [one.frame]) as found:
            [frame] = found
            return hashlib.sha256(frame.data).hexdigest()

    return digest


@contextmanager
def _frames(
    path: Path, layout: Layout, limits: Limits, indices: list[int] | None = None
) -> Iterator[Iterator[np.ndarray]]:
    """Frames of a file whose header was read before: not again where they lie there as they are. Raises ItemError."""
    if layout.at is not None:
        with path.open("rb", buffering=0) as plain:
            yield pixels.plain_frames(plain, layout, indices)
        return
    tags = pixels.GREY_TAGS if layout.channels == 1 else None
    with dataset.read(path, limits.item_bytes + pixels.EXTRA_BYTES, tags=tags) as file:
        yield pixels.frames(file, layout, indices)


def write(
    stack: series.Stack, paths: Sequence[Path], out: Path, limits: Limits
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a stack; gives `meta` for write_volume, and what to say of it. Raises ItemError."""
    rows = stack.slices
    first = rows[0][0].layout
    if first.channels != 1:
        raise ItemError("unsupported", "its slices are in colour; only volumes of one value for each voxel are stored")
    rescales = {one.rescale for row in rows for one in row}
    shape = (*([len(rows)] if len(rows) > 1 else []), len(rows[0]), first.rows, first.columns)
    dtype = first.dtype if len(rescales) == 1 else np.dtype("<f4")
    if math.prod(shape) * dtype.itemsize > limits.item_bytes:
        raise ItemError("too_large", f"it decodes to {math.prod(shape) * dtype.itemsize} bytes; raise max_item_bytes")
    places: dict[int, dict[int, tuple[int, Slice]]] = {}
    for place, one in enumerate(one for row in rows for one in row):
        places.setdefault(one.file, {})[one.frame] = place, one
    non_finite = 0
    with voxels(out, shape, dtype) as made:
        for number, wanted in sorted(places.items()):
            layout: Layout = next(iter(wanted.values()))[1].layout
            with _frames(paths[number], layout, limits) as found:
                for frame, data in enumerate(found):
                    if frame not in wanted:
                        continue
                    place, one = wanted[frame]
                    if len(rescales) > 1:
                        data = (data * one.rescale[0] + one.rescale[1]).astype(np.float32)
                    if dtype.kind == "f":
                        non_finite += data.size - int(np.count_nonzero(np.isfinite(data)))
                    made.put(place, data)
    said = dict(stack.said)
    if len(rescales) > 1:
        said["rescale"] = "applied, it differs from slice to slice"
    if dtype.kind == "f":
        said["non_finite"] = non_finite
    return meta(stack.affine, next(iter(rescales)) if len(rescales) == 1 else (1.0, 0.0), said, known=stack.known), said


def meta(affine: np.ndarray, rescale: tuple[float, float], said: Mapping[str, Any], *, known: bool) -> dict[str, Any]:
    """`meta` for write_volume."""
    nibabel = lean.nibabel()
    made: dict[str, Any] = {
        "spacing": [round(float(size), 6) for size in nibabel.affines.voxel_sizes(affine)],
        "orientation": "".join(nibabel.aff2axcodes(affine)) if known else None,
        "affine": [float(number) for number in affine.ravel()],
        "rescale": [float(number) for number in rescale],
    }
    if "fourth_axis" in said:
        made["time_step"] = _time_step(said)
    return made


def _time_step(said: Mapping[str, Any]) -> float | None:
    """Seconds from one volume to the next, where they are times and evenly spaced."""
    if said["fourth_axis"] not in ("trigger_time_ms", "frame_reference_time_ms"):
        return None
    steps = np.diff([float(value) for value in said["fourth_axis_values"]]) / 1000.0
    return round(float(steps.mean()), 9) if np.ptp(steps) <= 0.01 * steps.mean() else None
