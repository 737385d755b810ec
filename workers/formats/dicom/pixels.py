"""The pixels of one file, frame by frame, as pydicom gives them.

Each transfer syntax has one decoder, always the same, so that pixels do not depend on what else is installed. Colours come
out as RGB: palettes are looked up, YBR is converted. Of what a frame claims of itself its size is held to the header first.
"""

import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import numpy as np

from diastole.lake.errors import ItemError

from .. import Limits
from . import coded, dataset
from .dataset import File
from .structure import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT

EXTRA_BYTES = 2**26
"""What a deflated file may have beside the pixels."""
FRAME_BYTES = 2**28
"""One frame, decoded, at most."""
_JPEG = "1.2.840.10008.1.2.4."
_NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
_DECODERS = {
    f"{_JPEG}50": "pillow",  # baseline
    coded.RLE: "pydicom",
    **dict.fromkeys(coded.SYNTAXES, coded.LABEL),  # JPEG of 12 bits and lossless
    f"{_JPEG}80": "pyjpegls",  # JPEG-LS
    f"{_JPEG}81": "pyjpegls",
    f"{_JPEG}90": "pylibjpeg",  # JPEG 2000, by openjpeg
    f"{_JPEG}91": "pylibjpeg",
    f"{_JPEG}201": "pylibjpeg",  # HTJ2K
    f"{_JPEG}202": "pylibjpeg",
    f"{_JPEG}203": "pylibjpeg",
}
_PALETTE = "PALETTE COLOR"
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"}
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_HEAD = 2**16
GREY_TAGS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "NumberOfFrames",
)
"""All that decoding grey pixels needs of a header."""


@dataclass(frozen=True)
class Layout:
    """What a header says of the pixels, held to the limits and to the file's size."""

    rows: int
    columns: int
    channels: int  # of a frame as it comes out
    frames: int
    dtype: np.dtype[Any]  # likewise, little-endian
    bits_stored: int
    photometric: str
    at: int | None = None
    """Byte of the file at which its frames begin, one after the other, where they need no decoder."""

    @property
    def frame_bytes(self) -> int:
        """Of one frame as it comes out."""
        return self.rows * self.columns * self.channels * self.dtype.itemsize


def layout(file: File, limits: Limits) -> Layout:
    """Check the header of a file with pixels. Raises ItemError."""
    header, opened = file.header, file.opened
    if opened.pixels is None:
        raise ItemError("truncated", "it has no pixels, or ends before them; copy it again")
    if opened.syntax not in _DECODERS and opened.syntax not in _NATIVE:
        raise ItemError(
            "unsupported", "its transfer syntax is video, private or unknown; convert it to a plain or JPEG one"
        )
    wanted = ("Rows", "Columns", "BitsAllocated")
    rows, columns, allocated = (dataset.integer(header, keyword) or 0 for keyword in wanted)
    samples, frames = dataset.integer(header, "SamplesPerPixel") or 1, frame_count(header)
    stored = dataset.integer(header, "BitsStored") or allocated
    photometric = dataset.text(header, "PhotometricInterpretation") or ""
    if rows < 1 or columns < 1 or not 1 <= stored <= allocated:
        raise ItemError("header_lies", f"{rows} rows, {columns} columns and {stored} of {allocated} bits cannot be")
    _check_kind(samples, allocated, photometric)
    high = dataset.integer(header, "HighBit")
    if opened.pixels.keyword == "PixelData" and high is not None and high != stored - 1:
        raise ItemError("unsupported", "its values do not begin at the lowest bit; convert it")
    channels = 3 if photometric == _PALETTE else samples
    dtype = _dtype(file, allocated)
    at = _plain_at(file, samples, allocated, photometric)
    made = Layout(rows, columns, channels, frames, dtype, stored, photometric, at)
    if made.frame_bytes > min(limits.item_bytes, FRAME_BYTES):
        raise ItemError("too_large", f"its header claims a frame of {made.frame_bytes} bytes")
    if made.frame_bytes * frames > limits.item_bytes:
        claimed = made.frame_bytes * frames
        raise ItemError("too_large", f"its header claims {claimed} bytes of pixels; raise max_item_bytes if so")
    _check_length(file, rows * columns * samples * allocated * frames, frames, photometric)
    return made


def frame_count(header: Any) -> int:
    """Frames of a file, 1 where it does not say. Raises ItemError."""
    if dataset.value(header, "NumberOfFrames") is None:
        return 1
    found = dataset.integer(header, "NumberOfFrames")
    if found is None or found < 0:
        raise ItemError("header_lies", "its number of frames is not a number")
    return max(found, 1)


def frames(file: File, made: Layout, indices: list[int] | None = None) -> Iterator[np.ndarray]:
    """Frames (H, W) or (H, W, C) in their order in the file, or those of `indices` in that order. Raises ItemError."""
    opened, pixels = file.opened, file.opened.pixels
    if pixels is None:
        raise ItemError("truncated", "it ends before its pixels; copy it again")
    if made.at is not None:
        yield from plain_frames(opened.file, made, indices)
        return
    pydicom = dataset.library()
    coded.add()
    if pixels.length is None:
        _check_coded(file, made)
    plugin = _DECODERS.get(opened.syntax, "")
    syntax = EXPLICIT if opened.syntax == DEFLATED else opened.syntax
    shape = (made.rows, made.columns, *([made.channels] if made.channels > 1 else []))
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            options = pydicom.pixels.as_pixel_options(
                file.header, number_of_frames=made.frames, pixel_keyword=pixels.keyword, pixel_vr=pixels.vr or "OW"
            )
            opened.file.seek(pixels.offset)
            decoder = pydicom.pixels.get_decoder(syntax)
            decoded = decoder.iter_array(
                opened.file, indices=indices, validate=True, raw=False, decoding_plugin=plugin, **options
            )
            for frame, _ in islice(decoded, made.frames if indices is None else len(indices)):
                count += 1
                coloured = pydicom.pixels.apply_color_lut(frame, file.header) if made.photometric == _PALETTE else frame
                if coloured.shape != shape:
                    raise ItemError("header_lies", "a frame has another shape than its header says")
                yield np.ascontiguousarray(coloured, made.dtype)
        except (ItemError, MemoryError, GeneratorExit):
            raise
        except Exception as error:  # decoders raise classes of many kinds
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ItemError("unreadable", "its pixels cannot be decoded; copy it again, or convert it") from error
    if count < (made.frames if indices is None else len(indices)):
        raise ItemError("truncated", f"it has {count} frames, its header claims {made.frames}; copy it again")


def plain_frames(file: IO[bytes], made: Layout, indices: Iterable[int] | None = None) -> Iterator[np.ndarray]:
    """As `frames`, of a file whose layout has `at`. As pydicom does, bits beyond those stored are made what they must be.

    Raises ItemError where the file is shorter than it was.
    """
    unused = made.dtype.itemsize * 8 - made.bits_stored
    for index in range(made.frames) if indices is None else indices:
        frame = np.empty((made.rows, made.columns), made.dtype)
        file.seek((made.at or 0) + index * made.frame_bytes)
        if file.readinto(frame.data.cast("B")) != made.frame_bytes:  # type: ignore[attr-defined]
            raise ItemError("truncated", "it ends before its pixels do; copy it again")
        if unused:
            np.left_shift(frame, unused, out=frame)
            np.right_shift(frame, unused, out=frame)
        yield frame


def _plain_at(file: File, samples: int, allocated: int, photometric: str) -> int | None:
    """Where whole grey numbers lie in the file itself, as they are in memory."""
    pixels, syntax = file.opened.pixels, file.opened.syntax
    if pixels is None or pixels.keyword != "PixelData" or pixels.length is None or syntax not in (IMPLICIT, EXPLICIT):
        return None
    grey = samples == 1 and photometric in _GREY and allocated in (8, 16, 32)
    signed = dataset.integer(file.header, "PixelRepresentation")
    return pixels.offset if grey and signed in (0, 1) and file.opened.little else None


def _check_kind(samples: int, allocated: int, photometric: str) -> None:
    known = photometric in (_GREY | {_PALETTE} if samples == 1 else _COLOURS if samples == 3 else ())
    if not known:
        raise ItemError("unsupported", f"pixels of {samples} samples are read as grey, palette, RGB or YBR; convert it")
    if allocated not in (1, 8, 16, 32, 64):
        raise ItemError("unsupported", f"its pixels have {allocated} bits; 1, 8, 16, 32 and 64 are read")


def _dtype(file: File, allocated: int) -> np.dtype[Any]:
    keyword = file.opened.pixels.keyword if file.opened.pixels else "PixelData"
    if keyword != "PixelData":
        width = 32 if keyword == "FloatPixelData" else 64
        if allocated != width:
            raise ItemError("header_lies", f"its real numbers have {allocated} bits")
        return np.dtype(f"<f{width // 8}")
    if dataset.text(file.header, "PhotometricInterpretation") == _PALETTE:
        return np.dtype("<u2" if _lut_bits(file.header) > 8 else "u1")
    signed = dataset.integer(file.header, "PixelRepresentation") == 1
    return np.dtype("u1") if allocated == 1 else np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")


def _lut_bits(header: Any) -> int:
    """Bits of an entry of the palette, as pydicom takes them: data of 8 bits may be announced as 16."""
    described = dataset.numbers(header, "RedPaletteColorLookupTableDescriptor", 3)
    if described is None:
        raise ItemError("unsupported", "its palette is missing or in segments; convert it")
    data = dataset.value(header, "RedPaletteColorLookupTableData")
    entries = int(described[0]) or 2**16
    if not isinstance(data, bytes) or len(data) < entries:
        raise ItemError("unsupported", "its palette is missing or in segments; convert it")
    return 8 if int(described[2]) <= 8 or len(data) < 2 * entries else 16


def _check_length(file: File, bits: int, frames: int, photometric: str) -> None:
    """Hold the pixels' length in the file to the header."""
    pixels = file.opened.pixels
    if pixels is None:
        return
    if (pixels.length is None) != (file.opened.syntax not in _NATIVE):
        raise ItemError("header_lies", "whether its pixels are compressed, its transfer syntax says otherwise")
    if pixels.length is None:
        if pixels.fragments < frames:
            raise ItemError("truncated", f"it has {pixels.fragments} fragments for {frames} frames; copy it again")
        return
    expected = -(-bits // 8)
    if photometric == "YBR_FULL_422":
        if pixels.length >= expected:
            raise ItemError("header_lies", "its colours are not subsampled, as its header says they are")
        expected = expected // 3 * 2
    if pixels.length < expected:
        raise ItemError("truncated", f"it has {pixels.length} bytes of pixels, its header claims {expected}")


def _check_coded(file: File, made: Layout) -> None:
    """Hold the size that each compressed frame claims to the header's. Raises ItemError."""
    from pydicom.encaps import generate_frames

    if file.opened.syntax == coded.RLE or file.opened.pixels is None:
        return
    file.opened.file.seek(file.opened.pixels.offset)
    try:
        for frame in islice(generate_frames(file.opened.file, number_of_frames=made.frames), made.frames):
            size = claimed_size(frame)
            if size is None or size != (made.rows, made.columns):
                raise ItemError("header_lies", "a compressed frame has another size than its header says, or none")
    except (ValueError, struct.error, IndexError, EOFError, StopIteration) as error:
        raise ItemError("unreadable", "its compressed frames cannot be told apart; copy it again") from error


def claimed_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream claims; None where it has none."""
    at = frame[:_HEAD].find(b"\xff\x4f\xff\x51")
    if at >= 0:
        x, y, x0, y0 = struct.unpack(">4I", frame[at + 8 : at + 24])
        return y - y0, x - x0
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7):
            rows, columns = struct.unpack(">HH", frame[at + 5 : at + 9])
            return rows, columns
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
