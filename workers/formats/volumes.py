"""What readers of volumes share: where voxels lie and how they are packed, copied piece by piece; an affine told once.

An array is (z, y, x) or (t, z, y, x), its first voxel axis last, little-endian; an affine takes voxel (x, y, z) to RAS in mm.
"""

import bz2
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, beside, lean, source
from .image import entry as image_entry
from .stack import DTYPES as IMAGE_DTYPES

_INTERLEAVED_PIECE = 2**24
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "µm": 1e-3}


@dataclass(frozen=True)
class Voxels:
    """Where the numbers of a volume lie and what they are, told from a header that was found to be sound."""

    shape: tuple[int, ...]
    """(z, y, x), (t, z, y, x), or (y, x) of an image."""
    dtype: np.dtype[Any]
    """As stored, with its byte order."""
    encoding: str = "raw"
    """raw, gzip, bzip2 or zlib."""
    offset: int | None = 0
    """Bytes before the first of them; None: they end where the file ends."""
    packed: int | None = None
    """Bytes that they take when packed, if the header says."""
    interleaved: bool = False
    """Whether time is the axis that runs fastest in the file."""

    @property
    def nbytes(self) -> int:
        """Of all numbers, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize

    def hold(self, limits: Limits) -> None:
        """Raises ItemError where it would decode to more than a source may."""
        if self.nbytes > limits.item_bytes:
            raise ItemError(
                "too_large",
                f"its header claims {self.nbytes} bytes of voxels, more than {limits.item_bytes}; "
                "raise max_item_bytes if that is true",
            )

    def hold_file(self, size: int) -> int:
        """Hold the size of the file that they lie in; the byte at which they begin. Raises ItemError."""
        stored = self.nbytes if self.encoding == "raw" else self.packed
        start = max(size - (stored or 0), 0) if self.offset is None else self.offset
        if stored is None:
            return start
        if size < start + stored:
            said = f"it has {size} bytes, its header claims {start + stored}; copy it again"
            raise ItemError("truncated", said)
        if size > start + stored:
            said = f"it has {size} bytes, its header claims {start + stored}; if the header is right, cut off the rest"
            raise ItemError("header_lies", said)
        return start


@dataclass(frozen=True)
class Header:
    """A header that was found to be sound, of a format that may keep its voxels in another file."""

    voxels: Voxels
    meta: dict[str, Any]
    attributes: dict[str, Any]
    data_file: str | None
    """Name of that file, beside the header; None where the voxels follow the header."""

    def preflight(self, path: Path, limits: Limits) -> None:
        """Hold it to the limits and, where the voxels are in the same file, to the file's size. Raises ItemError."""
        self.voxels.hold(limits)
        if self.data_file is None:
            self.voxels.hold_file(path.stat().st_size)

    def read(self, path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
        """Copy the voxels into `folder`/voxels.npy, or `folder`/images.npy where there are two axes. Raises ItemError."""
        data = path if self.data_file is None else data_file(path, (self.data_file,), options)
        if len(self.voxels.shape) == 2:
            copy(data, self.voxels, folder / "images.npy")
            return [flat_entry(self.meta["spacing"], self.attributes)]
        non_finite = copy(data, self.voxels, folder / "voxels.npy")
        return [entry(self.meta, self.attributes, non_finite)]


def copy(path: Path, voxels: Voxels, out: Path) -> int | None:
    """Copy all voxels of the file into a new .npy file; how many of real numbers are not finite. Raises ItemError."""
    start = voxels.hold_file(path.stat().st_size)
    with _decoded(path, start, voxels) as stream:
        count = write(stream, voxels, out)
        if stream.read(1):
            raise ItemError("header_lies", f"it unpacks to more than the {voxels.nbytes} bytes that its header claims")
    return count


def write(stream: source.Stream, voxels: Voxels, out: Path) -> int | None:
    """Write a stream's next voxels as a .npy file; how many of real numbers are not finite. Raises ItemError."""
    target = voxels.dtype.newbyteorder("<")
    shape = voxels.shape if len(voxels.shape) > 2 else (1, 1, *voxels.shape)
    times = voxels.shape[0] if voxels.interleaved else 1
    step = times * voxels.dtype.itemsize
    most = source.PIECE if times == 1 else max(_INTERLEAVED_PIECE, source.PIECE)
    non_finite, done = 0, 0
    with out.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": target.str, "fortran_order": False, "shape": shape})
        file.flush()
        begin, one = file.tell(), voxels.nbytes // times
        while done < voxels.nbytes:
            piece = _exactly(stream, min(voxels.nbytes - done, max(most // step, 1) * step), voxels)
            numbers = np.frombuffer(piece, voxels.dtype).astype(target, copy=False)
            if target.kind == "f":
                non_finite += numbers.size - int(np.count_nonzero(np.isfinite(numbers)))
            if times == 1:
                file.write(numbers.data)
            else:
                for time, frame in enumerate(numbers.reshape(-1, times).T):
                    _put(file, np.ascontiguousarray(frame).tobytes(), begin + time * one + done // times)
            done += len(piece)
    return non_finite if target.kind == "f" else None


def _put(file: BinaryIO, data: bytes, at: int) -> None:
    if os.pwrite(file.fileno(), data, at) != len(data):
        raise OSError(28, "No space left on device")


def _exactly(stream: source.Stream, size: int, voxels: Voxels) -> bytes:
    pieces, left = [], size
    while left:
        piece = stream.read(min(left, source.PIECE))
        if not piece:
            said = f"its voxels take {voxels.nbytes} bytes, of which {stream.count} are there; copy it again"
            raise ItemError("truncated", said)
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def _decoded(path: Path, start: int, voxels: Voxels) -> Iterator[source.Stream]:
    """The voxels unpacked, and at most one byte more. Raises ItemError: truncated, checksum, too_large."""
    limit = voxels.nbytes + 1
    try:
        with path.open("rb") as file:
            file.seek(start)
            if voxels.encoding == "gzip":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield source.Stream(cast(BinaryIO, unpacked), limit)
            elif voxels.encoding == "bzip2":
                with bz2.BZ2File(file) as bunzipped:
                    yield source.Stream(cast(BinaryIO, bunzipped), limit)
            elif voxels.encoding == "zlib":
                yield source.Stream(cast(BinaryIO, _Inflated(file)), limit)
            else:
                yield source.Stream(file, limit)
    except EOFError as error:
        raise ItemError("truncated", "its packed voxels end too early; copy it again") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ItemError("checksum", "its packed voxels are damaged; copy it again") from error
    except OSError as error:
        if error.errno is None:  # of bz2
            raise ItemError("checksum", "its packed voxels are damaged; copy it again") from error
        raise


class _Inflated:
    """A zlib or gzip stream as a file. Raises EOFError where it ends too early, zlib.error where it is damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._unpack, self._left = file, zlib.decompressobj(47), b""

    def read(self, size: int) -> bytes:
        while not self._unpack.eof:
            packed = self._left or self._file.read(2**16)
            if not packed:
                raise EOFError
            data = self._unpack.decompress(packed, size)
            self._left = self._unpack.unconsumed_tail
            if data:
                return data
        return b""


def millimetres(unit: str) -> float | None:
    """How many mm a unit is; None for one that is not a length."""
    return _MILLIMETRES.get(unit.strip().lower())


def geometry(affine: np.ndarray, *, oriented: bool) -> dict[str, Any]:
    """`spacing`, `orientation` (None unless `oriented`) and `affine` of a voxel to RAS mm affine. Raises ItemError."""
    nibabel = lean.nibabel()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise ItemError("header_lies", "its affine is singular or not finite, so its voxels have no size")
    axes = nibabel.aff2axcodes(affine)
    if None in axes:
        raise ItemError("header_lies", "its affine is singular or not finite, so its voxels have no size")
    return {
        "spacing": [round(float(size), 6) for size in nibabel.affines.voxel_sizes(affine)],  # stored as float32
        "orientation": "".join(axes) if oriented else None,
        "affine": [float(number) for number in affine.ravel()],
    }


def affine_of(directions: np.ndarray, origin: np.ndarray, flips: tuple[float, float, float]) -> np.ndarray:
    """4 × 4: `directions` has one row for each voxel axis, in mm; `flips` turn the file's space into RAS."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, origin
    affine[:3] *= np.array(flips)[:, None]
    return affine


def entry(meta: dict[str, Any], attributes: dict[str, Any], non_finite: int | None) -> dict[str, Any]:
    """What a reader says of `voxels.npy`."""
    if non_finite is not None:
        attributes = {**attributes, "non_finite": non_finite}
    said = {"kind": "volume", "file": "voxels.npy", "suffix": "", "meta": meta, "attributes": attributes}
    return {**said, "modality": None}


def check_image(voxels: Voxels) -> None:
    """Refuse an image of numbers that packs do not have. Raises ItemError."""
    if voxels.dtype.name not in IMAGE_DTYPES:
        said = f"its values are {voxels.dtype.name}; images are one of {', '.join(IMAGE_DTYPES)}: convert them"
        raise ItemError("unsupported", said)


def flat_entry(spacing: list[float] | None, attributes: dict[str, Any]) -> dict[str, Any]:
    """What a reader says of a file with two axes, an image, in `images.npy`."""
    return image_entry({"channels": "grey", "spacing": spacing}, attributes, numbered=False)


def plain_name(name: str) -> str:
    """The name of a file in the header's own folder. Raises ItemError for paths, addresses and patterns."""
    if any(letter in name for letter in "%*?") or not name.isprintable():
        said = "it names its data by a list or a pattern; only the plain name of one file beside it is read"
        raise ItemError("unsupported", said)
    return beside.plain(name)


def part(named: str | None) -> Part:
    """What a header is a part of: itself, and the file that has its data."""
    return Part() if named is None else Part(beside=(plain_name(named),))


def data_file(path: Path, names: tuple[str, ...], options: ReadOptions) -> Path:
    """The data file of a header, the first of these names that is there. Raises ItemError where none is."""
    there = [name for name in names if beside.there(path, name, options.parts)]
    return beside.find(path, (there or names)[0], options.parts, "file of voxels")
