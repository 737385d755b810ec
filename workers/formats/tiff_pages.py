"""Pages of a TIFF: opened without following it to other files, told by their tags, decoded one after the other.

tifffile reads pages that are plain, deflated or packed; Pillow's libtiff those in LZW, JPEG and others, of 8 bits, and grey of 16
bits; what is left is tifffile's with imagecodecs, if that is installed.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import ome
from .image import real_size

PLAIN = {1, 8, 32946, 32773}
"""Compressions that tifffile decodes by itself: none, deflate, deflate of Adobe, PackBits."""
GREY, RGB, YCBCR = 1, 2, 6
PHOTOMETRIC = {0: "white is zero", 3: "a palette", 5: "CMYK", 8: "L*a*b*"}
_UNITS = {"micron": 1e-3, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3, "nm": 1e-6, "mm": 1.0, "cm": 10.0}
"""Of ImageJ, in mm."""

_BASELINE = (254, 532)
"""Tags of the standard, of which none may be lost."""


@dataclass(frozen=True)
class Stack:
    """What a file holds, told from its tags alone."""

    count: int
    axes: str  # of each image as stored in the file: YX, YXS, SYX or CYX
    shape: tuple[int, ...]  # likewise
    dtype: np.dtype[Any]
    alpha: bool  # the last sample
    before: tuple[tuple[str, int], ...] = ()  # axes of the images and their sizes: T, Z, C, …; the first is the slowest

    @property
    def channels(self) -> int:
        """Of each image, alpha too."""
        return 1 if self.axes == "YX" else self.shape[-1] if self.axes == "YXS" else self.shape[0]

    @property
    def nbytes(self) -> int:
        """Of one image."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def deep(self) -> bool:
        """Whether it is a volume, not images."""
        return any(axis == "Z" for axis, _ in self.before)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file of tifffile's, that follows no name to another file. Raises ItemError for what tifffile raises of its tags, when it
    is opened or later.
    """
    import logging

    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it notices may hold header texts
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            if len(file.pages):
                _check_tags(file)
            if len(file.pages) and file.pages.first.is_ome:
                ome.check(file.pages.first.description)
            if len(file.pages) and (
                file.is_ndtiff or file.is_mmstack or file.is_scn or file.is_ndpi or file.is_philips
            ):
                raise ItemError("unsupported", "its layout is a vendor's own; convert it to OME-TIFF")
            yield file
    except (ItemError, MemoryError):
        raise
    except Exception as error:  # tifffile raises classes of many kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ItemError("unreadable", "it begins as a TIFF does, but its tags cannot be read") from error


def _check_tags(file: Any) -> None:
    """Refuse a file whose first page has tags that cannot be read, since tifffile leaves those out. Raises ItemError."""
    page, kind, handle = file.pages.first, file.tiff, file.filehandle
    handle.seek(page.offset)
    (count,) = struct.unpack(kind.tagnoformat, handle.read(kind.tagnosize))
    entries = handle.read(min(count, 2**16) * kind.tagsize)
    there = {
        struct.unpack_from(kind.byteorder + "H", entries, at)[0] for at in range(0, len(entries) - 1, kind.tagsize)
    }
    lost = there - {tag.code for tag in page.tags}
    cut = any(tag.valueoffset + tag.valuebytecount > handle.size for tag in page.tags)
    if cut or any(_BASELINE[0] <= code <= _BASELINE[1] for code in lost):
        raise ItemError("truncated", "it ends before its last tag, or one is damaged; copy it again")


def check_page(page: Any, dtypes: Sequence[str]) -> bool:
    """Whether a page has an alpha channel. Raises ItemError for pixels that are not grey or RGB, upright, of these dtypes."""
    if page.photometric not in (GREY, RGB, YCBCR):
        said = PHOTOMETRIC.get(int(page.photometric), f"of kind {int(page.photometric)}")
        raise ItemError("unsupported", f"its pixels are {said}; grey and RGB are read: convert it")
    orientation = page.tags.get(274)
    if orientation is not None and int(orientation.value) != 1:
        raise ItemError(
            "unsupported", f"it is turned or mirrored (orientation {int(orientation.value)}); save it upright"
        )
    if page.dtype is None or page.dtype.name not in dtypes:
        raise ItemError("unsupported", f"its values are {page.dtype}, not one of {', '.join(dtypes)}: convert them")
    alpha = len(page.extrasamples) == 1 and int(page.extrasamples[0]) in (1, 2)
    if any(int(extra) in (1, 2) for extra in page.extrasamples) and not (alpha and page.dtype.kind == "u"):
        raise ItemError("unsupported", "it has transparency that is no plain alpha channel; flatten it")
    return alpha


def check_opaque(alpha: np.ndarray) -> None:
    """Refuse what lies behind transparency: it is nobody's measurement. Raises ItemError."""
    if (alpha != np.iinfo(alpha.dtype).max).any():
        raise ItemError("unsupported", "it is transparent in parts; put it on the background that it belongs to")


def images(path: Path, file: Any, stack: Stack) -> Iterator[np.ndarray]:
    """Each image as the file has its axes. Raises ItemError where the file ends before, or is damaged."""
    series, page = file.series[0], file.pages[0]
    by_planes = stack.axes == "CYX"  # each channel is a page of its own
    planes = stack.count * (stack.shape[0] if by_planes else 1)
    try:
        if series.dataoffset is not None:
            found = _contiguous(path, series.dataoffset, stack)
        elif int(page.compression) in PLAIN:
            found = (one.asarray() for one in series.pages)
        elif _pillow_knows(series, page, planes):
            found = _through_pillow(path, planes)
        else:
            found = (one.asarray() for one in series.pages)
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


def _contiguous(path: Path, offset: int, stack: Stack) -> Iterator[np.ndarray]:
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


def _pillow_knows(series: Any, page: Any, planes: int) -> bool:
    """Whether Pillow reads these pages, in the file's order, as they are stored."""
    fits = page.dtype.name == "uint8" or (page.dtype.name == "uint16" and page.samplesperpixel == 1)
    return (
        fits and int(page.compression) in (2, 3, 4, 5, 7) and [one.index for one in series.pages] == list(range(planes))
    )


def _through_pillow(path: Path, planes: int) -> Iterator[np.ndarray]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # check_size knows the bytes
    with Image.open(path, formats=("TIFF",)) as image:
        for number in range(planes):
            image.seek(number)
            if image.mode not in ("L", "RGB", "I;16", "I;16B", "RGBA"):
                raise ItemError("unsupported", "its compression is read for 8 bits, or grey of 16, only; save it plain")
            yield np.asarray(image)


def spacing(file: Any) -> list[float] | None:
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


def imagej_depth(file: Any) -> float | None:
    """Distance of planes in mm, of ImageJ's metadata."""
    said = (file.imagej_metadata or {}) if file.is_imagej else {}
    in_mm, depth = _UNITS.get(str(said.get("unit", "")).lower()), said.get("spacing")
    if in_mm is None or not isinstance(depth, int | float) or not np.isfinite(depth) or depth <= 0:
        return None
    return float(f"{depth * in_mm:.9g}")
