"""PNG and JPEG: one image each, pixels as they are stored. TIFF is in tiff.py, stacks of numbers in stack.py.

What is done to pixels: nothing that changes a value. Colour profiles and gamma are not applied.

- Grey of 8 and 16 bits and RGB of 8 are stored as they are; grey of 1, 2 and 4 bits on the scale of 8, as every viewer
  shows it; a palette as the RGB that it stands for.
- An opaque alpha channel is left out. Real transparency is refused: what lies behind it is nobody's measurement.
- CMYK, RGB of 16 bits (Pillow would cut it to 8 in silence) and animations are refused. Of a JPEG with several images (MPO:
  previews, gain maps) the first is taken, and `attributes` says how many were left out.
- An image that EXIF says is turned or mirrored is turned upright: pixels change their places, not their values.
- A cut file, a wrong checksum (PNG has them) and a picture of more bytes than IMAGE_BYTES are refused before or while it is
  decoded. A flipped bit inside a JPEG cannot be found.
- The pixel size is known where a PNG has one in metres; a value that printers and screens use (72, 96, 300 dpi, …) says
  nothing of tissue and is left out, and so is what JPEG has.

Nothing of EXIF, comments or text chunks gets into the lake but the number of the orientation.
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source

name = "image"

IMAGE_BYTES = 256 * 2**20
"""One image, decoded, at most: larger ones are whole slides and the like, which are read in pieces or not at all."""
_MAGICS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_CHANNELS = {"1": "grey", "L": "grey", "I;16": "grey", "I;16B": "grey", "I;16L": "grey", "RGB": "RGB", "P": "RGB"}
"""Modes of Pillow that are stored, and what their channels are."""
_ALPHA = {"LA": "L", "RGBA": "RGB", "PA": "RGB"}
_SCREEN_DPI = (72, 75, 90, 96, 100, 120, 144, 150, 180, 192, 200, 240, 300, 350, 360, 400, 600, 720, 1200, 2400)
_ROWS_BYTES = 2**24


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a PNG or a JPEG does."""
    return _format(head) is not None


def preflight(path: Path, limits: Limits) -> None:
    """Hold the header to the limits, before a pixel is decoded."""
    if source.is_gzip(path):
        raise ItemError("unsupported", "it is an image inside of a gzip file; unzip it")
    with _opened(path) as image:
        _check_kind(path, image)
        samples = len(image.getbands()) if image.mode != "P" else 3
        check_size(image.width * image.height * samples * (2 if image.mode.startswith("I;16") else 1), limits)


def check_size(nbytes: int, limits: Limits) -> None:
    """Refuse an image that is larger than one may be. Raises ItemError."""
    most = min(limits.item_bytes, IMAGE_BYTES)
    if nbytes > most:
        raise ItemError("too_large", f"its header claims an image of {nbytes} bytes, more than the {most} of one image")


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Decode the image into `folder`/images.npy as (1, C, H, W), some rows at a time."""
    del options
    kind = _format(source.head(path, 16)) or ""
    attributes: dict[str, Any] = {"format": kind}
    with _opened(path) as image:
        image.verify()  # the checksums of a PNG, of which decoding leaves some out
    with _opened(path) as image:
        frames = int(getattr(image, "n_frames", 1))
        image.load()
        spacing = _spacing(image) if kind == "png" else None
        turned = int(image.getexif().get(274, 1))
        if turned not in (0, 1):
            from PIL import ImageOps

            image, attributes["exif_orientation"] = ImageOps.exif_transpose(image), turned
            spacing = spacing[::-1] if spacing and turned >= 5 else spacing
        if frames > 1:
            attributes["frames_left_out"] = frames - 1
        if image.mode in ("P", "PA") or "transparency" in image.info:
            attributes |= {"palette": True} if image.mode in ("P", "PA") else {}
            image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
        if image.mode in _ALPHA:
            if image.getchannel("A").getextrema()[0] != 255:
                raise ItemError(
                    "unsupported", "it is transparent in parts; put it on the background that it belongs to"
                )
            image = image.convert(_ALPHA[image.mode])
        if image.mode == "1":
            image = image.convert("L")
        write(image, folder / "images.npy")
        meta = {"channels": _CHANNELS[image.mode], "spacing": spacing}
    return [entry(meta, attributes, numbered=False)]


def entry(meta: dict[str, Any], attributes: dict[str, Any], *, numbered: bool) -> dict[str, Any]:
    """What a reader says of `images.npy`."""
    return {
        "kind": "images",
        "file": "images.npy",
        "suffix": "",
        "numbered": numbered,
        "meta": meta,
        "attributes": attributes,
        "modality": None,
    }


def real_size(x_per_mm: float, y_per_mm: float) -> list[float] | None:
    """[x, y] in mm of a pixel; None where the resolution is none, or one that printers and screens have."""
    if not (np.isfinite([x_per_mm, y_per_mm]).all() and x_per_mm > 0 and y_per_mm > 0):
        return None
    dpi = x_per_mm * 25.4
    if x_per_mm == y_per_mm and any(abs(dpi - usual) < 0.02 for usual in _SCREEN_DPI):
        return None
    return [float(f"{1.0 / x_per_mm:.9g}"), float(f"{1.0 / y_per_mm:.9g}")]


def write(image: Any, path: Path) -> None:
    """A Pillow image as (1, C, H, W), little-endian; a second copy of it as a whole would not fit the decoder."""
    rows = max(_ROWS_BYTES // max(image.width * len(image.getbands()), 1), 1)
    out = None
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        piece = np.asarray(image.crop((0, top, image.width, bottom)))
        planes = piece[None] if piece.ndim == 2 else piece.transpose(2, 0, 1)
        if out is None:
            shape, dtype = (1, len(planes), image.height, image.width), piece.dtype.newbyteorder("<")
            out = np.lib.format.open_memmap(path, "w+", dtype, shape)
        out[0, :, top:bottom] = planes
    if out is None:
        raise ItemError("unsupported", "it holds no pixel")
    out.flush()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Pillow image whose header was read. Raises ItemError for what Pillow raises."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # check_size knows the bytes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG")) as image:  # MPO is opened as JPEG
                yield image
    except UnidentifiedImageError as error:
        raise ItemError("unreadable", "it begins as an image does, but its header cannot be read") from error
    except (OSError, SyntaxError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        cut = "truncated" in str(error).lower() or not _ends(path)
        what = "it ends before its last pixel" if cut else "its data are damaged"
        raise ItemError("truncated" if cut else "checksum", f"{what}; copy it again") from error


def _ends(path: Path) -> bool:
    """Whether a PNG has its last chunk; of a JPEG Pillow says it."""
    with path.open("rb") as file:
        if _format(file.read(16)) != "png":
            return True
        file.seek(max(path.stat().st_size - 1024, 0))
        return b"IEND" in file.read()


def _format(head: bytes) -> str | None:
    return next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)


def _check_kind(path: Path, image: Any) -> None:
    """Refuse what would not be stored as it is. Raises ItemError."""
    head = source.head(path, 32)
    if _format(head) == "png" and len(head) < 26:
        raise ItemError("truncated", "it ends inside its header; copy it again")
    if _format(head) == "png":
        depth, colour = head[24], head[25]
        if depth == 16 and colour != 0:
            raise ItemError("unsupported", "it has 16 bits in each of several channels; save it as TIFF")
        if getattr(image, "n_frames", 1) > 1:
            raise ItemError("unsupported", f"it is an animation of {image.n_frames} frames; save them one by one")
    if image.mode not in _CHANNELS and image.mode not in _ALPHA:
        raise ItemError("unsupported", f"its pixels are {image.mode}; grey and RGB are read: convert it")


def _spacing(image: Any) -> list[float] | None:
    """Of a PNG's pHYs in metres, which Pillow gives in dots per inch."""
    dpi = image.info.get("dpi")
    return None if dpi is None else real_size(float(dpi[0]) / 25.4, float(dpi[1]) / 25.4)
