"""Whole slides: pyramids in TIFF (OME-TIFF with SubIFDs, Aperio SVS, reduced pages in tiles), read tile by tile.

Each level becomes a (c, y, x) file; memory is that of some tiles, never of a level. Label, macro and thumbnail images, which show
labels with names, are left out. A tile that is missing is an error, never filled up.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, ome, tiff_pages
from .image import IMAGE_BYTES
from .tiff_pages import RGB, YCBCR

DTYPES = ("uint8", "uint16", "int16", "float32")
TILE_BYTES = 2**26
"""One tile, decoded, at most."""
RUN_BYTES = 2**24
"""Tiles side by side that are written together."""
LEVELS = 32
_JPEG = (6, 7)
_ASPECT = 0.05


@dataclass(frozen=True)
class Level:
    """One resolution: its pages, one for each channel or one for all."""

    pages: tuple[Any, ...]
    shape: tuple[int, int, int]
    """(c, y, x), without alpha."""


@dataclass(frozen=True)
class Slide:
    """A pyramid, told from its tags alone; the first level is the largest."""

    levels: tuple[Level, ...]
    dtype: np.dtype[Any]
    alpha: bool
    number: int
    """Of its image in the OME-XML."""
    left_out: int
    """Label, macro and thumbnail images."""

    @property
    def nbytes(self) -> int:
        """Of all levels, decoded."""
        return sum(prod(level.shape) for level in self.levels) * self.dtype.itemsize

    def hold(self, limits: Limits) -> None:
        """Raises ItemError where its levels or its tiles are larger than they may be."""
        if self.nbytes > limits.item_bytes:
            raise ItemError(
                "too_large",
                f"its {len(self.levels)} levels take {self.nbytes} bytes unpacked, more than {limits.item_bytes}; "
                f"ingest it with --max-item-gb {-(-self.nbytes // 2**30)}",
            )
        for level in self.levels:
            tile = max(prod(page.keyframe.chunks) for page in level.pages) * self.dtype.itemsize
            if tile > TILE_BYTES:
                said = f"its tiles take {tile} bytes each, more than {TILE_BYTES}; save it in tiles of 512 or 1024"
                raise ItemError("too_large", said)


def find(file: Any) -> Slide | None:
    """The slide that a file is; None where it is none. Raises ItemError for one that is not read."""
    series = file.series
    if not series:
        return None
    number = max(range(len(series)), key=lambda one: prod(series[one].shape))
    base = series[number]
    levels = list(base.levels) if len(base.levels) > 1 else [base, *_reduced(series, base)]
    page = base.keyframe
    large = page.is_tiled and prod(base.shape) * page.dtype.itemsize > IMAGE_BYTES if page.dtype else False
    if "Z" in base.axes or not (len(levels) > 1 or file.is_svs or (large and page.index == 0)):
        return None
    if len(page.subifds or ()) >= len(levels):
        raise ItemError("unsupported", "its smaller levels cannot all be found; copy it again, or save it as OME-TIFF")
    alpha = tiff_pages.check_page(page, DTYPES)
    others = [one for one in series if one not in levels]
    if any(len(one.levels) > 1 for one in others):
        raise ItemError("unsupported", "it holds several pyramids; save each in a file of its own")
    if len(levels) > LEVELS:
        raise ItemError("header_lies", f"it has {len(levels)} levels, more than {LEVELS}")
    found = tuple(_level(one, page, alpha=alpha) for one in levels)
    _check_sizes(found)
    compression = int(page.compression)
    if page.photometric == YCBCR and compression not in _JPEG:
        raise ItemError("unsupported", "its colours are YCbCr outside of a JPEG; save it as RGB")
    dtype = page.dtype.newbyteorder(file.byteorder)
    return Slide(found, dtype, alpha, number, len(others))


def read(file: Any, slide: Slide, folder: Path) -> dict[str, Any]:
    """Write the levels into `folder`/level0.npy and on; the entry of kind `slide`. Raises ItemError."""
    names = []
    for number, level in enumerate(slide.levels):
        names.append(f"level{number}.npy")
        _write(level, slide, folder / names[-1])
    page = slide.levels[0].pages[0].keyframe
    description = file.pages.first.description
    said = ome.read(description, slide.number) if file.is_ome else ome.Ome()
    x, y, _ = said.spacing
    svs = _aperio(description) if file.is_svs else {}
    spacing = [x, y] if x and y else [svs["mpp"] / 1000] * 2 if "mpp" in svs else tiff_pages.spacing(file)
    channels = "RGB" if page.photometric in (RGB, YCBCR) else "grey" if slide.levels[0].shape[0] == 1 else None
    attributes: dict[str, Any] = {"format": "tiff", "levels": len(names), "images_left_out": slide.left_out}
    attributes |= {"magnification": svs["appmag"]} if "appmag" in svs else {}
    attributes |= {"dyes": list(said.dyes)} if any(said.dyes) else {}
    meta = {"channels": channels, "spacing": spacing, "levels": len(names)}
    entry = {"kind": "slide", "file": names[0], "levels": names, "suffix": "", "meta": meta, "attributes": attributes}
    return {**entry, "modality": None}


def _reduced(series: list[Any], base: Any) -> list[Any]:
    """Levels that are pages of their own: reduced, in tiles, of the same kind as the largest."""
    page = base.keyframe
    same = [
        one
        for one in series
        if one is not base
        and one.keyframe.is_tiled
        and one.keyframe.is_reduced
        and (one.axes, one.keyframe.dtype) == (base.axes, page.dtype)
        and one.keyframe.photometric == page.photometric
    ]
    return sorted(same, key=lambda one: -prod(one.shape)) if page.is_tiled else []


def _level(series: Any, base: Any, *, alpha: bool) -> Level:
    """Raises ItemError for axes other than channels, y and x."""
    axes, shape, pages = series.axes, tuple(map(int, series.shape)), tuple(series.pages)
    if any(one is None for one in pages):
        raise ItemError("truncated", "some of its planes are missing, or in other files; save it in one file")
    if axes == "YXS":
        shape = (shape[2], *shape[:2])
    elif axes == "YX":
        shape = (1, *shape)
    elif axes not in ("SYX", "CYX"):
        raise ItemError("unsupported", f"it is a slide with axes {axes}; those of channels, Y and X are read")
    same = series.keyframe.dtype == base.dtype and series.keyframe.samplesperpixel == base.samplesperpixel
    if not same or len(pages) * series.keyframe.samplesperpixel != shape[0]:
        raise ItemError("header_lies", "its levels do not have the same channels")
    return Level(pages, (shape[0] - alpha, shape[1], shape[2]))


def _check_sizes(levels: tuple[Level, ...]) -> None:
    channels, height, width = levels[0].shape
    before = levels[0].shape[1:]
    for level in levels[1:]:
        y, x = height / level.shape[1], width / level.shape[2]
        smaller = level.shape[1] <= before[0] and level.shape[2] <= before[1] and level.shape[1:] != before
        alike = abs(x - y) <= _ASPECT * max(x, y) + 2 * max(x, y) / min(level.shape[1:])
        if level.shape[0] != channels or not smaller or not alike:
            raise ItemError("header_lies", "its levels are not the same picture, each smaller than the one before")
        before = level.shape[1:]


def _write(level: Level, slide: Slide, path: Path) -> None:
    """Tiles into a (c, y, x) file, some of them at a time."""
    target = slide.dtype.newbyteorder("<")
    channels, height, width = level.shape
    written = 0
    with path.open("xb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": target.str, "fortran_order": False, "shape": level.shape})
        out.flush()
        begin = out.tell()
        for first, top, left, run in _runs(level, slide):
            for offset, plane in enumerate(run[: channels - first]):
                place = begin + ((first + offset) * height + top) * width * target.itemsize
                if plane.shape[1] == width:
                    _put(out, np.ascontiguousarray(plane, target).tobytes(), place)
                else:
                    for row, values in enumerate(plane):
                        at = place + (row * width + left) * target.itemsize
                        _put(out, np.ascontiguousarray(values, target).tobytes(), at)
                written += plane.size
            if slide.alpha and first + len(run) > channels:
                tiff_pages.check_opaque(run[-1])
    if written != prod(level.shape):
        raise ItemError("header_lies", "its tiles do not cover its levels")


def _put(out: BinaryIO, data: bytes, at: int) -> None:
    if os.pwrite(out.fileno(), data, at) != len(data):
        raise OSError(28, "No space left on device")


def _runs(level: Level, slide: Slide) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """(first channel, y, x, (c, y, x) values) of tiles that lie side by side."""
    pieces: list[np.ndarray] = []
    start, end, total = (0, 0, 0), 0, 0
    for channel, top, left, piece in _tiles(level, slide):
        fits = pieces and (channel, top, left) == (start[0], start[1], end) and piece.shape[:2] == pieces[0].shape[:2]
        if not fits or total > RUN_BYTES:
            if pieces:
                yield (*start, np.concatenate(pieces, 2))
            pieces, start, total = [], (channel, top, left), 0
        pieces.append(piece)
        end, total = left + piece.shape[2], total + piece.nbytes
    if pieces:
        yield (*start, np.concatenate(pieces, 2))


def _tiles(level: Level, slide: Slide) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """(first channel, y, x, (c, y, x) values) of each tile. Raises ItemError for one that is missing or damaged."""
    _, height, width = level.shape
    for number, page in enumerate(level.pages):
        try:
            for segment, (plane, _, top, left, _), _ in page.segments(maxworkers=1, buffersize=RUN_BYTES):
                if segment is None:
                    raise ItemError(
                        "truncated", "one of its tiles is missing; copy it again, or save it with all tiles"
                    )
                values = np.moveaxis(segment[0, : height - top, : width - left], -1, 0)
                if values.dtype.newbyteorder("=") != slide.dtype.newbyteorder("="):
                    raise ItemError("header_lies", "its tiles are not what its tags say")
                yield number + plane, top, left, values
        except (ItemError, MemoryError):
            raise
        except Exception as error:  # tifffile and imagecodecs raise classes of many kinds
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = f"one of its tiles cannot be decoded ({type(error).__name__}); copy it again"
            raise ItemError("truncated", said) from error


def _aperio(description: str) -> dict[str, float]:
    """`mpp` (µm of a pixel) and `appmag` (magnification), the numbers alone."""
    found = {}
    for key, value in re.findall(r"\b(MPP|AppMag) ?= ?(\d{1,4}(?:\.\d{1,12})?)(?=[|\s]|$)", description):
        if float(value) > 0:
            found[key.lower()] = float(value)
    return found
