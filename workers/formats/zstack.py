"""Z-stacks of a TIFF as volumes: (z, y, x), or (t, z, y, x) where there is time; each channel is a volume of its own.

They lie nowhere in a body, so they have no orientation. A size that the file does not say is 1 mm, and `attributes` says
that the spacing is assumed.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from . import tiff_pages, volumes
from .ome import Ome
from .tiff_pages import Stack

DTYPES = (
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64",
)  # fmt: skip


def read(path: Path, file: Any, stack: Stack, said: Ome, folder: Path) -> list[dict[str, Any]]:
    """Write each channel into `folder`/channelN.npy, plane by plane. Raises ItemError."""
    sizes = dict(stack.before)
    times, depth, channels = sizes.get("T", 1), sizes["Z"], sizes.get("C", 1)
    shape = (*((times,) if "T" in sizes else ()), depth, *stack.shape)
    target, starts = stack.dtype.newbyteorder("<"), []
    for channel in range(channels):
        with (folder / f"channel{channel}.npy").open("xb") as out:
            np.lib.format.write_array_header_1_0(out, {"descr": target.str, "fortran_order": False, "shape": shape})
            starts.append(out.tell())
    non_finite = [0] * channels
    places = product(*(range(size) for _, size in stack.before))
    for place, image in zip(places, tiff_pages.images(path, file, stack), strict=True):
        at = dict(zip(sizes, place, strict=True))
        channel, plane = at.get("C", 0), at.get("T", 0) * depth + at["Z"]
        if target.kind == "f":
            non_finite[channel] += image.size - int(np.count_nonzero(np.isfinite(image)))
        with (folder / f"channel{channel}.npy").open("r+b") as out:
            out.seek(starts[channel] + plane * stack.nbytes)
            out.write(np.ascontiguousarray(image, target).data)
    meta, attributes = _geometry(file, said)
    if "T" in sizes:
        meta["time_step"] = said.time_step
    return [
        volumes.entry(meta, attributes | _dye(said, channel), non_finite[channel] if target.kind == "f" else None)
        | {"file": f"channel{channel}.npy", "suffix": f"#c{channel}" if channels > 1 else ""}
        for channel in range(channels)
    ]


def _dye(said: Ome, channel: int) -> dict[str, Any]:
    known = said.dyes[channel] if channel < len(said.dyes) else None
    return {"dyes": [known]} if known else {}


def _geometry(file: Any, said: Ome) -> tuple[dict[str, Any], dict[str, Any]]:
    attributes: dict[str, Any] = {"format": "tiff", "affine": "assumed"}
    x, y = tiff_pages.spacing(file) or (None, None)
    known = [said.spacing[0] or x, said.spacing[1] or y, said.spacing[2] or tiff_pages.imagej_depth(file)]
    if None in known:
        attributes["spacing"] = "assumed"
    affine = np.diag([*(size or 1.0 for size in known), 1.0])
    meta = volumes.geometry(affine, oriented=False)
    meta |= {"spacing": [float(affine[axis, axis]) for axis in range(3)], "rescale": [1.0, 0.0]}
    return meta, attributes
