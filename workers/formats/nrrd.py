"""NRRD, attached or with its data in a second file: headers through pynrrd, voxels copied as they are stored.

- Three axes in space, and time or a list as the fourth, the fastest or the slowest; two axes are an image. Vectors,
  colours, complex numbers and matrices are refused, as are text and hexadecimal encodings.
- The geometry is that of `space`, `space directions` and `space origin`; with `spacings` alone, or a space that says nothing of
  the body, there is no orientation.
- A data file is the plain name of one file in the same folder.

Of the header's fields only those of FIELDS are even parsed; comments, `content`, labels and key/value pairs are not.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, source, volumes
from .volumes import Header, Voxels

name = "nrrd"

HEADER_BYTES = 2**20
FIELDS = {
    "dimension", "type", "encoding", "endian", "sizes", "spacings", "kinds", "units", "space", "space dimension",
    "space directions", "space origin", "space units", "data file", "byte skip", "line skip",
}  # fmt: skip
_JOINED = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_SPACES = {
    "ras": (1.0, 1.0, 1.0), "right-anterior-superior": (1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0), "left-anterior-superior": (-1.0, 1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0), "left-posterior-superior": (-1.0, -1.0, 1.0),
}  # fmt: skip
"""Signs that turn a space into RAS."""
_NOWHERE = {"scanner-xyz", "3d-right-handed", "3d-left-handed"}
_SPATIAL = {"domain", "space"}
_FOURTH = {"time", "list"}
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6}


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a NRRD header does."""
    return re.match(rb"NRRD000[1-5]\r?\n", head) is not None


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
        raise ItemError("unsupported", "it is a NRRD file inside of a gzip file; unzip it")
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    lines, end = _lines(head)
    try:
        fields = _parsed(lines)
        detached = fields.get("data file")
        offset = _offset(fields, 0 if detached else end)
        encoding = _ENCODINGS.get(str(fields["encoding"]).lower())
        if encoding is None or (encoding != "raw" and fields.get("byte skip")):
            raise ItemError("unsupported", "its encoding is none of raw, gzip and bzip2; write it anew in one of them")
        dtype, sizes = _dtype(fields), [int(size) for size in fields["sizes"]]
        if len(sizes) != fields["dimension"] or min(sizes, default=0) < 1:
            raise ItemError("header_lies", "its sizes are not those of its dimension, or not positive")
        space, other = _axes(fields, sizes)
        shape = tuple(sizes[axis] for axis in reversed(space))
        voxels = Voxels(
            shape if other is None else (sizes[other], *shape), dtype, encoding, offset, interleaved=other == 0
        )
        meta, attributes = _geometry(fields, space)
        if other is not None:
            attributes["fourth_axis"] = str(fields["kinds"][other]).lower()
            meta["time_step"] = _time_step(fields, other)
    except (KeyError, IndexError, ValueError, TypeError, OverflowError, StopIteration) as error:
        raise ItemError("header_lies", "a field of its header is missing, or cannot be") from error
    if len(shape) == 2:
        volumes.check_image(voxels)
    if detached is not None and str(detached).upper().startswith("LIST"):
        raise ItemError("unsupported", "its data are in a list of files; write it anew with one")
    return Header(voxels, meta, attributes, None if detached is None else volumes.plain_name(str(detached)))


def _lines(head: bytes) -> tuple[list[bytes], int]:
    """The header's lines, and where the bytes after its empty line begin."""
    empty = re.search(rb"\n\r?\n", head)
    if empty is None and len(head) == HEADER_BYTES:
        raise ItemError("header_lies", f"its header has no end within {HEADER_BYTES} bytes")
    end = len(head) if empty is None else empty.end()
    return head[:end].splitlines(), end


def _parsed(lines: list[bytes]) -> dict[str, Any]:
    """The fields of FIELDS. Raises ItemError."""
    import nrrd

    wanted = ["NRRD0005"]
    for line in lines[1:]:
        field, colon, value = line.partition(b":")
        key = field.decode("latin-1").strip().lower()
        key = _JOINED.get(key, key)
        if line.startswith(b"#") or not colon or value.startswith(b"=") or key not in FIELDS:
            continue
        wanted.append(f"{key}: {value.decode('latin-1').strip()}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(nrrd.read_header(wanted))
    except Exception as error:  # pynrrd raises classes of many kinds, which quote the header
        raise ItemError("header_lies", "a field of its header is there twice, or cannot be read") from error


def _offset(fields: dict[str, Any], end: int) -> int | None:
    skip = int(fields.get("byte skip", 0))
    if int(fields.get("line skip", 0)) or skip < -1:
        raise ItemError("unsupported", "its data begin after lines that are to be skipped; write it anew without them")
    return None if skip == -1 else end + skip


def _dtype(fields: dict[str, Any]) -> np.dtype[Any]:
    from nrrd.reader import _TYPEMAP_NRRD2NUMPY as KINDS

    kind = KINDS[str(fields["type"]).lower()]
    if kind == "V":
        raise ItemError("unsupported", "its voxels are blocks of bytes, not one number each")
    dtype = np.dtype(kind)
    if dtype.itemsize == 1:
        return dtype
    return dtype.newbyteorder({"little": "<", "big": ">"}[str(fields["endian"]).lower()])


def _axes(fields: dict[str, Any], sizes: list[int]) -> tuple[list[int], int | None]:
    """The axes in space, the fastest first, and that of time or a list. Raises ItemError."""
    count = len(sizes)
    kinds = [str(kind).lower() for kind in fields.get("kinds", ["???"] * count)]
    directions = fields.get("space directions")
    if directions is not None:
        directions = [None if one is None or np.isnan(one).all() else one for one in directions]
    if len(kinds) != count or (directions is not None and len(directions) != count):
        raise ItemError("header_lies", "its axes are not as many as its dimension says")
    if directions is not None:
        space = [axis for axis in range(count) if directions[axis] is not None]
    elif "kinds" in fields:
        space = [axis for axis in range(count) if kinds[axis] in _SPATIAL]
    else:
        space = list(range(count))
    others = [axis for axis in range(count) if axis not in space and sizes[axis] > 1]
    if (
        len(space) not in (2, 3)
        or any(kinds[axis] not in (*_SPATIAL, "???", "none") for axis in space)
        or (
            others
            and (len(space) == 2 or len(others) > 1 or kinds[others[0]] not in _FOURTH or others[0] not in (0, 3))
        )
    ):
        raise ItemError(
            "unsupported",
            "its axes are not two or three in space, and time or a list; vectors and colours are not read",
        )
    return space, others[0] if others else None


def _geometry(fields: dict[str, Any], space: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`meta` for write_volume, and attributes. Raises ItemError."""
    attributes: dict[str, Any] = {"format": "nrrd"}
    spacings = np.asarray(fields.get("spacings", np.ones(int(fields["dimension"]))), float)
    units = fields.get("units")
    known = "spacings" in fields
    if len(space) == 2:
        if "space directions" in fields:
            lengths = [float(np.linalg.norm(np.asarray(fields["space directions"][axis], float))) for axis in space]
            scales = [_unit(unit) for unit in fields.get("space units", ["mm", "mm"])]
            known = len(set(scales)) == 1
            spacing = [length * scales[0] for length in lengths]
        else:
            spacing = [float(spacings[axis]) * (_unit(units[axis]) if units else 1.0) for axis in space]
        if not all(np.isfinite(one) and one > 0 for one in spacing):
            raise ItemError("header_lies", "its pixels have no size")
        return {"spacing": [round(one, 6) for one in spacing] if known else None}, attributes
    where = str(fields.get("space", "")).lower()
    if "space directions" in fields:
        directions = np.array([fields["space directions"][axis] for axis in space], float)
        origin = np.asarray(fields.get("space origin", np.zeros(3)), float)
        scale = np.array([_unit(unit) for unit in fields.get("space units", ["mm"] * 3)])
        if (
            directions.shape != (3, 3)
            or origin.shape != (3,)
            or scale.shape != (3,)
            or where not in {*_SPACES, *_NOWHERE, ""}
        ):
            raise ItemError("unsupported", "its space does not have three dimensions that are known")
        directions, origin = directions * scale, origin * scale
    else:
        step = [spacings[axis] * (_unit(units[axis]) if units else 1.0) for axis in space]
        directions, origin, where = np.diag(np.asarray(step, float)), np.zeros(3), ""
    attributes["affine"] = "space" if where in _SPACES else "assumed"
    affine = volumes.affine_of(directions, origin, _SPACES.get(where, (1.0, 1.0, 1.0)))
    return {**volumes.geometry(affine, oriented=where in _SPACES), "rescale": [1.0, 0.0]}, attributes


def _unit(unit: str) -> float:
    known = volumes.millimetres(unit) if unit.strip() not in ("", "???") else 1.0
    if known is None:
        raise ItemError("unsupported", "its units of length are not known; write it anew in mm")
    return known


def _time_step(fields: dict[str, Any], axis: int) -> float | None:
    """Seconds, where the header has both the step and its unit."""
    if "spacings" not in fields or "units" not in fields:
        return None
    step = float(fields["spacings"][axis]) * _SECONDS.get(str(fields["units"][axis]).strip().lower(), np.nan)
    return round(step, 9) if np.isfinite(step) and step > 0 else None
