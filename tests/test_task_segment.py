"""Brain masks of deepbet: the MNI152 template, stored in several ways, against what deepbet itself gives for each."""

import io
import shutil
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from diastole.jobs.task import Unit
from diastole.lake import arrays
from diastole.lake.errors import ItemError, ModelError, SpecError
from diastole.workers.ingest import IngestOptions, ingest
from diastole.workers.recipes import recipe
from diastole.workers.tasks import make_task

from .published import ROOT, data, drive, golden, new_lake, run, score, weights

CASES = golden("deepbet_mni")["cases"]
STORED = ["mni", "mni_sra", "mni_2mm_int16", "mni_lps_int16_negative_slope"]


def recast(case, of):
    """The array of the template as a case's recipe turns it."""
    return eval(CASES[case].get("recipe", {"data": "v"})["data"], {"v": of})


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """All cases, and items that cannot be scored, in one job."""
    folder = tmp_path_factory.mktemp("brains")
    template = nibabel.load(data.brain())
    v = np.asarray(template.dataobj)
    (folder / "in").mkdir()
    shutil.copy(data.brain(), folder / "in" / "mni.nii.gz")
    for case in STORED[1:]:
        how = CASES[case]["recipe"]
        raw = ((recast(case, v) - how["inter"]) / how["slope"]).astype(how["type"])
        image = nibabel.Nifti1Image(raw, template.affine @ eval(how["affine"], {"np": np}))
        image.header.set_slope_inter(how["slope"], how["inter"])
        nibabel.save(image, folder / "in" / f"{case}.nii")
    oblique = nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz")
    first = nibabel.Nifti1Image(np.asarray(oblique.dataobj)[..., 0], oblique.affine)
    nibabel.save(first, folder / "in" / "nibabel_example4d.nii")
    small = v[::8, ::8, ::8]
    nibabel.save(nibabel.Nifti1Image(np.stack([small, small], -1), template.affine), folder / "in" / "4d.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((20, 21, 22), 7, np.int16), np.eye(4)), folder / "in" / "constant.nii")
    unknown = nibabel.Nifti1Image(small, None)
    nibabel.save(unknown, folder / "in" / "no_orientation.nii")
    with new_lake(folder) as lake:
        yield lake, score(lake, folder / "in", "deepbet", modality="MR")


def mask_of(lake, row):
    [entry] = row["maps"]
    return arrays.read_whole(lake, entry["path"], entry["digest"])


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("case", [*STORED, "nibabel_example4d"])
def test_the_mask_has_deepbets_volume_box_and_centroid_however_the_brain_is_stored(scored, case):
    lake, found = scored
    row, known = found.items[case], CASES[case]
    assert row["status"] == "scored", row["error"]
    assert abs(row["voxels"] - known["voxels"]) <= known["near_half"]["0.001"]  # and of 1000 at most 1
    assert row["volume_ml"] == pytest.approx(known["tiv_ml"], rel=1e-3)
    box = np.array(known["bbox"])
    assert np.abs(np.array(row["bbox"]) - [*box[:, 0], *box[:, 1]]).max() <= 1
    assert row["centroid_mm"] == pytest.approx(known["centroid_mm"], abs=0.05)
    mask, meta = mask_of(lake, row)
    assert list(mask.shape) == known["shape"][:3][::-1]
    assert np.array(meta["affine"]).reshape(4, 4) == pytest.approx(np.array(known["affine"]), abs=1e-5)
    assert meta["orientation"] == known["axes"]


@pytest.mark.parametrize("case", STORED)
def test_the_mask_covers_grey_and_white_matter_as_deepbets_does(scored, case):
    lake, found = scored
    grey, white = (np.asarray(nibabel.load(data.brain(kind)).dataobj) / 255 for kind in ("gm", "wm"))
    tissue = recast(case, grey + white > 0.5)
    mask = mask_of(lake, found.items[case])[0].transpose(2, 1, 0) > 0
    assert dice(mask, tissue) >= 0.93
    assert dice(mask, tissue) == pytest.approx(CASES[case]["dice_gm_wm"], abs=1e-4)


@pytest.mark.parametrize("case", ["mni", "mni_sra", "mni_lps_int16_negative_slope"])
def test_the_mask_is_deepbets_voxel_by_voxel(scored, case):
    lake, found = scored
    packed = zlib.decompress((ROOT / "tests" / "golden" / "deepbet_mni_mask.bin").read_bytes())
    shape = CASES["mni"]["shape"]
    known = np.unpackbits(np.frombuffer(packed, np.uint8))[: np.prod(shape)].reshape(shape) > 0
    mask = mask_of(lake, found.items[case])[0].transpose(2, 1, 0) > 0
    assert dice(mask, recast(case, known)) >= 0.999
    assert (mask != recast(case, known)).sum() <= CASES["mni"]["near_half"]["0.001"]


@pytest.mark.parametrize(("item", "code"), [("4d", "wrong_axes"), ("no_orientation", "orientation_unknown")])
def test_what_does_not_meet_the_contract_is_refused_with_the_reason(scored, item, code):
    row = scored[1].items[item]
    assert (row["status"], row["error_code"], row["maps"]) == ("failed", code, [])
    assert "the model needs" in row["error"]


def test_an_item_of_another_or_of_no_known_modality_is_refused(lake, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "ct").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "ct" / "b.nii")
    ingest(lake, "d", [tmp_path / "ct"], IngestOptions(public=True, modality="CT"))
    found = score(lake, tmp_path / "a.nii", "deepbet")
    assert found.items["b"]["error_code"] == "wrong_modality"
    assert "for MR, the item is CT" in found.items["b"]["error"]
    assert found.items["a"]["error_code"] == "modality_unknown"
    assert "--modality" in found.items["a"]["error"]


def test_a_constant_volume_fails_and_says_why(scored):
    row = scored[1].items["constant"]
    assert (row["status"], row["error_code"]) == ("failed", "no_contrast")


def test_the_map_opens_in_ome_zarr_py_and_in_zarr_with_the_items_geometry(scored):
    import ome_zarr.io
    import ome_zarr.reader
    import zarr

    lake, found = scored
    row = found.items["mni_2mm_int16"]
    mask, _ = mask_of(lake, row)
    path = str(lake.store.path(row["maps"][0]["path"]))
    [node] = list(ome_zarr.reader.Reader(ome_zarr.io.parse_url(path))())
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
    [[transform]] = node.metadata["coordinateTransformations"]
    assert transform == {"type": "scale", "scale": [2.0, 2.0, 2.0]}
    assert np.array_equal(np.asarray(node.data[0]), mask)
    plain = zarr.open_group(path, mode="r")
    assert np.array_equal(plain["0"][...], mask)
    assert plain.attrs["diastole"]["labels"] == ["brain"]


def plain_deepbet(volume):
    """Probabilities on the volume and its scaling, in plain PyTorch with the package's weights."""
    nets = [torch.jit.load(io.BytesIO(weights("deepbet", name))).eval() for name in ("box", "main")]
    x = torch.from_numpy(volume)[None, None].float()
    small = torch.nn.functional.interpolate(x, (128, 128, 128), mode="nearest-exact")
    low, high = np.quantile(small.numpy(), (0.005, 0.995))

    def scaled(x):
        x = ((x - low) / (high - low)).clamp(0, 1)
        return 0.226 * (x - x.mean()) / x.std() + 0.449

    box = tuple(slice(*bounds) for bounds in CASES["mni"]["net_bbox"])
    with torch.inference_mode():
        first = nets[0](scaled(small))[0, 1]
        inside = torch.nn.functional.interpolate(x[(..., *box)], (256, 256, 256), mode="nearest-exact")
        second = nets[1](scaled(inside))[:, 1:]
    whole = torch.zeros(volume.shape)
    shape = whole[box].shape
    whole[box] = torch.nn.functional.interpolate(second, shape, mode="nearest-exact")[0, 0]
    return first.numpy(), whole.numpy(), nets


def test_plain_pytorch_gives_the_same_box_and_probabilities_to_5e_5():
    template = nibabel.load(data.brain())
    volume = np.asarray(template.dataobj)
    first, known, nets = plain_deepbet(volume)
    seen = {}

    def forward(step, inputs):
        with torch.inference_mode():
            seen[step] = nets[step](*inputs.values())
        return {"output": seen[step]}

    manifest = recipe("deepbet")
    meta = {"affine": template.affine.ravel().tolist(), "rescale": [1.0, 0.0]}
    unit = Unit({"input": np.ascontiguousarray(volume.transpose(2, 1, 0))}, {"input": meta})
    state, _ = drive(make_task(manifest), unit, forward)
    assert np.abs(seen[0][0, 1].numpy() - first).max() <= 1e-5
    assert [[s.start, s.stop] for s in state.box] == CASES["mni"]["net_bbox"]
    assert np.abs(state.probability - known[state.box]).max() <= 5e-5
    for width, count in CASES["mni"]["near_half"].items():
        assert abs((np.abs(known - 0.5) < float(width)).sum() - count) <= max(2, 0.02 * count)


def blob(value=0.9, shape=(24, 24, 24)):
    """A net that finds a cube in the middle of whatever it sees."""

    def forward(step, inputs):
        out = torch.zeros((1, 2, *inputs["x"].shape[2:]))
        middle = tuple(slice(n // 4, 3 * n // 4) for n in inputs["x"].shape[2:])
        out[(0, 1, *middle)] = value
        return {"output": out}

    return forward


def small_unit(shape=(30, 31, 32), affine=None):
    volume = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    return Unit({"input": volume}, {"input": {"affine": affine.ravel().tolist(), "rescale": [1.0, 0.0]}})


def with_options(**options):
    """The published model with other options of its own."""
    manifest = recipe("deepbet")
    return manifest.model_copy(update={"options": {**manifest.options, **options}})


@pytest.mark.parametrize("found_by", ["no net", "the first net only"])
def test_an_empty_mask_is_a_result_of_0_ml(found_by):
    def forward(step, inputs):
        return blob(0.9 if step == 0 and found_by == "the first net only" else 0.0)(step, inputs)

    unit = small_unit()
    state, result = drive(make_task(recipe("deepbet")), unit, forward)
    assert (state.box is None) == (found_by == "no net")
    assert (result.columns["voxels"], result.columns["volume_ml"]) == (0, 0.0)
    assert result.columns["mean_probability"] is None
    assert result.maps["mask"].data.shape == unit.data["input"].shape
    assert not result.maps["mask"].data.any()


@pytest.mark.fault(50)
def test_an_empty_mask_reaches_the_table_as_a_scored_row(scored):
    lake, _ = scored
    found = run(lake, "deepbet", {"threshold": 1.0}, only=["mni_2mm_int16"])
    row = found.items["mni_2mm_int16"]
    assert (row["status"], row["volume_ml"], row["voxels"], row["bbox"]) == ("scored", 0.0, 0, None)
    assert not mask_of(lake, row)[0].any()


def test_volume_and_centroid_are_in_the_patients_millimetres():
    unit = small_unit()
    _, result = drive(make_task(recipe("deepbet")), unit, blob())
    mask = result.maps["mask"].data
    assert result.columns["volume_ml"] == pytest.approx(mask.sum() * 6 / 1000)
    z, y, x = (axis.mean() for axis in np.nonzero(mask))
    assert result.columns["centroid_mm"] == pytest.approx([-x, 2 * y, 3 * z])
    assert result.columns["bbox"][:3] == [axis.min() for axis in np.nonzero(mask)[::-1]]
    assert result.columns["mean_probability"] == pytest.approx(0.9)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_number_type_that_a_volume_may_have_is_scaled_alike(dtype):
    values = np.random.default_rng(1).integers(0, 120, (16, 17, 18))
    meta = {"affine": np.eye(4).ravel().tolist(), "rescale": [0.5, -3.0]}
    task, inputs = make_task(recipe("deepbet")), []
    for kind in ("f8", dtype):
        state = task.begin(Unit({"input": values.astype(kind)}, {"input": meta}))
        [window] = task.windows(state, 0)
        inputs.append(task.encode(0, [task.prepare(state, window, {})], "cpu")["x"])
    assert torch.equal(*inputs)


def test_three_passes_look_into_the_box_of_the_pass_before():
    passes = [{"net": "box", "grid": [16, 16, 16], "channel": 1, "margin": 0.0}] * 2 + [{"net": "main", "channel": 1}]
    manifest = recipe("deepbet").model_copy(update={"options": {"passes": passes, "axes": "zyx"}})
    state, _ = drive(make_task(manifest), small_unit((64, 64, 64)), blob())
    assert state.box == (slice(24, 40), slice(24, 40), slice(24, 40))


def test_a_batch_of_several_volumes_scales_each_by_its_own_values():
    task = make_task(recipe("deepbet"))
    units = [small_unit(), small_unit((20, 40, 25))]
    units[1].data["input"][:] *= 3
    states = [task.begin(unit) for unit in units]
    ready = [task.prepare(s, task.windows(s, 0)[0], {}) for s in states]
    together = task.encode(0, ready, "cpu")["x"]
    for place, unit in enumerate(units):
        state = task.begin(unit)
        alone = task.encode(0, [task.prepare(state, task.windows(state, 0)[0], {})], "cpu")["x"]
        assert torch.equal(together[place], alone[0])


def test_constant_inside_of_the_box_is_no_contrast_too():
    task = make_task(with_options(intensity={"standardise": True}))
    unit = small_unit()
    unit.data["input"][:] = 5
    state = task.begin(unit)
    with pytest.raises(ItemError) as caught:
        task.encode(0, [task.prepare(state, task.windows(state, 0)[0], {})], "cpu")
    assert caught.value.code == "no_contrast"


def test_a_model_of_several_classes_is_no_binary_mask():
    for classes in ([], ["grey", "white"]):
        with pytest.raises(ModelError, match="exactly one class"):
            make_task(recipe("deepbet").model_copy(update={"classes": classes}))


def test_axes_that_are_none_are_refused():
    with pytest.raises(SpecError, match="axes"):
        make_task(with_options(axes="yxz"))


def spoiled(slope=1.0):
    """A float volume with three voxels that are no number, and what the net should see there."""
    unit = small_unit()
    data = unit.data["input"].astype(np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    rest = data[np.isfinite(data)] * np.float32(slope)
    seen = [0.0, rest.max(), rest.min()] if slope > 0 else [0.0, rest.min(), rest.max()]
    return Unit({"input": data}, {"input": {**unit.meta["input"], "rescale": [slope, 0.0]}}), seen


@pytest.mark.parametrize("slope", [1.0, -2.0])
def test_voxels_that_are_no_number_are_filled_and_counted(slope):
    task = make_task(with_options(passes=[{"net": "main"}], intensity={}, axes="zyx"))
    unit, wanted = spoiled(slope)
    unit.meta["input"]["affine"] = np.eye(4).ravel().tolist()
    seen = {}

    def forward(step, inputs):
        seen["x"] = inputs["x"]
        return {"output": torch.zeros((1, 1, *inputs["x"].shape[2:]))}

    _, result = drive(task, unit, forward)
    assert seen["x"][0, 0, 0, 0, :3].tolist() == wanted
    assert result.columns["non_finite"] == 3
    assert drive(task, small_unit(), forward)[1].columns["non_finite"] == 0


def test_voxels_that_are_no_number_fail_the_item_where_the_job_says_so():
    task = make_task(recipe("deepbet"), options={"non_finite": "refuse"})
    task.begin(small_unit())
    with pytest.raises(ItemError, match="3 of its 29760 voxels") as caught:
        task.begin(spoiled()[0])
    assert caught.value.code == "non_finite_input"


def test_a_volume_without_any_number_fails_always():
    unit = Unit({"input": np.full((4, 5, 6), np.nan)}, {"input": {"affine": np.eye(4).ravel().tolist()}})
    with pytest.raises(ItemError, match="120 of its 120 voxels"):
        make_task(recipe("deepbet")).begin(unit)


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (2, 16, 16, 8), (2, 16)])
def test_a_net_that_gives_another_shape_than_its_package_says_gives_no_mask(shape):
    task = make_task(with_options(passes=[{"net": "main", "grid": [16, 16, 16], "channel": 1}]))
    with pytest.raises(ItemError) as caught:
        drive(task, small_unit(), lambda step, inputs: {"output": torch.zeros((1, *shape))})
    assert caught.value.code == "wrong_outputs"
