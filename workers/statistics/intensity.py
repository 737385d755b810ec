"""How often each value occurs, after rescaling: moments, and a histogram whose bins are the same for all that there is.

A bin holds the float32 numbers that begin with the same 20 bits, so it is never wider than 1/2048 of its values, integers
up to 4096 have one each, and no range has to be known before.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BITS = 12
"""That a bin leaves open."""
PART = 2**18
"""Values at a time: 2 MB as float64."""
COUNTED = 2
"""Bytes of integers up to which values are counted before they are rescaled."""
MOST_BINS = 1024
"""Bins that are told; where more hold something, neighbours are put together."""
PERCENTILES = (0.1, 0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5, 99.9)
_SIGN = np.uint32(1 << 31)


@dataclass
class Intensity:
    """Values of some items."""

    items: int = 0
    values: int = 0
    """That are finite."""
    non_finite: int = 0
    """NaN, infinite, or beyond float32."""
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""
    least: float = np.inf
    most: float = -np.inf
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Bins that hold something, ascending."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, raw: np.ndarray, slope: float, intercept: float) -> None:
        """Take one item's stored values, of any shape."""
        one, raw = Intensity(items=1), np.ascontiguousarray(raw).reshape(-1)
        if raw.dtype.kind in "iu" and raw.dtype.itemsize <= COUNTED:
            values, counts = _counted(raw)
            one._take(values * slope + intercept, counts)
        else:
            for start in range(0, len(raw), PART):
                part = raw[start : start + PART].astype(np.float64) * slope + intercept
                one._take(part, None)
        self.merge(one)

    def merge(self, other: "Intensity") -> None:
        """Take in what was counted after this."""
        self.items += other.items
        self.non_finite += other.non_finite
        if not other.values:
            return
        total = self.values + other.values
        apart = other.mean - self.mean
        self.squares += other.squares + apart * apart * (self.values / total) * other.values
        self.mean += apart * (other.values / total)
        self.values = total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.codes, self.counts = _summed(
            np.concatenate([self.codes, other.codes]), np.concatenate([self.counts, other.counts])
        )

    def told(self) -> dict[str, Any]:
        """As it is stored. `std` divides by the number of values less one, as torch does."""
        said: dict[str, Any] = {"items": self.items, "values": self.values, "non_finite": self.non_finite}
        if not self.values:
            return said
        said |= {"min": self.least, "max": self.most, "mean": self.mean}
        said["std"] = float(np.sqrt(self.squares / max(self.values - 1, 1)))
        said["percentiles"] = {f"{percent:g}": self.percentile(percent) for percent in PERCENTILES}
        said["histogram"] = self._histogram()
        return said

    def percentile(self, percent: float) -> float:
        """The least value of which at least that share lies at or below it, to within its bin."""
        wanted = max(int(np.ceil(percent / 100.0 * self.values)), 1)
        code = self.codes[np.searchsorted(np.cumsum(self.counts), wanted)]
        low, high = _ends(np.array([code]), 0)
        nearest = float(low[0] if low[0] >= 0 else high[0])  # the end towards 0, where integers are
        return min(max(nearest, self.least), self.most)

    def _take(self, values: np.ndarray, counts: np.ndarray | None) -> None:
        """Values, float64, and how often each occurs; None: once."""
        with np.errstate(over="ignore", invalid="ignore"):
            near = values.astype(np.float32)
        finite = np.isfinite(near)
        if not finite.all():
            self.non_finite += int((~finite).sum() if counts is None else counts[~finite].sum())
            values, near = values[finite], near[finite]
            counts = None if counts is None else counts[finite]
        if not len(values):
            return
        part = Intensity(least=float(values.min()), most=float(values.max()))
        part.values = len(values) if counts is None else int(counts.sum())
        times = 1 if counts is None else counts
        part.mean = float((values * times).sum() / part.values)
        part.squares = float((np.square(values - part.mean) * times).sum())
        codes = _codes(near)
        part.codes, part.counts = _tallied(codes) if counts is None else _summed(codes, counts)
        self.merge(part)

    def _histogram(self) -> dict[str, list[Any]]:
        """Bins that hold something: from `low` to `high`, both within, as float32."""
        shift, codes = 0, self.codes
        while len(codes) > MOST_BINS:
            shift += 1
            codes = np.unique(self.codes >> shift)
        codes, counts = _summed(self.codes >> shift, self.counts)
        low, high = _ends(codes, shift)
        return {"low": low.tolist(), "high": high.tolist(), "counts": counts.tolist()}


def _counted(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that occur, ascending, as float64, and how often each does."""
    info = np.iinfo(raw.dtype)
    counts = np.zeros(int(info.max) - int(info.min) + 1, np.int64)
    for start in range(0, len(raw), PART):
        counts += np.bincount(raw[start : start + PART].astype(np.int32) - int(info.min), minlength=len(counts))
    there = np.flatnonzero(counts)
    return (there + int(info.min)).astype(np.float64), counts[there]


def _codes(values: np.ndarray) -> np.ndarray:
    """The bin of each finite float32: ascending as the values are."""
    bits = (values + np.float32(0.0)).view(np.uint32)  # -0 is 0
    return (np.where(bits & _SIGN, ~bits, bits | _SIGN) >> BITS).astype(np.int32)


def _ends(codes: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest float32 of each bin, of which `shift` more bits are open."""
    low = codes.astype(np.uint64) << (BITS + shift)
    high = low | ((1 << (BITS + shift)) - 1)
    return _floats(low), _floats(high)


def _floats(ordered: np.ndarray) -> np.ndarray:
    bits = ordered.astype(np.uint32)
    found = np.where(bits & _SIGN, bits ^ _SIGN, ~bits).astype(np.uint32).view(np.float32)
    most = float(np.finfo(np.float32).max)
    return np.nan_to_num(found, nan=most, posinf=most, neginf=-most) + np.float32(0.0)


def _tallied(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes that occur, ascending, and how often each does."""
    least = int(codes.min())
    counts = np.bincount(codes - least)
    there = np.flatnonzero(counts)
    return (there + least).astype(np.int32), counts[there]


def _summed(codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of equal codes added up."""
    found, places = np.unique(codes, return_inverse=True)
    total = np.zeros(len(found), np.int64)
    np.add.at(total, places, counts)
    return found.astype(np.int32), total
