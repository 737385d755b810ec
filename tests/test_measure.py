"""What is measured of masks, against what numpy says of the places of their voxels."""

import numpy as np
import pytest

from diastole.workers.tasks.measure import PART, mean_inside, measured

META = {"affine": [-1.0, 0, 0, 5, 0, 2.0, 0, 6, 0, 0, 3.0, 7, 0, 0, 0, 1]}


@pytest.mark.parametrize("shape", [(30, 20, 10), (300, 4, 5), (4, 300, 5), (4, 5, 300), (511, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_volume_box_and_centroid_are_those_of_the_voxels(shape, share):
    mask = (np.random.default_rng(7).random(shape) < share).astype(np.uint8)
    mask[-1, -1, -1] = 1
    found, places = measured(mask, META), np.nonzero(mask)[::-1]
    assert found["voxels"] == len(places[0])
    assert found["volume_ml"] == pytest.approx(len(places[0]) * 6 / 1000)
    assert found["bbox"] == [int(axis.min()) for axis in places] + [int(axis.max()) + 1 for axis in places]
    x, y, z = (axis.mean() for axis in places)
    assert found["centroid_mm"] == pytest.approx([5 - x, 6 + 2 * y, 7 + 3 * z])


def test_an_empty_mask_has_no_place():
    assert measured(np.zeros((3, 4, 5), np.uint8), META) == {"voxels": 0, "volume_ml": 0.0}


@pytest.mark.parametrize("count", [1, 1000, PART, 2 * PART + 77])
def test_the_mean_is_that_of_one_sum_in_float64_bit_by_bit(count):
    values = np.random.default_rng(8).random((count, 1, 1)).astype(np.float32)
    inside = values > 0.3
    inside[0] = True
    known = np.add.reduce(np.multiply(values, inside), axis=None, dtype=np.float64) / inside.sum()
    assert mean_inside(values, inside) == known


def test_nowhere_has_no_mean():
    assert mean_inside(np.ones((2, 2, 2), np.float32), np.zeros((2, 2, 2), bool)) is None
