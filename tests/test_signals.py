"""Windows of a recording, its gaps, and the scaling of what the net sees."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly

from diastole.workers.tasks.signals import bridged, clear, gaps, ratio, region, resampled, wavelets
from diastole.workers.tasks.spans import covered, overlap, suppress

RATES = [200, 249.5, 250, 256, 500, 512, 1000, 2048]
SIZE, NET = 7500, 250
EMPTY = np.empty((0, 2), int)


def recording(rate, seconds=100):
    """Drifting noise on an offset, its deviation about 50, as amplifiers give it."""
    rng = np.random.default_rng(round(rate))
    samples = round(rate * seconds)
    return rng.normal(0, 20, samples) + np.cumsum(rng.normal(0, 0.5, samples)) + 300


def window(x, change, start):
    piece, offset = region(start, SIZE, change, len(x))
    return resampled(x[piece], change, offset, SIZE)


@pytest.mark.parametrize("rate", RATES)
def test_a_window_is_what_resampling_the_whole_recording_gives(rate):
    x, change = recording(rate), ratio(rate, NET)
    whole = resample_poly(x, change.numerator, change.denominator, padtype="line")
    for start in (1000, 1001, 4999, 5000, 12345, len(whole) - SIZE - 1000):
        difference = np.abs(window(x, change, start) - whole[start : start + SIZE])
        assert difference.max() <= 1e-6 * x.std()


@pytest.mark.parametrize("rate", RATES)
def test_at_the_ends_of_a_recording_a_window_deviates_by_a_twentieth_of_a_deviation_for_a_tenth_of_a_second(rate):
    # Beyond an end the filter sees a line through the first and the last sample that it has, which is not the same.
    x, change = recording(rate), ratio(rate, NET)
    whole = resample_poly(x, change.numerator, change.denominator, padtype="line")
    for start in (0, 7, len(whole) - SIZE):
        difference = np.abs(window(x, change, start) - whole[start : start + SIZE])
        assert difference.max() <= 0.05 * x.std()
        assert difference[25:-25].max() <= 1e-6 * x.std()


@pytest.mark.parametrize("rate", RATES)
def test_windows_read_no_more_of_the_source_than_they_need(rate):
    change = ratio(rate, NET)
    for start in (0, 1, 5000, 123457):
        piece, offset = region(start, SIZE, change, 10**9)
        assert piece.stop - piece.start <= SIZE / change + 3 * (10 * max(1, 1 / change) + 2) + change.denominator
        assert piece.start % change.denominator == 0
        assert offset == start - piece.start * change


def test_past_the_end_the_last_sample_is_repeated():
    x = recording(250, 31)
    assert np.array_equal(window(x, Fraction(1), 500)[7250:], np.full(250, x[-1]))


@pytest.mark.parametrize("rate", [200, 249.5, 256, 0.1, 512.0001, 1000 / 3])
def test_the_ratio_of_rates_is_exact_where_the_rate_is_rational_to_a_millionth(rate):
    assert float(ratio(rate, NET)) == pytest.approx(NET / rate, rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        ([1, 2, 3], []),
        ([1, 1, 1], [[0, 3]]),
        ([1, 1, 2, 3, 3], []),
        ([5, 5, 5, 1, 2], [[0, 3]]),
        ([2, 1, 5, 5, 5], [[2, 5]]),
        ([1, 5, 5, 5, 5, 2, 0, 0, 0, 1], [[1, 5], [6, 9]]),
        ([5, 5, 5, 6, 6, 6], [[0, 6]]),
        ([np.nan, 1, np.inf, 2, -np.inf], [[0, 1], [2, 3], [4, 5]]),
        ([np.nan, np.nan, 1, 1, 1], [[0, 5]]),
        ([1], []),
        ([np.nan], [[0, 1]]),
        ([], []),
    ],
)
def test_gaps_are_what_is_no_number_or_one_value_for_long(samples, found):
    assert gaps(np.array(samples, float), 3).tolist() == found


def test_gaps_of_digitised_samples_are_those_of_numbers():
    assert gaps(np.array([1, 7, 7, 7, 2], np.int16), 3).tolist() == [[1, 4]]
    assert gaps(np.array([1, 7, 7, 7, 2], np.int16), 4).tolist() == []


def test_two_equal_samples_are_never_a_gap_however_short_one_may_be():
    assert gaps(np.array([1.0, 2.0, 3.0]), 0).tolist() == []
    assert gaps(np.array([1.0, 2.0, 2.0]), 1).tolist() == [[1, 3]]


def test_a_bridge_is_straight_and_holds_the_end_values_outwards():
    x = np.array([9.0, 1.0, np.nan, np.nan, 4.0, np.inf])
    assert bridged(x, np.array([[0, 1], [2, 4], [5, 6]])).tolist() == [1, 1, 2, 3, 4, 4]


def test_a_bridge_takes_gaps_that_reach_beyond_the_window_and_leaves_the_source_as_it_is():
    x = np.array([1.0, 2.0, 3.0, 7.0])
    assert bridged(x, np.array([[-5, 1], [2, 3], [3, 90]])).tolist() == [2, 2, 2, 2]
    assert bridged(x, np.array([[-9, -3], [8, 9]])).tolist() == [1, 2, 3, 7]
    assert bridged(x, EMPTY).tolist() == [1, 2, 3, 7]
    assert bridged(x, np.array([[0, 4]])).tolist() == [0, 0, 0, 0]
    assert x.tolist() == [1, 2, 3, 7]


def test_samples_are_clear_where_no_gap_touches_them():
    half = Fraction(1, 2)
    assert clear(np.array([[20, 23]]), half, 8, 6).tolist() == [True, True, False, False, True, True]
    assert clear(np.array([[0, 17], [26, 40]]), half, 8, 6).tolist() == [False, True, True, True, True, False]
    assert clear(EMPTY, half, 8, 3).all()


def test_where_nothing_is_clear_everything_counts_so_that_scaling_stays_defined():
    assert clear(np.array([[0, 99]]), Fraction(1), 8, 6).all()


def test_the_wavelets_give_the_coefficients_of_pywt():
    import pywt

    for length in (7500, 7501, 800):
        x = recording(250, length / 250) - 300
        spectra = wavelets("shan6-13", (135.0, 270.0, 15), 10, length)
        known, _ = pywt.cwt(x, np.geomspace(135, 270, 15), "shan6-13", method="fft", precision=10)
        found = np.fft.ifft(np.fft.fft(x, spectra.shape[1]) * spectra)[:, :length]
        assert np.abs(found - known).max() <= 1e-6 * np.abs(known).max()


def test_a_real_wavelet_gives_the_coefficients_of_pywt_too():
    import pywt

    x, scales = recording(250, 8) - 300, (4.0, 64.0, 7)
    spectra = wavelets("mexh", scales, 12, len(x))
    known, _ = pywt.cwt(x, np.geomspace(*scales), "mexh", method="fft", precision=12)
    found = np.fft.ifft(np.fft.fft(x, spectra.shape[1]) * spectra)[:, : len(x)]
    assert np.abs(found - known).max() <= 1e-6 * np.abs(known).max()


def test_of_overlapping_events_the_most_confident_stays():
    events = np.array([[0, 10, 0.6], [1, 11, 0.9], [20, 30, 0.5], [9, 19, 0.8], [27, 40, 0.7]])
    assert suppress(events, 0.3).tolist() == [[1, 11, 0.9], [9, 19, 0.8], [27, 40, 0.7], [20, 30, 0.5]]
    assert suppress(np.empty((0, 3)), 0.3).shape == (0, 3)


def test_what_spans_cover_is_counted_once_and_within_the_recording():
    assert covered(np.array([[5, 8], [-3, 2], [7, 9], [95, 120]]), 100) == pytest.approx(2 + 4 + 5)
    assert covered(np.empty((0, 2)), 100) == 0
    assert overlap(np.array([[0, 10], [20, 30]]), 5, 22) == 7
