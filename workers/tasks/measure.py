"""What is measured of a mask: sizes, places and means, in passes that stay within the cache."""

from collections.abc import Mapping
from typing import Any

import numpy as np

PART = 2**17
"""Values at a time; of numpy's own 8192, so that a sum of parts is that of all, bit by bit."""
MOST = 255
"""Planes that are added in 8 bits."""


def measured(mask: np.ndarray, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Volume, box and centroid of a (z, y, x) mask, uint8 of 0 and 1, in C order."""
    affine = np.array(meta["affine"], dtype=float).reshape(4, 4)
    totals = _along_axes(mask)
    voxels = int(totals[0].sum())
    columns: dict[str, Any] = {"voxels": voxels, "volume_ml": voxels * abs(np.linalg.det(affine[:3, :3])) / 1000}
    if voxels:
        where = [np.flatnonzero(total) for total in totals]
        columns["bbox"] = [int(w[0]) for w in where] + [int(w[-1]) + 1 for w in where]
        centre = [float((t * np.arange(len(t))).sum() / voxels) for t in totals]
        columns["centroid_mm"] = (affine @ np.array([*centre, 1.0]))[:3].tolist()
    return columns


def _along_axes(mask: np.ndarray) -> list[np.ndarray]:
    """How many voxels there are at each place along x, y and z."""
    seen = np.zeros(mask.shape[1:], np.int64)  # from above
    for first in range(0, len(mask), MOST):
        seen += np.add.reduce(mask[first : first + MOST], axis=0, dtype=np.uint8)
    planes = [np.count_nonzero(plane) for plane in mask.view(np.bool_)]
    return [seen.sum(axis=0), seen.sum(axis=1), np.array(planes, np.int64)]


def mean_inside(values: np.ndarray, inside: np.ndarray) -> float | None:
    """Mean of float32 values where `inside` is true, in float64; None where it is nowhere. Both in C order."""
    count, total = int(np.count_nonzero(inside)), np.float64(0)
    if not count:
        return None
    values, inside = values.reshape(-1), inside.reshape(-1)
    kept = np.empty(min(PART, len(values)), np.float32)
    for first in range(0, len(values), PART):
        part = values[first : first + PART]
        kept = np.multiply(part, inside[first : first + PART], out=kept[: len(part)])
        total = np.add.reduce(kept, dtype=np.float64, initial=total)
    return float(total / count)
