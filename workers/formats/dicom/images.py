"""Radiographs, ultrasound and captures: each frame is an image of its own, in millimetres where the file knows them.

What is dark in MONOCHROME1 is inverted, so that in all images of the lake more is brighter; `rescale` in the attributes gives
the file's own values back. Volumes are never inverted: their numbers are measurements.
"""

from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from .. import Limits
from . import dataset, pixels
from .dataset import File
from .pixels import Layout


def write(file: File, layout: Layout, out: Path, limits: Limits) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Write the frames (N, C, H, W); gives `meta`, what to say of them, and whether they are numbered. Raises ItemError."""
    if layout.frame_bytes * layout.frames > limits.item_bytes:
        raise ItemError("too_large", "its frames are more than max_item_bytes")
    spacing, spacing_from = _spacing(file.header)
    shape = (layout.frames, layout.channels, layout.rows, layout.columns)
    with out.open("xb") as made:
        np.lib.format.write_array_header_1_0(made, {"descr": layout.dtype.str, "fortran_order": False, "shape": shape})
        for frame in pixels.frames(file, layout):
            planes = frame[None] if frame.ndim == 2 else np.moveaxis(frame, -1, 0)
            if layout.photometric == "MONOCHROME1":
                planes = inverted(planes, layout)
            made.write(np.ascontiguousarray(planes).tobytes())
    said: dict[str, Any] = {} if spacing_from is None else {"spacing_from": spacing_from}
    said |= _values(file.header, layout)
    if layout.frames > 1:
        said |= _timing(file.header)
    return {"channels": "grey" if layout.channels == 1 else "RGB", "spacing": spacing}, said, layout.frames > 1


def inverted(data: np.ndarray, layout: Layout) -> np.ndarray:
    """More is brighter: the highest value that the stored bits can have becomes the lowest, and so on."""
    return (_turn(layout) - data.astype(np.int64)).astype(data.dtype)


def _turn(layout: Layout) -> int:
    return -1 if layout.dtype.kind == "i" else 2**layout.bits_stored - 1


def _values(header: Any, layout: Layout) -> dict[str, Any]:
    """How the stored numbers give the file's values, and which number is padding."""
    slope, intercept = (dataset.measured(header, k, 1) for k in ("RescaleSlope", "RescaleIntercept"))
    scale = (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0])
    padding = dataset.integer(header, "PixelPaddingValue")
    dark = layout.photometric == "MONOCHROME1"
    said: dict[str, Any] = {"value_table": True} if "ModalityLUTSequence" in header else {}
    if dark:
        turn = _turn(layout)
        said["inverted"] = True
        scale = (-scale[0], scale[1] + scale[0] * turn)
        padding = None if padding is None else turn - padding
    if scale != (1.0, 0.0):
        said["rescale"] = list(scale)
    return said if padding is None else said | {"padding_value": padding}


def _spacing(header: Any) -> tuple[list[float] | None, str | None]:
    """[x, y] in mm of a pixel, and which element says so. Of the detector only where nothing is known of the patient."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = dataset.measured(header, keyword, 2)
        if found is not None and min(found) > 0:
            return [found[1], found[0]], keyword
    regions = dataset.items(header, "SequenceOfUltrasoundRegions")
    sizes = {tuple(_region(one)) for one in regions}
    if len(sizes) == 1 and all(sizes):
        [(x, y)] = sizes
        return [x, y], "SequenceOfUltrasoundRegions"
    return None, None


def _region(region: Any) -> tuple[float, ...]:
    """(x, y) in mm of a pixel of a region that shows tissue in two dimensions, else nothing."""
    units = [dataset.integer(region, k) for k in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection")]
    sizes = [dataset.number(region, k) for k in ("PhysicalDeltaX", "PhysicalDeltaY")]
    if units != [3, 3] or dataset.integer(region, "RegionSpatialFormat") != 1 or not all(sizes):
        return ()
    return tuple(10.0 * abs(size) for size in sizes if size is not None)


def _timing(header: Any) -> dict[str, Any]:
    """Frames in time."""
    step = dataset.number(header, "FrameTime")
    rate = dataset.number(header, "CineRate") or dataset.number(header, "RecommendedDisplayFrameRate")
    vector = dataset.numbers(header, "FrameTimeVector")
    said: dict[str, Any] = {}
    if step:
        said["frame_time_ms"] = step
    elif vector is not None and len(vector) > 1:
        said["frame_times_ms"] = list(vector)
    elif rate:
        said["frame_time_ms"] = 1000.0 / rate
    return said
