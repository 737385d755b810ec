"""TIFF and OME-TIFF of images, of volumes and of whole slides, pixels as they are stored.

- Images: one, or several of one shape. Grey, RGB and more channels, in planes or interleaved, of uint8, uint16, int16 or float32.
  Frames in time and pages that say nothing of themselves are images.
- A z-stack, of OME or of ImageJ, is a volume: zstack.py. A pyramid, or one large image in tiles, is a slide: slide.py.
- Pages of several shapes are refused, as are palettes, CMYK, white-is-zero and real transparency; an opaque alpha channel is left
  out. An orientation tag other than upright is refused, and files that go on in other files.
- The pixel size is from OME-XML, the resolution, or ImageJ's unit; what printers use is left out, as in image.py.

Nothing of descriptions, dates, or private tags gets into the lake but numbers, and the names of dyes that ome.py knows.
"""

from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, ome, slide, source, zstack
from .image import check_size, entry
from .stack import DTYPES
from .tiff_pages import RGB, YCBCR, Stack, check_opaque, check_page, images, opened, spacing

name = "tiff"

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a TIFF does."""
    return head.startswith(_MAGICS)


def preflight(path: Path, limits: Limits) -> None:
    """Hold the tags to the limits, before a pixel is decoded."""
    if source.is_gzip(path):
        raise ItemError("unsupported", "it is an image inside of a gzip file; unzip it")
    with opened(path) as file:
        if (found := slide.find(file)) is not None:
            found.hold(limits)
            return
        stack = _stack(file)
        check_size(stack.nbytes, limits)
        if stack.nbytes * stack.count > limits.item_bytes:
            raise ItemError(
                "too_large", f"its tags claim {stack.nbytes * stack.count} bytes; raise max_item_bytes if so"
            )


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Decode a slide, volumes, or images: those into `folder`/images.npy as (N, C, H, W), one after the other."""
    del options
    with opened(path) as file:
        if (found := slide.find(file)) is not None:
            return [slide.read(file, found, folder)]
        stack = _stack(file)
        said = ome.read(file.pages[0].description) if file.is_ome else ome.Ome()
        if stack.deep:
            return zstack.read(path, file, stack, said, folder)
        kept = stack.channels - stack.alpha
        target = stack.dtype.newbyteorder("<")
        with (folder / "images.npy").open("xb") as out:
            height, width = stack.shape[:2] if stack.axes == "YXS" else stack.shape[-2:]
            shape = (stack.count, kept, height, width)
            np.lib.format.write_array_header_1_0(out, {"descr": target.str, "fortran_order": False, "shape": shape})
            for image in images(path, file, stack):
                planes = (
                    image[None] if stack.axes == "YX" else np.moveaxis(image, -1, 0) if stack.axes == "YXS" else image
                )
                if stack.alpha:
                    check_opaque(planes[-1])
                out.write(np.ascontiguousarray(planes[:kept], target).data)
        rgb = file.pages[0].photometric in (RGB, YCBCR)
        x, y, _ = said.spacing
        size = [x, y] if x and y else spacing(file)
        meta = {"channels": "RGB" if rgb else "grey" if kept == 1 else None, "spacing": size}
    attributes = {"format": "tiff"} | ({"dyes": list(said.dyes)} if any(said.dyes) else {})
    return [entry(meta, attributes, numbered=stack.count > 1)]


def _stack(file: Any) -> Stack:
    """Raises ItemError for what is not one image, several of one shape, or a volume."""
    series = file.series
    if not series:
        raise ItemError("unreadable", "it holds no image")
    page = file.pages[0]
    reduced = page.is_reduced or page.subifds
    if len(series) > 1 or len(series[0].levels) > 1 or reduced:
        raise ItemError(
            "unsupported", "its pages have several shapes, but are no pyramid in tiles; save one level alone"
        )
    if any(one is None for one in series[0].pages):
        raise ItemError("truncated", "some of its planes are missing, or in other files; copy or save it in one file")
    axes, shape = series[0].axes, tuple(series[0].shape)
    alpha = check_page(page, zstack.DTYPES if "Z" in axes else DTYPES)
    dtype = page.dtype.newbyteorder(file.byteorder)
    if "Z" in axes:
        if not axes.endswith("YX") or not set(axes[:-2]) <= {"T", "Z", "C"} or len(set(axes)) < len(axes):
            raise ItemError("unsupported", f"it is a volume with axes {axes}; those with T, Z, C, Y and X are read")
        before = tuple(zip(axes[:-2], shape[:-2], strict=True))
        return Stack(int(np.prod(shape[:-2])), "YX", shape[-2:], dtype, alpha=False, before=before)
    return _images(axes, shape, dtype, alpha=alpha)


def _images(axes: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, alpha: bool) -> Stack:
    """Images by the axes that tifffile finds."""
    image = next((end for end in ("CYX", "SYX", "YXS", "YX") if axes.endswith(end)), None)
    before = axes[: len(axes) - len(image)] if image else axes
    if image is None or len(before) > 1 or before not in ("", "I", "Q", "T"):
        said = f"it is neither an image nor a plain stack of images (axes {axes}); save its planes as images"
        raise ItemError("unsupported", said)
    count = shape[0] if before else 1
    return Stack(count, image, shape[len(before) :], dtype, alpha, ((before, count),) if before else ())
