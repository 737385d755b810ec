"""Windows of a recording at a net's sampling rate, what is missing in it, and wavelets."""

from fractions import Fraction
from functools import lru_cache

import numpy as np


def ratio(rate: float, wanted: float) -> Fraction:
    """wanted / rate as a fraction of small numbers; recordings' rates are rational to a millionth."""
    return Fraction(wanted).limit_denominator(10**6) / Fraction(rate).limit_denominator(10**6)


def gaps(samples: np.ndarray, shortest: int) -> np.ndarray:
    """[start, stop) of what is no signal: NaN, infinite, or one value repeated at least `shortest` times. (n, 2)."""
    bad = ~np.isfinite(samples)
    edges = np.flatnonzero(np.concatenate([[True], samples[1:] != samples[:-1], [True]]))
    for run in np.flatnonzero(np.diff(edges) >= max(shortest, 2)):
        bad[edges[run] : edges[run + 1]] = True
    change = np.flatnonzero(np.diff(np.concatenate([[0], bad.astype(np.int8), [0]])))
    return change.reshape(-1, 2)


def bridged(samples: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Gaps replaced by straight lines between their ends, so that filters and nets see no jump. float64.

    `missing` may reach beyond the samples; where all are missing, they are 0.
    """
    bad = np.zeros(len(samples), bool)
    for start, stop in np.clip(missing, 0, len(samples)):
        bad[start:stop] = True
    filled = np.where(bad, 0.0, samples)
    if bad.any() and not bad.all():
        places = np.arange(len(samples))
        filled[bad] = np.interp(places[bad], places[~bad], filled[~bad])
    return filled


def clear(missing: np.ndarray, change: Fraction, start: int, length: int) -> np.ndarray:
    """Which of `length` samples from `start` at the new rate lie in no gap of the source; all where none does."""
    bad = np.zeros(length, bool)
    spans = missing * float(change) - start
    for first, last in np.clip(np.stack([np.floor(spans[:, 0]), np.ceil(spans[:, 1])], 1), 0, length).astype(int):
        bad[first:last] = True
    return bad if bad.all() else ~bad


def region(start: int, length: int, change: Fraction, total: int) -> tuple[slice, int]:
    """What to read of the source for `length` samples from `start` at the new rate, and where they begin in it.

    The halo covers the filter of `resampled`; the first sample read falls on one of the new rate.
    """
    up, down = change.numerator, change.denominator
    halo = 10 * max(up, down) // up + 2
    first = max((start * down // up - halo) // down * down, 0)
    last = min(-(-(start + length) * down // up) + halo, total)
    return slice(first, last), start - first * up // down


def resampled(samples: np.ndarray, change: Fraction, offset: int, length: int) -> np.ndarray:
    """Samples at the new rate (polyphase, Kaiser 5.0, anti-aliased), the last one repeated where the end is short."""
    if change != 1:
        from scipy.signal import resample_poly

        samples = resample_poly(samples, change.numerator, change.denominator, padtype="line")
    piece = samples[offset : offset + length]
    return np.concatenate([piece, np.repeat(piece[-1:], length - len(piece))])


@lru_cache(maxsize=8)
def wavelets(name: str, scales: tuple[float, float, int], precision: int, length: int) -> np.ndarray:
    """Spectra (scales, n) of a wavelet at geometric scales, by which that of `length` samples, padded to n, is multiplied.

    The first `length` values of the inverse transform are then the coefficients of `pywt.cwt`, for a wavelet sampled
    at 2^precision points, as a net that learned from them needs it.
    """
    import pywt
    from scipy.fft import next_fast_len

    integral, places = pywt.integrate_wavelet(name, precision=precision)
    kernels = []
    for scale in np.geomspace(*scales):
        taken = (np.arange(scale * (places[-1] - places[0]) + 1) / (scale * (places[1] - places[0]))).astype(int)
        resized = np.conj(integral)[taken[taken < len(integral)]][::-1]
        kernels.append(-np.sqrt(scale) * np.diff(resized, prepend=0, append=0))
    size = next_fast_len(length + max(len(kernel) for kernel in kernels))
    spectra = np.empty((len(kernels), size), np.complex64)
    for row, kernel in zip(spectra, kernels, strict=True):
        centred = np.zeros(size, np.complex128)
        centred[: len(kernel)] = kernel
        row[:] = np.fft.fft(np.roll(centred, -((len(kernel) - 1) // 2)))
    return spectra
