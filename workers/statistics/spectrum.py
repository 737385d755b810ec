"""Power spectra of channels, after Welch: the mean over all windows of all recordings, each with its constant removed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diastole.lake.statistics import PARAMETERS

WINDOWS = 256
"""Windows that are transformed at a time."""


def samples(rate: float) -> int:
    """Samples of one window; the next begins half a window later."""
    return int(min(max(round(float(PARAMETERS["window_s"]) * rate), 8), PARAMETERS["most_samples"]))


@dataclass
class Spectrum:
    """Of one channel, with one unit and rate."""

    rate: float
    items: int = 0
    windows: int = 0
    short: int = 0
    """Recordings that are shorter than a window."""
    non_finite: int = 0
    """Recordings with samples, or a gain, that are not finite: left out."""
    power: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Sum over windows of the density, in unit² / Hz, one-sided."""

    def add(self, raw: np.ndarray, gain: float, offset: float) -> None:
        """Take one recording's stored samples (time,)."""
        from scipy.signal import welch

        size = samples(self.rate)
        overlap = size // 2
        step = size - overlap
        windows = (len(raw) - overlap) // step
        if len(raw) < size:
            self.short += 1
            return
        power = np.zeros(size // 2 + 1)
        for first in range(0, windows, WINDOWS):
            count = min(WINDOWS, windows - first)
            part = raw[first * step : (first + count - 1) * step + size].astype(np.float64) * gain + offset
            _, mean = welch(part, self.rate, "hann", size, overlap, detrend="constant", scaling="density")
            power += mean * count
        if np.isfinite(power).all():
            self.merge(Spectrum(self.rate, 1, windows, power=power))
        else:
            self.non_finite += 1

    def merge(self, other: "Spectrum") -> None:
        """Take in what was counted after this."""
        self.items += other.items
        self.short += other.short
        self.non_finite += other.non_finite
        if other.windows:
            self.windows += other.windows
            self.power = self.power + other.power if len(self.power) else other.power

    def told(self) -> dict[str, Any]:
        """As it is stored; frequencies in Hz."""
        said = {"items": self.items, "windows": self.windows, "short": self.short, "non_finite": self.non_finite}
        if not self.windows:
            return said
        frequencies = np.fft.rfftfreq(samples(self.rate), 1 / self.rate)
        return {**said, "frequencies": frequencies.tolist(), "power": (self.power / self.windows).tolist()}
