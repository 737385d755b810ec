"""Series of DICOM slices: sorted, measured, and refused where they are not whole. SimpleITK (GDCM) is the second reader."""

import dicoms
import numpy as np
import pytest
import SimpleITK
from dicoms import OBLIQUE, slice_at

from diastole.lake.errors import ItemError
from diastole.workers import formats
from diastole.workers.formats import ReadOptions, dicom

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def read(paths, folder, **options):
    folder.mkdir()
    said = ReadOptions(parts=tuple(paths), **options)
    for path in paths:
        dicom.preflight(path, said.limits)
    entries = dicom.read(paths[0], folder, said)
    return entries, [np.load(folder / entry["file"]) for entry in entries]


def made(tmp_path, slices, **options):
    return read(dicoms.write(tmp_path / "in", slices), tmp_path / "out", **options)


def code(tmp_path, slices):
    with pytest.raises(ItemError) as caught:
        made(tmp_path, slices)
    return caught.value.code


def itk(paths):
    """Values after rescaling (z, y, x), and the affine voxel → RAS, as GDCM has them; sorted by GDCM alone."""
    reader = SimpleITK.ImageSeriesReader()
    folder = str(paths[0].parent)
    [series] = reader.GetGDCMSeriesIDs(folder)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, series))
    return itk_geometry(reader.Execute())


def itk_geometry(image):
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), LPS_TO_RAS @ affine


def values(entry, array):
    slope, intercept = entry["meta"]["rescale"]
    return array * slope + intercept


def assert_same(entry, array, paths):
    found, affine = itk(paths)
    assert np.array_equal(values(entry, array), found)
    assert np.allclose(np.reshape(entry["meta"]["affine"], (4, 4)), affine, atol=1e-6)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1)])
def test_slices_are_sorted_by_where_they_lie_and_voxels_and_affine_are_gdcms(tmp_path, orientation):
    slices = [slice_at(n, 2.5 * n, orientation, RescaleSlope=2, RescaleIntercept=-100) for n in range(7)]
    paths = dicoms.write(tmp_path / "in", slices)
    [entry], [array] = read(paths, tmp_path / "out")
    assert array.shape == (7, 128, 128)
    assert array.dtype == np.int16
    assert entry["meta"]["spacing"] == [0.75, 0.5, 2.5]
    assert entry["meta"]["rescale"] == [2.0, -100.0]
    assert_same(entry, array, paths)
    if orientation == (1, 0, 0, 0, 1, 0):
        assert entry["meta"]["orientation"] == "LPS"


def of_package(folder):
    """The files of the first series of a folder of pydicom's."""
    groups = {}
    for path in sorted((dicoms.FOLDER / "test_files" / "dicomdirtests" / folder).iterdir()):
        groups.setdefault(formats.part_of(path, None)[1].key, []).append(path)
    return next(iter(groups.values()))


def test_a_series_of_pydicoms_package_is_read_as_gdcm_reads_it(tmp_path):
    paths = of_package("98892001/CT5N")
    [entry], [array] = read(paths, tmp_path / "out")
    assert array.shape == (5, 16, 16)
    assert_same(entry, array, paths)


@pytest.mark.parametrize(("folder", "slices"), [("98892001/CT2N", [1, 1]), ("98892003/MR700", [1] * 7)])
def test_scouts_and_projections_from_several_sides_are_items_of_their_own(tmp_path, folder, slices):
    entries, arrays = read(of_package(folder), tmp_path / "out")
    assert [len(array) for array in arrays] == slices
    assert len({entry["suffix"] for entry in entries}) == len(slices)


def test_a_series_of_pydicoms_package_that_has_only_some_of_its_slices_is_refused(tmp_path):
    with pytest.raises(ItemError, match="161 of 165 slices"):
        read(of_package("77654033/CT2"), tmp_path / "out")


@pytest.mark.fault(32)
def test_a_gap_is_missing_slices_and_says_how_many(tmp_path):
    slices = [slice_at(n, 2.5 * n) for n in range(9) if n not in (3, 4, 6)]
    with pytest.raises(ItemError, match="3 of 9 slices are missing") as caught:
        made(tmp_path, slices)
    assert caught.value.code == "missing_slices"


def test_uneven_slices_are_refused_and_rounded_places_are_not(tmp_path):
    assert code(tmp_path / "a", [slice_at(n, 2.5 * n + (0.4 if n == 3 else 0)) for n in range(7)]) == "uneven_slices"
    [entry], _ = made(tmp_path / "b", [slice_at(n, round(1.25 * n, 1)) for n in range(9)])
    assert entry["meta"]["spacing"][2] == pytest.approx(1.25, abs=0.01)


def test_slices_that_drift_aside_keep_their_places(tmp_path):
    slices = [slice_at(n, 2.0 * n, drift=(0, 0.5 * n, 0)) for n in range(5)]
    [entry], _ = made(tmp_path, slices)
    affine = np.reshape(entry["meta"]["affine"], (4, 4))
    for number, one in enumerate(slices):
        assert np.allclose(
            LPS_TO_RAS[:3, :3] @ one.ImagePositionPatient, affine[:3, 3] + number * affine[:3, 2], atol=1e-5
        )
    assert entry["attributes"]["tilt"] == pytest.approx(np.degrees(np.arctan(0.25)), abs=0.01)
    bent = [slice_at(n, 2.0 * n, drift=(0, (1.0 if n == 2 else 0.0), 0)) for n in range(5)]
    assert code(tmp_path / "bent", bent) == "inconsistent_series"


def test_a_doubled_slice_is_dropped_and_counted(tmp_path):
    slices = [slice_at(n, 2.5 * n) for n in (0, 1, 2, 3, 1, 1)]
    [entry], [array] = made(tmp_path, slices)
    assert len(array) == 4
    assert entry["attributes"]["doubled_slices"] == 2
    assert np.array_equal(array[1], slices[1].pixel_array)


def test_other_pixels_at_one_place_are_refused_where_nothing_tells_them_apart(tmp_path):
    slices = [slice_at(n, 2.5 * n) for n in range(4)] + [slice_at(9, 2.5)]
    assert code(tmp_path, slices) == "inconsistent_series"


@pytest.mark.parametrize(
    ("keyword", "given", "name", "step"),
    [
        ("TemporalPositionIdentifier", (1, 2, 3), "temporal_position", None),
        ("TriggerTime", (0, 40, 80), "trigger_time_ms", 0.04),
        ("EchoTime", (4.6, 9.2, 13.8), "echo_time_ms", None),
        ("DiffusionBValue", (0, 500, 1000), "b_value", None),
    ],
)
def test_slices_at_one_place_that_time_echo_or_b_value_tells_apart_are_a_fourth_axis(
    tmp_path, keyword, given, name, step
):
    slices = [slice_at(n + 4 * t, 2.0 * n, **{keyword: v}) for t, v in enumerate(given) for n in range(4)]
    [entry], [array] = made(tmp_path, slices)
    assert array.shape == (3, 4, 128, 128)
    assert entry["attributes"]["fourth_axis"] == name
    assert entry["attributes"]["fourth_axis_values"] == list(given)
    assert entry["meta"]["time_step"] == step
    for number, one in enumerate(slices):
        assert np.array_equal(array[number // 4, number % 4], one.pixel_array)
    assert code(tmp_path / "cut", slices[:-1]) == "inconsistent_series"


def test_magnitude_and_phase_at_one_place_are_two_items(tmp_path):
    slices = [
        slice_at(n + 5 * k, 2.0 * n, ImageType=["ORIGINAL", "PRIMARY", kind])
        for k, kind in enumerate(("M", "P"))
        for n in range(4)
    ]
    entries, arrays = made(tmp_path, slices)
    kinds = {tuple(entry["attributes"]["image_type"])[2]: array for entry, array in zip(entries, arrays, strict=True)}
    assert np.array_equal(kinds["M"], [one.pixel_array for one in slices[:4]])
    assert np.array_equal(kinds["P"], [one.pixel_array for one in slices[4:]])


def test_other_directions_are_other_items_whose_suffixes_do_not_depend_on_how_many_slices_there_are(tmp_path):
    axial, scout = [slice_at(n, 2.5 * n) for n in range(6)], [slice_at(3, 0, (0, 1, 0, 0, 0, -1))]
    entries, arrays = made(tmp_path / "a", axial + scout)
    sizes = {entry["suffix"]: len(array) for entry, array in zip(entries, arrays, strict=True)}
    assert sorted(sizes.values()) == [1, 6]
    assert len(sizes) == 2
    again, more = made(tmp_path / "b", scout + axial[:3])
    assert {e["suffix"]: len(a) for e, a in zip(again, more, strict=True)} == {
        s: 3 if n == 6 else 1 for s, n in sizes.items()
    }
    [alone], _ = made(tmp_path / "c", axial)
    assert alone["suffix"] == ""


def test_a_rescale_that_differs_from_slice_to_slice_is_applied_as_gdcm_applies_it(tmp_path):
    slices = [slice_at(n, 2.5 * n, RescaleSlope=0.5 + n, RescaleIntercept=0, Modality="PT") for n in range(4)]
    for one in slices:
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    paths = dicoms.write(tmp_path / "in", slices)
    [entry], [array] = read(paths, tmp_path / "out")
    assert array.dtype == np.float32
    assert entry["meta"]["rescale"] == [1.0, 0.0]
    expected = [one.pixel_array * float(one.RescaleSlope) for one in slices]
    assert np.array_equal(array, np.array(expected, np.float32))
    assert np.allclose(array, itk(paths)[0], rtol=1e-6)


def test_suv_factor_is_kept_without_the_weight_and_the_dose(tmp_path):
    drug = dicoms.pydicom.Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife, drug.RadiopharmaceuticalStartTime = 3.7e8, 6586.2, "100000"
    said = {"PatientWeight": "73.25", "Units": "BQML", "DecayCorrection": "START", "SeriesDate": "20200102"}
    slices = [slice_at(n, 2.5 * n, SeriesTime="110000", **said) for n in range(3)]
    for one in slices:
        one.SOPClassUID, one.RadiopharmaceuticalInformationSequence = "1.2.840.10008.5.1.4.1.1.128", [drug]
    [entry], _ = made(tmp_path, slices)
    factor = 73250 / (3.7e8 * 2 ** (-3600 / 6586.2))
    assert entry["attributes"]["suv_bw_factor"] == pytest.approx(factor, rel=1e-12)
    assert entry["attributes"]["unit"] == "Bq/ml"
    assert "73" not in str({k: v for k, v in entry["attributes"].items() if k != "suv_bw_factor"})


def test_slices_without_places_are_refused_but_one_alone(tmp_path):
    slices = [slice_at(n, 2.5 * n) for n in range(3)]
    for one in slices:
        del one.ImagePositionPatient
    assert code(tmp_path / "a", slices) == "no_geometry"
    [entry], _ = made(tmp_path / "b", slices[:1])
    assert (entry["meta"]["orientation"], entry["attributes"]["affine"]) == (None, "assumed")


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE])
def test_a_multi_frame_file_is_the_volume_that_its_slices_are(tmp_path, orientation):
    slices = [slice_at(n, 2.5 * n, orientation) for n in range(6)]
    [single], [expected] = made(tmp_path / "a", slices)
    shuffled = [slices[n] for n in (3, 0, 5, 1, 4, 2)]
    [entry], [array] = made(tmp_path / "b", [dicoms.enhanced(shuffled)])
    assert np.array_equal(array, expected)
    assert entry["meta"] == single["meta"]
    assert code(tmp_path / "c", [dicoms.enhanced(shuffled[1:])]) == "missing_slices"


def test_files_of_two_subjects_under_one_series_are_refused(tmp_path):
    slices = [slice_at(n, 2.5 * n, PatientID=f"p{n // 2}") for n in range(4)]
    assert code(tmp_path, slices) == "inconsistent_series"
