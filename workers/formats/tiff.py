"""TIFF of one image or of a stack of images of one shape, pixels as they are stored.

- Grey, RGB and more channels, in planes or interleaved, of uint8, uint16, int16 or float32. Frames in time and pages that
  say nothing of themselves are images; a z-stack is a volume, and refused, never taken for images.
- Pages of several shapes, pyramids and thumbnails (whole slides) are refused, as are palettes, CMYK, white-is-zero and real
  transparency; an opaque alpha channel is left out. An orientation tag other than upright is refused.
- The pixel size is from the resolution, or from ImageJ's unit; what printers use is left out, as in image.py.
- tifffile reads pages that are plain, deflated or packed; Pillow's libtiff those in LZW, JPEG and others, of 8 bits, and grey
  of 16 bits.

Nothing of descriptions, dates, or private tags gets into the lake.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source
from .image import check_size, entry, real_size
from .stack import DTYPES

name = "tiff"

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN = {1, 8, 32946, 32773}
"""Compressions that tifffile decodes by itself: none, deflate, deflate of Adobe, PackBits."""
_GREY, _RGB, _YCBCR = 1, 2, 6
_PHOTOMETRIC = {0: "white is zero", 3: "a palette", 5: "CMYK", 8: "L*a*b*"}
_UNITS = {"micron": 1e-3, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3, "nm": 1e-6, "mm": 1.0, "cm": 10.0}
"""Of ImageJ, in mm."""


@dataclass(frozen=True)
class _Stack:
    """What a file holds, told from its tags alone."""

    count: int
    axes: str  # of each image as stored in the file: YX, YXS, SYX or CYX
    shape: tuple[int, ...]  # likewise
    dtype: np.dtype[Any]
    alpha: bool  # the last sample

    @property
    def channels(self) -> int:
        return 1 if self.axes == "YX" else self.shape[-1] if self.axes == "YXS" else self.shape[0]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a TIFF does."""
    return head.startswith(_MAGICS)


def preflight(path: Path, limits: Limits) -> None:
    """Hold the tags to the limits, before a pixel is decoded."""
    if source.is_gzip(path):
        raise ItemError("unsupported", "it is an image inside of a gzip file; unzip it")
    with _opened(path) as file:
        stack = _stack(file)
        check_size(stack.nbytes, limits)
        if stack.nbytes * stack.count > limits.item_bytes:
            raise ItemError(
                "too_large", f"its tags claim {stack.nbytes * stack.count} bytes; raise max_item_bytes if so"
            )


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Decode the images into `folder`/images.npy as (N, C, H, W), one after the other."""
    del options
    with _opened(path) as file:
        stack = _stack(file)
        kept = stack.channels - stack.alpha
        target = stack.dtype.newbyteorder("<")
        with (folder / "images.npy").open("xb") as out:
            height, width = stack.shape[:2] if stack.axes == "YXS" else stack.shape[-2:]
            shape = (stack.count, kept, height, width)
            np.lib.format.write_array_header_1_0(out, {"descr": target.str, "fortran_order": False, "shape": shape})
            for image in _images(path, file, stack):
                planes = (
                    image[None] if stack.axes == "YX" else np.moveaxis(image, -1, 0) if stack.axes == "YXS" else image
                )
                if stack.alpha and (planes[-1] != np.iinfo(stack.dtype).max).any():
                    raise ItemError(
                        "unsupported", "it is transparent in parts; put it on the background that it belongs to"
                    )
                out.write(np.ascontiguousarray(planes[:kept], target).data)
        rgb = file.pages[0].photometric in (_RGB, _YCBCR)
        meta = {"channels": "RGB" if rgb else "grey" if kept == 1 else None, "spacing": _spacing(file)}
    return [entry(meta, {"format": "tiff"}, numbered=stack.count > 1)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of tifffile's. Raises ItemError for what tifffile raises of its tags, when it is opened or later."""
    import logging

    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it notices may hold header texts
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except (ItemError, MemoryError):
        raise
    except Exception as error:  # tifffile raises classes of many kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ItemError("unreadable", "it begins as a TIFF does, but its tags cannot be read") from error


def _stack(file: Any) -> _Stack:
    """Raises ItemError for what is not one image, or several of one shape."""
    series = file.series
    if not series:
        raise ItemError("unreadable", "it holds no image")
    page = file.pages[0]
    reduced = page.is_reduced or page.subifds
    if len(series) > 1 or len(series[0].levels) > 1 or reduced:
        raise ItemError("unsupported", "its pages have several shapes, as those of whole slides; save one level alone")
    if page.photometric not in (_GREY, _RGB, _YCBCR):
        said = _PHOTOMETRIC.get(int(page.photometric), f"of kind {int(page.photometric)}")
        raise ItemError("unsupported", f"its pixels are {said}; grey and RGB are read: convert it")
    orientation = page.tags.get(274)
    if orientation is not None and int(orientation.value) != 1:
        raise ItemError(
            "unsupported", f"it is turned or mirrored (orientation {int(orientation.value)}); save it upright"
        )
    if page.dtype is None or page.dtype.name not in DTYPES:
        raise ItemError(
            "unsupported", f"its values are {page.dtype}; images are one of {', '.join(DTYPES)}: convert them"
        )
    alpha = len(page.extrasamples) == 1 and int(page.extrasamples[0]) in (1, 2)
    if any(int(extra) in (1, 2) for extra in page.extrasamples) and not (alpha and page.dtype.kind == "u"):
        raise ItemError("unsupported", "it has transparency that is no plain alpha channel; flatten it")
    return _axes(series[0].axes, tuple(series[0].shape), page.dtype.newbyteorder(file.byteorder), alpha=alpha)


def _axes(axes: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, alpha: bool) -> _Stack:
    """Tell images from volumes by the axes that tifffile finds."""
    image = next((end for end in ("CYX", "SYX", "YXS", "YX") if axes.endswith(end)), None)
    before = axes[: len(axes) - len(image)] if image else axes
    if image is None or "Z" in axes or len(before) > 1 or before not in ("", "I", "Q", "T"):
        what = "a volume" if "Z" in axes else "neither an image nor a plain stack of images"
        raise ItemError("unsupported", f"it is {what} (axes {axes}); save its planes as images, or a volume as NIfTI")
    count = shape[0] if before else 1
    return _Stack(count, image, shape[len(before) :], dtype, alpha)


def _images(path: Path, file: Any, stack: _Stack) -> Iterator[np.ndarray]:
    """Each image as the file has its axes. Raises ItemError where the file ends before, or is damaged."""
    series, page = file.series[0], file.pages[0]
    by_planes = stack.axes == "CYX"  # each channel is a page of its own
    planes = stack.count * (stack.shape[0] if by_planes else 1)
    try:
        if series.dataoffset is not None:
            found = _contiguous(path, series.dataoffset, stack)
        elif int(page.compression) in _PLAIN:
            found = (one.asarray() for one in series.pages)
        else:
            found = _through_pillow(path, planes)
        whole = found if not by_planes or series.dataoffset is not None else _joined(found, stack.shape[0])
        count = 0
        for image in whole:
            if image.shape != stack.shape or image.dtype.newbyteorder("=") != stack.dtype.newbyteorder("="):
                raise ItemError("header_lies", "its pages are not what its tags say")
            count += 1
            yield image
    except ItemError:
        raise
    except Exception as error:  # tifffile and zlib raise classes of many kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ItemError("truncated", f"its pixels cannot be decoded ({type(error).__name__}); copy it again") from error
    if count != stack.count:
        raise ItemError("header_lies", f"it has {count} pages, its tags say {stack.count}")


def _contiguous(path: Path, offset: int, stack: _Stack) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        file.seek(offset)
        for _ in range(stack.count):
            data = file.read(stack.nbytes)
            if len(data) < stack.nbytes:
                raise ItemError("truncated", "it ends before its last pixel; copy it again")
            yield np.frombuffer(data, stack.dtype).reshape(stack.shape)


def _joined(planes: Iterator[np.ndarray], channels: int) -> Iterator[np.ndarray]:
    group = []
    for plane in planes:
        group.append(plane)
        if len(group) == channels:
            yield np.stack(group)
            group = []


def _through_pillow(path: Path, planes: int) -> Iterator[np.ndarray]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # check_size knows the bytes
    with Image.open(path, formats=("TIFF",)) as image:
        for number in range(planes):
            image.seek(number)
            if image.mode not in ("L", "RGB", "I;16", "I;16B", "RGBA"):
                raise ItemError("unsupported", "its compression is read for 8 bits, or grey of 16, only; save it plain")
            yield np.asarray(image)


def _spacing(file: Any) -> list[float] | None:
    """[x, y] in mm, from the resolution and its unit, which ImageJ keeps elsewhere."""
    page = file.pages[0]
    values = [page.tags.get(code) for code in (282, 283)]
    if any(value is None for value in values):
        return None
    per_unit = [float(v.value[0]) / float(v.value[1]) if v.value[1] else 0.0 for v in values]
    unit = page.tags.get(296)
    in_mm = {2: 25.4, 3: 10.0}.get(int(unit.value)) if unit is not None else 25.4
    if file.is_imagej:
        in_mm = _UNITS.get(str((file.imagej_metadata or {}).get("unit", "")).lower())
    return None if in_mm is None else real_size(per_unit[0] / in_mm, per_unit[1] / in_mm)
