"""MetaImage, with its data in the same file (.mha) or in a second one (.mhd with .raw or .zraw); voxels as they are stored.

- Three axes, or four where the last one stands apart from space; two axes are an image. More channels than one are refused, as
  are text, lists of files and patterns of names.
- Coordinates are LPS in mm, as ITK has them; a row of TransformMatrix is the direction of one voxel axis. Without it
  there is no orientation.

Of the header's fields only those of FIELDS are even looked at; comments, names, dates and tags of modalities are not.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, source, volumes
from .volumes import Header, Voxels

name = "metaimage"

HEADER_BYTES = 2**16
FIELDS = {
    "ObjectType", "NDims", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData",
    "CompressedDataSize", "TransformMatrix", "Rotation", "Orientation", "Offset", "Origin", "Position", "ElementSpacing",
    "ElementSize", "DistanceUnits", "DimSize", "HeaderSize", "ElementNumberOfChannels", "ElementType",
    "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset", "ElementDataFile",
}  # fmt: skip
_DTYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""MET_LONG has four bytes, whatever the machine; ITK writes MET_LONG_LONG where a long has eight."""
_LPS = (-1.0, -1.0, 1.0)


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a MetaImage header does."""
    first = re.match(rb"\s*(ObjectType\s*=\s*Image\b|NDims\s*=\s*\d|Comment\s*=)", head)
    return first is not None and re.search(rb"(?m)^\s*NDims\s*=\s*\d", head) is not None


def part_of(path: Path) -> Part:
    """A header, and the file that it names. Raises ItemError."""
    return volumes.part(_header(path).data_file)


def preflight(path: Path, limits: Limits) -> None:
    """As of volumes.Header. Raises ItemError."""
    _header(path).preflight(path, limits)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """As of volumes.Header. Raises ItemError."""
    return _header(path).read(path, folder, options)


def _header(path: Path) -> Header:
    """The header, its fields held to each other. Raises ItemError."""
    if source.is_gzip(path):
        raise ItemError("unsupported", "it is a MetaImage file inside of a gzip file; unzip it")
    with path.open("rb") as file:
        fields, end = _fields(file.read(HEADER_BYTES))
    try:
        data_file, local = fields["ElementDataFile"], fields["ElementDataFile"].upper() in ("LOCAL", "LOCAL_DATA")
        sizes = [int(size) for size in fields["DimSize"].split()]
        if len(sizes) != int(fields["NDims"]) or min(sizes, default=0) < 1:
            raise ItemError("header_lies", "its sizes are not those of its dimensions, or not positive")
        while len(sizes) > 3 and sizes[-1] == 1:
            sizes.pop()
        voxels = _voxels(fields, sizes, end if local else 0)
        meta = _geometry(fields, len(sizes), int(fields["NDims"]))
    except (KeyError, ValueError, OverflowError) as error:
        raise ItemError("header_lies", "a field of its header is missing, or cannot be") from error
    attributes: dict[str, Any] = {"format": "metaimage"}
    if len(sizes) == 2:
        volumes.check_image(voxels)
    else:
        attributes["affine"] = "assumed" if meta["orientation"] is None else "space"
    if not local and data_file.upper().startswith("LIST"):
        raise ItemError("unsupported", "its data are in a list of files; write it anew with one")
    return Header(voxels, meta, attributes, None if local else volumes.plain_name(data_file))


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields of FIELDS, and where the bytes after the header begin. Raises ItemError."""
    fields: dict[str, str] = {}
    end = 0
    while end < len(head) and "ElementDataFile" not in fields:
        line_end = head.find(b"\n", end)
        line_end = len(head) if line_end < 0 else line_end
        key, _, value = head[end:line_end].decode("latin-1").partition("=")
        key, end = key.strip(), line_end + 1
        if key in fields:
            raise ItemError("header_lies", "a field of its header is there twice")
        if key in FIELDS:
            fields[key] = value.strip()
    if "ElementDataFile" not in fields:
        raise ItemError("header_lies", f"its header does not say where its data are within {HEADER_BYTES} bytes")
    return fields, end


def _voxels(fields: dict[str, str], sizes: list[int], end: int) -> Voxels:
    """Raises ItemError; KeyError and ValueError where a field is missing or cannot be."""
    kind = fields["ElementType"].upper()
    if kind not in _DTYPES or int(fields.get("ElementNumberOfChannels", "1")) != 1 or len(sizes) not in (2, 3, 4):
        raise ItemError("unsupported", "its voxels are not one number each on two, three or four axes")
    if not _true(fields.get("BinaryData", "True")) or fields.get("ObjectType", "Image") != "Image":
        raise ItemError("unsupported", "its data are text, or no image; write it anew as a binary image")
    order = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    dtype = np.dtype((">" if _true(order) else "<") + _DTYPES[kind])
    packed = _true(fields.get("CompressedData", "False"))
    skip = int(fields.get("HeaderSize", "0"))
    if skip < -1 or (skip and packed):
        raise ItemError("header_lies", "its data cannot begin where its header says")
    size = int(fields["CompressedDataSize"]) if packed and "CompressedDataSize" in fields else None
    if size is not None and size < 1:
        raise ItemError("header_lies", "its packed data cannot have the size that its header says")
    offset = None if skip == -1 else max(skip, end)
    return Voxels(tuple(reversed(sizes)), dtype, "zlib" if packed else "raw", offset, size)


def _true(word: str) -> bool:
    return {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}[word.lower()]


def _geometry(fields: dict[str, str], axes: int, stored: int) -> dict[str, Any]:
    """`meta` for write_volume, or of an image. Raises ItemError; ValueError where a field has too few numbers."""
    unit = fields.get("DistanceUnits", "mm")
    scale = 1.0 if unit in ("?", "") else volumes.millimetres(unit)
    if scale is None:
        raise ItemError("unsupported", "its units of length are not known; write it anew in mm")
    sizes = _numbers(fields, ("ElementSpacing", "ElementSize"), stored)
    spacing = np.ones(stored) if sizes is None else np.abs(sizes)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ItemError("header_lies", "its voxels have no size")
    if axes == 2:
        known = [round(float(size) * scale, 6) for size in spacing[:2]]
        return {"spacing": known if sizes is not None else None}
    origin = _numbers(fields, ("Offset", "Origin", "Position"), stored)
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), stored * stored)
    turned = np.eye(stored) if matrix is None else matrix.reshape(stored, stored)
    if stored > 3 and (turned[3:, :3].any() or turned[:3, 3:].any()):
        raise ItemError("unsupported", "its fourth axis is not apart from space")
    directions = turned[:3, :3] * spacing[:3, None] * scale
    affine = volumes.affine_of(directions, np.zeros(3) if origin is None else origin[:3] * scale, _LPS)
    meta = volumes.geometry(affine, oriented=matrix is not None)
    slope = float(fields.get("ElementToIntensityFunctionSlope", "1"))
    intercept = float(fields.get("ElementToIntensityFunctionOffset", "0"))
    if not (np.isfinite([slope, intercept]).all() and slope):
        raise ItemError("header_lies", "its rescaling cannot be")
    meta["rescale"] = [slope, intercept]
    return {**meta, "time_step": None} if axes == 4 else meta


def _numbers(fields: dict[str, str], names: tuple[str, ...], count: int) -> np.ndarray | None:
    """The first of these fields that is there. Raises ValueError where it has not `count` numbers."""
    for one in names:
        if one in fields:
            values = np.array([float(number) for number in fields[one].split()])
            if len(values) != count:
                raise ValueError(one)
            return values
    return None
