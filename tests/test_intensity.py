"""Scaling of values, part by part and by counts, against numpy's of them all."""

import numpy as np
import pytest
import torch

from diastole.lake.errors import ItemError
from diastole.workers.tasks.intensity import PART, Intensity, Source, scale_into
from diastole.workers.tasks.ranks import neighbours

MOST = PART * 2 + 12345
"""Values in three parts, of which the last is not full."""


def values(dtype, count=MOST):
    drawn = np.random.default_rng(5).normal(60, 20, count).clip(0, 120)
    return drawn.astype(dtype)


def scaled(data, source, bounds=None, **how):
    out = torch.full(data.shape, torch.nan)
    bounds = scale_into(out, torch.from_numpy(data), source, Intensity(**how), bounds)
    return out.numpy(), bounds


def plainly(data, source, quantiles=None, standardise=False, scale=1.0, shift=0.0):
    """The same in float64, with numpy's functions of all values."""
    x = (data.astype(np.float32) * np.float32(source.slope) + np.float32(source.intercept)).astype(np.float64)
    if quantiles:
        low, high = np.quantile(x, quantiles)
        x = ((x - low) / (high - low)).clip(0, 1)
    if standardise:
        x = (x - x.mean()) / x.std(ddof=1)
    return x * scale + shift


@pytest.mark.parametrize("source", [Source(1.0, 0.0), Source(0.25, -7.0), Source(-3.0, 1000.0)], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize(
    "how",
    [
        {"quantiles": (0.005, 0.995), "standardise": True, "scale": 0.226, "shift": 0.449},
        {"quantiles": (0.0, 1.0)},
        {"quantiles": (0.3, 0.5), "scale": -2.0},
        {"standardise": True},
        {"scale": 0.5, "shift": -1.0},
    ],
    ids=str,
)
def test_values_of_every_type_are_scaled_as_numpy_scales_them(dtype, source, how):
    data = values(dtype)
    found, _ = scaled(data, source, **how)
    assert np.abs(found - plainly(data, source, **how)).max() <= 2e-5


@pytest.mark.parametrize("slope", [1.0, -0.5, 0.001])
def test_counting_gives_what_looking_at_each_value_gives_bit_by_bit(slope):
    how = {"quantiles": (0.02, 0.9), "standardise": True, "scale": 3.0}
    source = Source(slope, 11.0)
    known = scaled(values("i2"), source, **how)
    for dtype in ("u1", "i1", "u2", "i4", "f4"):
        data, bounds = scaled(values("i2").astype(dtype), source, **how)
        assert (data == known[0]).all()
        assert bounds == known[1]


def test_the_whole_range_of_16_bits_is_counted():
    for dtype in ("i2", "u2"):
        ends = np.iinfo(dtype)
        data = np.array([ends.min] * 3 + [ends.max], dtype)
        assert scaled(data, Source(1.0, 0.0), quantiles=(0.0, 1.0))[0].tolist() == [0, 0, 0, 1]


def test_bounds_that_are_known_are_not_looked_for_again():
    data = values("i2")
    assert scaled(data, Source(1.0, 0.0), (50.0, 60.0), quantiles=(0.1, 0.9))[1] == (50.0, 60.0)
    assert scaled(np.array([40, 55, 70], "i2"), Source(1.0, 0.0), (50.0, 60.0), quantiles=(0.1, 0.9))[
        0
    ].tolist() == pytest.approx([0, 0.5, 1])


def test_what_is_not_finite_is_filled_before_any_statistic():
    data = values("f4")
    data[[3, 4, 5]] = np.nan, np.inf, -np.inf
    how = {"quantiles": (0.01, 0.99), "standardise": True}
    known = data.copy()
    known[[3, 4, 5]] = 0, 119, 2
    found, _ = scaled(data, Source(1.0, 0.0, ends=(2.0, 119.0)), **how)
    assert (found == scaled(known, Source(1.0, 0.0), **how)[0]).all()


@pytest.mark.parametrize("dtype", ["i2", "f4"])
@pytest.mark.parametrize("how", [{"quantiles": (0.1, 0.9)}, {"standardise": True}])
def test_values_that_are_all_alike_have_no_contrast(dtype, how):
    with pytest.raises(ItemError) as caught:
        scaled(np.full(MOST, 7, dtype), Source(0.1, 0.0), **how)
    assert caught.value.code == "no_contrast"


@pytest.mark.parametrize("threads", [1, 2])
def test_how_many_threads_torch_has_changes_no_bit(threads):
    how = {"quantiles": (0.02, 0.9), "standardise": True}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        known = scaled(values("f4"), Source(0.3, 0.0), **how)
        torch.set_num_threads(threads)
        assert (scaled(values("f4"), Source(0.3, 0.0), **how)[0] == known[0]).all()
    finally:
        torch.set_num_threads(before)


KINDS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "few values": lambda rng, n: rng.integers(0, 7, n),
    "mostly background": lambda rng, n: np.where(rng.random(n) < 0.9, 0, rng.normal(size=n)),
    "ascending": lambda rng, n: np.arange(n),
    "unlike its sample": lambda rng, n: np.where(
        np.arange(n) % max(1, n // 2**14 | 1) == 0, rng.random(n), -rng.random(n)
    ),
    "alike": lambda rng, n: np.full(n, 3.5),
}


@pytest.mark.parametrize("count", [1, 2, 3, 500, 2**14 + 1, 3 * 2**16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_values_at_ranks_are_those_of_the_sorted_values(kind, count):
    data = KINDS[kind](np.random.default_rng(6), count).astype(np.float32)
    ranks = sorted({0, count - 1, count // 2, count // 200, count * 9 // 10})
    following = [min(rank + 1, count - 1) for rank in ranks]
    assert np.array_equal(neighbours(data, ranks), np.sort(data)[[ranks, following]])
