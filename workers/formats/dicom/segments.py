"""Segmentations, on a grid of their own: frames that were left out, since nothing is in them, are zero.

Binary segments that do not overlap are one volume of segment numbers; overlapping ones, and fractional ones, are a volume
each, with the segment's number as the suffix. What a segment is, is said in codes (scheme and value), never in its label.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from .. import Limits
from . import dataset, pixels, series, slices, volume
from .dataset import File
from .pixels import Layout
from .slices import Slice

_CODE = re.compile(r"\d{4,18}|[A-Z]\d?-[0-9A-F]{4,6}")
_SCHEMES = ("SCT", "SRT", "SNM3", "99SDM", "DCM", "FMA", "UMLS", "NCIt", "RADLEX", "LN")


def write(file: File, layout: Layout, folder: Path, start: str, limits: Limits) -> Iterator[dict[str, Any]]:
    """Write the volumes; gives for each `file`, `suffix`, `meta` and what to say of it. Raises ItemError."""
    header = file.header
    coded = {number: _coded(one) for one in dataset.items(header, "SegmentSequence") if (number := _number(one))}
    kind = dataset.text(header, "SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL"):
        raise ItemError("unsupported", "it is a segmentation of a kind that is not binary and not fractional")
    frames = list(slices.of_file(file, 0, layout))
    affine, count, places = _grid(frames)
    numbers = sorted({one.segment for one in frames if one.segment is not None})
    if not numbers or any(one.segment is None for one in frames) or numbers[0] < 1 or numbers[-1] > 65535:
        raise ItemError("header_lies", "its frames do not say which segment they show")
    shape = (count, layout.rows, layout.columns)
    dtype = layout.dtype if kind == "FRACTIONAL" else np.dtype("u1" if numbers[-1] < 256 else "<u2")
    apart = kind == "FRACTIONAL" or _overlap(file, layout, frames, places)
    volumes = len(numbers) if apart else 1
    if int(np.prod(shape)) * dtype.itemsize * volumes > limits.item_bytes:
        raise ItemError("too_large", f"its {volumes} volumes are more than max_item_bytes")
    rescale = (1.0, 0.0)
    if kind == "FRACTIONAL":
        most = dataset.measured(header, "MaximumFractionalValue", 1)
        if most is None or most[0] <= 0:
            raise ItemError("header_lies", "it does not say which of its numbers means: wholly of the segment")
        rescale = (1.0 / most[0], 0.0)
    for chosen in [[number] for number in numbers] if apart else [numbers]:
        name = f"{start}segments-{chosen[0]}.npy" if apart else f"{start}segments.npy"
        _fill(file, layout, folder / name, [(p, f) for p, f in zip(places, frames, strict=True) if f.segment in chosen],
              shape, dtype, labels=kind == "BINARY")  # fmt: skip
        said = {"segments": [{"number": number, **coded.get(number, {})} for number in chosen]}
        yield {
            "file": name,
            "suffix": f"#{chosen[0]}" if apart and volumes > 1 else "",
            "meta": volume.meta(affine, rescale, {}, known=True),
            "said": said,
        }


def segmented(header: Any) -> str | None:
    """The series that was segmented, where there is one."""
    found = {dataset.uid(one, "SeriesInstanceUID") for one in dataset.items(header, "ReferencedSeriesSequence")}
    return found.pop() if len(found) == 1 else None


def _grid(frames: Sequence[Slice]) -> tuple[np.ndarray, int, list[int]]:
    """Affine, number of slices, and the slice of each frame. Raises ItemError."""
    first = frames[0]
    if any(f.position is None or f.orientation is None or f.spacing is None for f in frames):
        raise ItemError("no_geometry", "its frames do not say where they lie")
    if (
        any(f.orientation != first.orientation or f.spacing != first.spacing for f in frames)
        or first.orientation is None
    ):
        raise ItemError("inconsistent_series", "its frames differ in direction or pixel size")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    points = np.array([f.position for f in frames], float)
    at = points @ normal
    apart = np.diff(np.unique(np.round(at, 3)))
    step = abs(first.between or 0.0) or (float(apart.min()) if len(apart) else abs(first.thickness or 0.0))
    if step <= 0:
        raise ItemError("no_geometry", "its frames do not say how far they are apart")
    low = int(np.argmin(at))
    places = np.rint((at - at[low]) / step).astype(int)
    off = points - (points[low] + places[:, None] * step * normal)
    if np.abs(off).max() > min(max(series.APART * step, series.ROUNDED), 0.4 * step):
        raise ItemError("uneven_slices", "its frames do not lie on one even grid")
    count = int(places.max()) + 1
    if count > 2**16:
        raise ItemError("header_lies", f"its frames lie {count} slices apart")
    return series.affine(first, normal * step, points[low]), count, [int(place) for place in places]


def _overlap(file: File, layout: Layout, frames: Sequence[Slice], places: Sequence[int]) -> bool:
    """Whether two segments have a voxel in common."""
    if len(set(places)) == len(places):
        return False
    order = sorted(range(len(frames)), key=lambda index: places[index])
    taken, at = np.zeros((layout.rows, layout.columns), bool), -1
    for index, data in zip(order, pixels.frames(file, layout, order), strict=True):
        if places[index] != at:
            at = places[index]
            taken[:] = False
        inside = data > 0
        if (taken & inside).any():
            return True
        taken |= inside
    return False


def _fill(
    file: File,
    layout: Layout,
    out: Path,
    chosen: Sequence[tuple[int, Slice]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    labels: bool,
) -> None:
    """Write frames at their places; with `labels` their segment's number wherever they are not zero."""
    order = sorted(chosen, key=lambda one: (one[0], one[1].segment))
    with volume.voxels(out, shape, dtype) as made:
        slab, at = np.zeros(shape[1:], dtype), -1
        indices = [one.frame for _, one in order]
        for (place, one), data in zip(order, pixels.frames(file, layout, indices), strict=True):
            if place != at:
                if at >= 0:
                    made.put(at, slab)
                slab[:] = 0
                at = place
            inside = data > 0
            slab[inside] = one.segment if labels else data[inside]
        made.put(at, slab)


def _number(segment: Any) -> int | None:
    return dataset.integer(segment, "SegmentNumber")


def _coded(segment: Any) -> dict[str, Any]:
    """Category and type of a segment as scheme:value."""
    said: dict[str, Any] = {}
    for keyword, name in (
        ("SegmentedPropertyCategoryCodeSequence", "category"),
        ("SegmentedPropertyTypeCodeSequence", "type"),
        ("AnatomicRegionSequence", "region"),
    ):
        code = dataset.first(segment, keyword)
        value = dataset.text(code, "CodeValue") if code is not None else None
        scheme = dataset.text(code, "CodingSchemeDesignator") if code is not None else None
        if value and scheme in _SCHEMES and _CODE.fullmatch(value):
            said[name] = f"{scheme}:{value}"
    algorithm = dataset.text(segment, "SegmentAlgorithmType")
    return said | ({"made": algorithm} if algorithm in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL") else {})
