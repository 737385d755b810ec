"""Turning volumes: every way in which a voxel grid can lie, and nearest neighbours as torch has them."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from nibabel.orientations import aff2axcodes

from diastole.workers.tasks.geometry import canonical, contiguous, filled, largest_component, nearest, stored

ORIENTATIONS = [
    "".join(axis[sign] for axis, sign in zip(axes, signs, strict=True))
    for axes in permutations(("RL", "AP", "SI"))
    for signs in product((0, 1), repeat=3)
]
SPACING = {"R": 1.0, "A": 2.0, "S": 3.0}
OBLIQUE = np.array([[0.98, -0.17, 0.02], [0.17, 0.96, -0.2], [0.02, 0.2, 0.98]])


def meta_of(codes, turn):
    """Affine of a grid whose voxel axes point as `codes` say, `turn`ed a little."""
    affine = np.eye(4)
    for column, code in enumerate(codes):
        axis = next(n for n, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        sign = 1 if code in "RAS" else -1
        affine[:3, column] = 0
        affine[axis, column] = sign * list(SPACING.values())[axis]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-11, 7, 5)
    assert "".join(aff2axcodes(affine)) == codes
    return {"affine": affine.ravel().tolist()}


def asymmetric(shape=(4, 5, 6)):
    return np.random.default_rng(3).permutation(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize("turn", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_turning_there_and_back_gives_the_volume_again(codes, turn):
    data, meta = asymmetric(), meta_of(codes, turn)
    for target in ("RAS", "LPS", "PIR", None):
        for axes in ("zyx", "xyz"):
            there = canonical(data, meta, target, axes)
            assert np.array_equal(stored(there, meta, target, axes), data)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_voxel_stays_where_it_is_in_the_patient(codes):
    data, meta = asymmetric(), meta_of(codes, np.eye(3))
    affine = np.array(meta["affine"]).reshape(4, 4)
    for target in ("RAS", "LPS", "SAR"):
        turned = canonical(data, meta, target, "xyz")
        known = np.array(meta_of(target, np.eye(3))["affine"]).reshape(4, 4)
        at = {}
        for place in np.ndindex(turned.shape):
            at[turned[place]] = apply_affine(known, place)[:3]
        shifts = [at[data[z, y, x]] - apply_affine(affine, (x, y, z)) for z, y, x in np.ndindex(data.shape)]
        assert np.ptp(shifts, axis=0) == pytest.approx([0, 0, 0], abs=1e-9)  # one shift, that of the origin


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
def test_the_order_of_axes_is_the_one_that_is_asked_for(codes):
    data, meta = asymmetric(), meta_of(codes, np.eye(3))
    xyz, zyx = (canonical(data, meta, "RAS", axes) for axes in ("xyz", "zyx"))
    assert np.array_equal(xyz.transpose(2, 1, 0), zyx)
    if codes == "RAS":
        assert np.array_equal(zyx, data)


def test_what_is_given_back_is_contiguous_and_no_view():
    data, meta = asymmetric(), meta_of("RAS", np.eye(3))
    back = stored(canonical(data, meta, "RAS", "zyx"), meta, "RAS", "zyx")
    assert back.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<f8"])
def test_every_turn_of_a_volume_or_of_a_part_is_copied_into_c_order(dtype):
    whole = asymmetric((7, 8, 16)).astype(dtype)
    for order, steps, first in product(permutations(range(3)), product((1, -1), repeat=3), (0, 2)):
        turned = whole.transpose(order)[tuple(slice(None, None, step) for step in steps)][first:, :, : 6 - first]
        copied = contiguous(turned)
        assert copied.flags.c_contiguous
        assert np.array_equal(copied, turned)
    assert contiguous(whole) is whole


def test_a_volume_of_one_voxel_or_of_none_along_an_axis_is_copied_too():
    for shape in ((1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 1, 1), (0, 5, 6), (5, 6, 0)):
        volume = np.arange(np.prod(shape)).reshape(shape).transpose(2, 1, 0)
        assert np.array_equal(contiguous(volume), volume)


def test_nearest_is_torchs_nearest_exact_bit_for_bit():
    rng = np.random.default_rng(4)
    shapes = [tuple(rng.integers(1, 60, 3)) for _ in range(150)]
    grids = [tuple(rng.integers(1, 60, 3)) for _ in range(150)]
    pairs = [*zip(shapes, grids, strict=True), ((197, 3, 189), (128, 128, 128)), ((233, 2, 170), (256, 1, 256))]
    for shape, grid in pairs:
        volume = rng.normal(size=shape).astype(np.float32)
        known = torch.nn.functional.interpolate(torch.from_numpy(volume)[None, None], grid, mode="nearest-exact")
        assert np.array_equal(nearest(volume, grid), known[0, 0].numpy()), (shape, grid)


def test_nearest_is_torchs_along_every_length_that_scans_and_nets_have():
    for old in (90, 91, 176, 181, 192, 197, 217, 233, 240, 256, 320, 511, 512):
        line = np.arange(old, dtype=np.float32)[:, None, None]
        for new in (64, 96, 128, 160, 193, 224, 256, 384, *range(old - 3, old + 4)):
            known = torch.nn.functional.interpolate(
                torch.from_numpy(line)[None, None], (new, 1, 1), mode="nearest-exact"
            )
            assert np.array_equal(nearest(line, (new, 1, 1)), known[0, 0].numpy()), (old, new)


def test_nearest_keeps_the_dtype_and_leaves_a_grid_of_the_same_shape_as_it_is():
    volume = asymmetric().astype(np.int16)
    assert nearest(volume, (7, 3, 9)).dtype == np.int16
    assert np.array_equal(nearest(volume, volume.shape), volume)
    assert nearest(volume.transpose(2, 1, 0), (6, 5, 4)).flags.c_contiguous


def test_the_largest_component_hangs_together_over_corners():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    mask[4:6, 5, 5] = True
    assert largest_component(mask).sum() == 3
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()
    assert largest_component(np.ones((3, 3, 3), bool)).all()


def test_holes_are_filled_and_dents_are_not():
    mask = np.ones((5, 5, 5), bool)
    mask[2, 2, 2] = mask[0, 2, 2] = False
    assert not filled(mask)[0, 2, 2]
    assert filled(mask)[2, 2, 2]
