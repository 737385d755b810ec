"""NIfTI-1 and NIfTI-2 in one file, or as a pair of .hdr and .img, plain or gzip; voxels are copied as they are stored."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, lean, source, volumes

name = "nifti"

_MAGIC = {348: (344, (b"n+1\0", b"ni1\0")), 540: (4, (b"n+2\0", b"ni2\0"))}
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""datatype codes of the standard that are plain numbers; the rest is complex, RGB or 128 bits."""
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_SECONDS = {"msec": 1e-3, "usec": 1e-6, "sec": 1.0, "unknown": 1.0}
_HEADER_BYTES = 544
_EXTRA_BYTES = 2**26
"""What header extensions, and whatever follows the voxels, may have beside the voxels."""


@dataclass(frozen=True)
class _Header:
    """What is needed of a header that was found to be sound."""

    version: int
    shape: tuple[int, ...]  # (z, y, x) or (t, z, y, x)
    dtype: np.dtype[Any]  # as stored, with its byte order
    offset: int  # bytes before the first voxel
    fields: Any  # nibabel's header
    paired: bool  # whether the voxels are in another file

    @property
    def voxels(self) -> volumes.Voxels:
        return volumes.Voxels(self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        return self.voxels.nbytes


def sniff(head: bytes) -> bool:
    """Whether the bytes begin with a NIfTI header, also that of a .hdr/.img pair."""
    return _kind(head) is not None


def part_of(path: Path) -> Part:
    """A header of a pair, and the file of its voxels; another file is a source by itself. Raises ItemError."""
    kind = _kind(source.head(path, _HEADER_BYTES))
    if kind is None or not kind[2].startswith(b"ni"):
        return Part()
    names = _images(path)
    return Part(beside=tuple(one for one in names if path.with_name(one).is_file()) or names[:1])


def preflight(path: Path, limits: Limits) -> None:
    """Hold the header to itself, to the limits and, where the file is not compressed, to the file's size."""
    header = _header(path)
    header.voxels.hold(limits)
    if not header.paired:
        _hold_file(path, header)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Copy the voxels into `folder`/voxels.npy, little-endian; the first voxel axis is the last one of the array."""
    header = _header(path)
    data = volumes.data_file(path, _images(path), options) if header.paired else path
    _hold_file(data, header)
    meta, affine_from = _geometry(header)
    attributes: dict[str, Any] = {"format": f"nifti{header.version}", "affine": affine_from}
    with source.opened(data, header.nbytes + header.offset + _EXTRA_BYTES) as stream:
        _skip(stream, header)
        non_finite = volumes.write(stream, header.voxels, folder / "voxels.npy")
        if source.is_gzip(data):
            stream.drain()
    return [volumes.entry(meta, attributes, non_finite)]


def _images(path: Path) -> tuple[str, ...]:
    """Names that the file of voxels may have, beside a header of a pair. Raises ItemError."""
    stem = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    if not stem.lower().endswith(".hdr"):
        raise ItemError("unsupported", "it is the header of a .hdr/.img pair; name the two so")
    end = ".IMG" if stem.endswith(".HDR") else ".img"
    return stem[:-4] + end, f"{stem[:-4]}{end}.gz"


def _hold_file(path: Path, header: _Header) -> None:
    if not source.is_gzip(path) and path.stat().st_size < header.offset + header.nbytes:
        raise ItemError("truncated", _short(path.stat().st_size, header))


def _kind(head: bytes) -> tuple[int, str, bytes] | None:
    """(header size, byte order, magic), or None."""
    for size, (at, magics) in _MAGIC.items():
        for order in ("little", "big"):
            if len(head) >= size and int.from_bytes(head[:4], order) == size and head[at : at + 4] in magics:
                return size, "<" if order == "little" else ">", head[at : at + 4]
    return None


def _header(path: Path) -> _Header:
    """The header, its dimensions and type checked. Raises ItemError."""
    nibabel = lean.nibabel()
    head = source.head(path, _HEADER_BYTES)
    kind = _kind(head)
    if kind is None:
        raise ItemError("unreadable", "it does not begin with a NIfTI header")
    size, order, magic = kind
    paired = magic.startswith(b"ni")
    version = 1 if size == 348 else 2
    fields = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(head[:size], order, check=False)
    offset = float(fields["vox_offset"])
    if not math.isfinite(offset) or offset != int(offset) or offset < (0 if paired else size + 4):
        raise ItemError("header_lies", f"its voxels cannot begin at byte {offset:g}")
    code = int(fields["datatype"])
    if code not in _DTYPES:
        raise ItemError("unsupported", f"its voxels have datatype {code}, which is not one integer or real number each")
    return _Header(version, _shape(fields), np.dtype(order + _DTYPES[code]), int(offset), fields, paired)


def _shape(fields: Any) -> tuple[int, ...]:
    dims = [int(n) for n in fields["dim"]]
    if not 1 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : dims[0] + 1]):
        raise ItemError("header_lies", f"its dimensions {dims} cannot be")
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3, 4):
        raise ItemError("unsupported", f"it has {len(shape)} axes; volumes have 3, or 4 with time")
    return tuple(reversed([*shape, 1] if len(shape) == 2 else shape))


def _skip(stream: source.Stream, header: _Header) -> None:
    while stream.count < header.offset:
        if not stream.read(min(source.PIECE, header.offset - stream.count)):
            raise ItemError("truncated", _short(stream.count, header))


def _short(size: int, header: _Header) -> str:
    return f"it has {size} bytes, its header claims {header.offset + header.nbytes}; copy it again"


def _geometry(header: _Header) -> tuple[dict[str, Any], str]:
    """`meta` for write_volume, and where the affine is from: sform, qform, or assumed. Raises ItemError."""
    from nibabel.spatialimages import HeaderDataError

    fields = header.fields
    affine_from = "sform" if fields["sform_code"] != 0 else "qform" if fields["qform_code"] != 0 else "assumed"
    try:
        affine = np.asarray(fields.get_best_affine(), float)  # sform before qform
        slope, inter = fields.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise ItemError("header_lies", "its geometry or its rescaling cannot be") from error
    try:
        space, time = fields.get_xyzt_units()
    except KeyError:
        space, time = "unknown", "unknown"
    affine[:3] *= _MILLIMETRES.get(space, 1.0)
    meta = volumes.geometry(affine, oriented=affine_from != "assumed")
    meta["rescale"] = [1.0, 0.0] if slope is None else [float(slope), float(inter)]
    if len(header.shape) == 4:
        step = float(fields["pixdim"][4]) * _SECONDS.get(time, math.nan)  # NaN for Hz, ppm and rad/s
        meta["time_step"] = round(step, 9) if math.isfinite(step) and step > 0 else None
    return meta, affine_from
