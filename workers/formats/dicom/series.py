"""From slices to stacks: sorted by where they lie, never by file name or number; what is doubled, missing or does not fit.

- Slices of one shape, type, orientation and pixel size make a stack; a series with several of them (a scout beside the
  axial slices, …) gives several items, whose suffixes are made of what tells the stacks apart.
- A place is the distance of a slice along the normal of its plane. Slices whose places are nearer than TOGETHER of a step
  are at one place. Slices there with equal pixels are one slice, doubled: one is kept, the others are counted. Others are a
  fourth axis, if one of MARKS tells them apart, and the same values of it occur at every place; or several stacks, if
  their image type does (phase and magnitude, …); else the series is `inconsistent_series`.
- Each slice must lie within APART of a step, or ROUNDED mm if that is more, of its place in an even row of slices. Where a
  step is about a multiple of the usual one the series has `missing_slices`, else `uneven_slices`: a volume of a wrong
  spacing is never made. What is missing at an end cannot be known.
- Slices that drift within their plane (a tilted gantry) are kept where they are: the affine is sheared, and `tilt` is said.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from .slices import MARKS, Slice

TOGETHER, APART, ROUNDED = 0.02, 0.05, 0.05
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's x goes to the left and its y to the back; ours go to the right and to the front. This is the one place for it."""

Digest = Callable[[Slice], str]
"""A hash of a slice's pixels."""


@dataclass(frozen=True)
class Stack:
    """Slices that make a volume."""

    slices: list[list[Slice]]
    """By time, then by place."""
    affine: np.ndarray
    """Voxel (column, row, slice) → RAS in mm, (4, 4)."""
    known: bool
    """Whether the affine is the patient's; else only sizes are known."""
    said: dict[str, Any]
    """For the attributes."""
    suffix: str = ""


def to_ras(points: np.ndarray) -> np.ndarray:
    """Points (n, 3) of DICOM's patient system in RAS."""
    return points * np.array([-1.0, -1.0, 1.0])


def stacks(slices: Sequence[Slice], digest: Digest) -> list[Stack]:
    """The stacks of a series, in an order that depends on them alone. Raises ItemError."""
    groups: list[list[Slice]] = []
    for one in slices:
        found = next((group for group in groups if _alike(one, group[0])), None)
        if found is None:
            groups.append(found := [])
        found.append(one)
    made = [stack for group in groups for stack in _stacks(group, digest)]
    if len(made) == 1:
        return made
    named: dict[str, Stack] = {}
    for stack in made:
        suffix, count = _suffix(stack), 1
        while (numbered := suffix if count == 1 else f"{suffix}-{count}") in named:
            count += 1
        named[numbered] = replace(stack, suffix=numbered)
    return [named[suffix] for suffix in sorted(named)]


def _alike(one: Slice, other: Slice) -> bool:
    """Whether two slices may be of one stack: of one shape and type, direction within a thousandth, pixel size likewise."""
    shapes = [(s.layout.rows, s.layout.columns, s.layout.channels, s.layout.dtype) for s in (one, other)]
    return (
        shapes[0] == shapes[1]
        and (one.position is None) == (other.position is None)
        and _close(one.orientation, other.orientation, 1e-3)
        and _close(one.spacing, other.spacing, 1e-3 * min(one.spacing or (1.0,)))
    )


def _close(one: tuple[float, ...] | None, other: tuple[float, ...] | None, within: float) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(a - b) <= within for a, b in zip(one, other, strict=True))


def _suffix(stack: Stack) -> str:
    """Of what tells a stack from others of its series, and not of how many slices it has."""
    first = stack.slices[0][0]
    turned = [round(n, 2) + 0.0 for n in first.orientation or ()]
    sizes = [float(f"{n:.2g}") for n in first.spacing or ()]
    told = [
        first.layout.rows,
        first.layout.columns,
        first.layout.dtype.str,
        turned,
        sizes,
        stack.said.get("image_type"),
    ]
    return "#" + hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def _stacks(group: list[Slice], digest: Digest) -> list[Stack]:
    if group[0].position is None or group[0].orientation is None:
        if len(group) > 1:
            raise ItemError(
                "no_geometry", f"its {len(group)} slices do not say where they lie; give them as a NIfTI file"
            )
        return [_placeless(group[0])]
    normal = np.cross(group[0].orientation[:3], group[0].orientation[3:])
    places, doubled = _undoubled(_places(group, normal), digest)
    counts = {len(place) for place in places}
    if counts == {1}:
        return [_stack([[place[0] for place in places]], normal, {}, doubled)]
    told = _told_apart(places)
    if told is not None:
        return [_stack(told[1], normal, told[0], doubled)]
    types = sorted({one.image_type for place in places for one in place})
    made = []
    for image_type in types:
        chosen = [[one for one in place if one.image_type == image_type] for place in places]
        kept = [place[0] for place in chosen if len(place) == 1]
        if len(types) < 2 or any(len(place) > 1 for place in chosen):
            raise ItemError(
                "inconsistent_series",
                f"{sum(len(p) > 1 for p in places)} places have several slices that differ, and nothing says in what",
            )
        made.append(_stack([kept], normal, {"image_type": list(image_type)}, doubled))
        doubled = 0
    return made


def _places(group: list[Slice], normal: np.ndarray) -> list[list[Slice]]:
    """Slices by their place along the normal."""
    at = np.array([np.dot(one.position, normal) for one in group])  # type: ignore[arg-type]
    order = np.lexsort((np.array([one.frame for one in group]), np.array([one.file for one in group]), at))
    steps = np.diff(at[order])
    usual = float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else 1.0
    places: list[list[Slice]] = []
    for number, index in enumerate(order):
        if number == 0 or steps[number - 1] > max(TOGETHER * usual, 1e-3):
            places.append([])
        places[-1].append(group[index])
    return places


def _undoubled(places: list[list[Slice]], digest: Digest) -> tuple[list[list[Slice]], int]:
    """Places without slices whose pixels are there already, and how many were left out."""
    kept, dropped = [], 0
    for place in places:
        if len(place) == 1:
            kept.append(place)
            continue
        seen: dict[tuple[str, str], Slice] = {}
        for one in place:
            seen.setdefault((digest(one), repr((one.rescale, sorted(one.marks.items()), one.image_type))), one)
        kept.append(list(seen.values()))
        dropped += len(place) - len(seen)
    return kept, dropped


def _told_apart(places: list[list[Slice]]) -> tuple[dict[str, Any], list[list[Slice]]] | None:
    """The fourth axis: what it is and its values, and the slices by it."""
    count = len(places[0])
    if any(len(place) != count for place in places):
        return None
    names = [keyword for _, keyword in MARKS]
    for keywords in [*[(name,) for name in names], ("DiffusionBValue", "DiffusionGradientOrientation")]:
        values = [[tuple(one.marks.get(k, ()) for k in keywords) for one in place] for place in places]
        along = sorted(set(values[0]))
        if len(along) != count or any(not any(value) for value in along):
            continue
        if all(len(set(v)) == count and set(v) == set(along) for v in values):
            rows = [
                [
                    next(one for one, v in zip(place, held, strict=True) if v == value)
                    for place, held in zip(places, values, strict=True)
                ]
                for value in along
            ]
            name = next(name for name, keyword in MARKS if keyword == keywords[0])
            return {"fourth_axis": name, "fourth_axis_values": [v[0][0] if v[0] else None for v in along]}, rows
    return None


def _placeless(one: Slice) -> Stack:
    row, column = one.spacing or (1.0, 1.0)
    depth, depth_from = _depth(one)
    said = {"slice_spacing_from": depth_from, "affine": "assumed"} | ({} if one.spacing else {"spacing": "assumed"})
    return Stack([[one]], np.diag([column, row, depth, 1.0]), False, said)


def _depth(one: Slice) -> tuple[float, str]:
    """Of a single slice."""
    for found, name in ((one.thickness, "thickness"), (one.between, "header")):
        if found is not None and abs(found) > 1e-6:
            return abs(found), name
    return 1.0, "assumed"


def _stack(rows: list[list[Slice]], normal: np.ndarray, said: dict[str, Any], doubled: int) -> Stack:
    """A stack of slices that are sorted. Raises ItemError where they are not evenly spaced."""
    first = rows[0][0]
    if first.spacing is None:
        raise ItemError("no_geometry", "its slices do not say how large their pixels are; give them as a NIfTI file")
    points = np.array([one.position for one in rows[0]], float)
    said = dict(said) | ({"doubled_slices": doubled} if doubled else {})
    if len(points) == 1:
        depth, said["slice_spacing_from"] = _depth(first)
        across = normal * depth
    else:
        across, said["slice_spacing_from"] = even_step(points, normal), "positions"
        tilt = float(np.degrees(np.arccos(min(1.0, float(across @ normal) / float(np.linalg.norm(across))))))
        if tilt > 0.1:
            said["tilt"] = round(tilt, 3)
    return Stack(rows, affine(first, across, points[0]), True, said)


def affine(one: Slice, across: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Voxel (column, row, slice) → RAS in mm. `across`: from a slice to the next one, in DICOM's system."""
    if one.orientation is None or one.spacing is None:
        raise ItemError("no_geometry", "it does not say where it lies; give it as a NIfTI file")
    made = np.eye(4)
    made[:3, 0] = np.array(one.orientation[:3]) * one.spacing[1]
    made[:3, 1] = np.array(one.orientation[3:]) * one.spacing[0]
    made[:3, 2], made[:3, 3] = across, origin
    return _LPS_TO_RAS @ made + 0.0


def even_step(points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """From a slice to the next one, for positions (n, 3) in order. Raises ItemError where they are not evenly spaced."""
    steps = np.diff(points @ normal)
    usual = float(np.median(steps))
    missing = int(sum(round(step / usual) - 1 for step in steps if step > 1.5 * usual))
    if missing:
        raise ItemError(
            "missing_slices",
            f"{missing} of {len(points) + missing} slices are missing between its first and its last one",
        )
    across = (points[-1] - points[0]) / (len(points) - 1)
    off = points - (points[0] + np.arange(len(points))[:, None] * across)
    allowed = min(max(APART * usual, ROUNDED), 0.4 * usual)
    along, aside = np.abs(off @ normal), np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if along.max() > allowed:
        raise ItemError("uneven_slices", f"its slices lie up to {along.max():.3g} mm from where even spacing has them")
    if aside.max() > max(allowed, ROUNDED):
        raise ItemError("inconsistent_series", "its slices do not lie one behind the other")
    return across
