"""Doses, outlines, segmentations and images in DICOM; what of them is kept, and what is never."""

import copy
import json

import dicoms
import numpy as np
import published
import pydicom
import pytest
import SimpleITK
from dicoms import slice_at
from scipy.ndimage import map_coordinates
from test_dicom_series import itk_geometry

from diastole.lake import arrays
from diastole.lake.errors import ItemError
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers import formats
from diastole.workers.formats import ReadOptions, dicom
from diastole.workers.formats.dicom import contours
from diastole.workers.ingest import IngestOptions, ingest

ALLOWED, PLAIN = ReadOptions(allow_burned_in=True), ReadOptions()
PERSON = "SMITHJOHN1957"


def read(path, folder, options=ALLOWED):
    folder.mkdir()
    dicom.preflight(path, options.limits)
    entries = dicom.read(path, folder, options)
    return entries, [np.load(folder / entry["file"]) for entry in entries]


def saved(header, path):
    header.save_as(path)
    return path


def code(path, folder, options=PLAIN):
    with pytest.raises(ItemError) as caught:
        read(path, folder, options)
    return caught.value.code


# What a file is a part of


def test_a_slice_belongs_to_its_series_and_an_image_to_itself():
    path = dicoms.packaged("CT_small.dcm")
    header = pydicom.dcmread(path)
    reader, part = formats.part_of(path, None)
    assert reader.name == "dicom"
    assert (part.key, part.subject, part.session) == (
        header.SeriesInstanceUID,
        header.PatientID,
        header.StudyInstanceUID,
    )
    picture = dicoms.packaged("examples_rgb_color.dcm")
    assert formats.part_of(picture, None)[1].key == pydicom.dcmread(picture).SOPInstanceUID
    deflated = dicoms.packaged("image_dfl.dcm")
    assert formats.part_of(deflated, None)[1].key == pydicom.dcmread(deflated).SOPInstanceUID


def test_an_index_of_files_is_told_apart(tmp_path):
    path = dicoms.FOLDER / "test_files" / "dicomdirtests" / "DICOMDIR"
    with pytest.raises(ItemError) as caught:
        formats.part_of(path, None)
    assert caught.value.code == code(path, tmp_path / "out") == "index_file"


def test_a_file_without_preamble_is_known_by_its_first_element(tmp_path):
    whole = dicoms.packaged("CT_small.dcm").read_bytes()
    (tmp_path / "bare").write_bytes(whole[132:])
    header = pydicom.dcmread(dicoms.packaged("MR_small_implicit.dcm"))
    pydicom.filewriter.write_dataset(_implicit(tmp_path / "implicit"), header)
    for name in ("bare", "implicit"):
        assert formats.choose(tmp_path / name, None).name == "dicom"
    [entry], [array] = read(tmp_path / "bare", tmp_path / "out")
    assert np.array_equal(array[0], pydicom.dcmread(dicoms.packaged("CT_small.dcm")).pixel_array)
    assert entry["modality"] == "CT"


def _implicit(path):
    file = pydicom.filebase.DicomFileLike(path.open("wb"))
    file.is_implicit_VR, file.is_little_endian = True, True
    return file


# Doses and outlines


@pytest.fixture(scope="module")
def treatment():
    return {name: published.data.radiotherapy(name) for name in ("ct.0", "rtdose", "rtss", "rtplan")}


def test_a_dose_grid_lies_where_gdcm_has_it_and_its_rescale_gives_gray(tmp_path, treatment):
    [entry], [array] = read(treatment["rtdose"], tmp_path / "out")
    dose, affine = itk_geometry(SimpleITK.ReadImage(str(treatment["rtdose"])))
    assert np.array_equal(array, dose)  # GDCM leaves doses unscaled
    assert entry["meta"]["rescale"] == [float(pydicom.dcmread(treatment["rtdose"]).DoseGridScaling), 0.0]
    assert np.allclose(np.reshape(entry["meta"]["affine"], (4, 4)), affine, atol=1e-4)
    assert (array.shape, entry["attributes"]["unit"], entry["modality"]) == ((98, 129, 194), "Gy", "RTDOSE")


def test_frame_offsets_that_are_places_on_z_are_the_same_grid(tmp_path):
    header = pydicom.dcmread(dicoms.packaged("rtdose.dcm"))
    [relative], [expected] = read(dicoms.packaged("rtdose.dcm"), tmp_path / "a")
    header.GridFrameOffsetVector = [
        float(header.ImagePositionPatient[2]) + float(n) for n in header.GridFrameOffsetVector
    ]
    [absolute], [array] = read(saved(header, tmp_path / "moved.dcm"), tmp_path / "b")
    assert np.allclose(absolute["meta"]["affine"], relative["meta"]["affine"], atol=1e-6)
    assert np.array_equal(array, expected)


def test_outlines_keep_every_point_and_only_standard_names(tmp_path, treatment):
    [entry], [points] = read(treatment["rtss"], tmp_path / "out")
    header = pydicom.dcmread(treatment["rtss"])
    at = 0
    for roi in header.ROIContourSequence:
        for contour in roi.get("ContourSequence", []):
            number, first, count, kind = entry["meta"]["contours"][at]
            expected = np.reshape([float(n) for n in contour.ContourData], (-1, 3)) * [-1, -1, 1]
            assert (number, count, kind) == (roi.ReferencedROINumber, len(expected), contour.ContourGeometricType)
            assert np.array_equal(points[first : first + count, :3], expected)
            assert (points[first : first + count, 3] == at).all()
            at += 1
    assert at == len(entry["meta"]["contours"]) == 441
    assert entry["derived_from"] == formats.part_of(treatment["ct.0"], None)[1].key
    names = {roi["number"]: roi["name"] for roi in entry["meta"]["rois"]}
    assert {name for name in names.values() if name} == {"BODY", "Breast", "Heart", "Lt Lung", "Tumor Bed"}


def test_volume_and_dose_of_the_tumour_bed_are_those_that_were_published(tmp_path, treatment):
    """13.1 ml within 1 %, and a mean of 14.29 Gy within 0.5 %: sums of areas and of doses at points 0.5 mm apart."""
    [entry], [points] = read(treatment["rtss"], tmp_path / "a")
    [dosed], [dose] = read(treatment["rtdose"], tmp_path / "b")
    [number] = [roi["number"] for roi in entry["meta"]["rois"] if roi["name"] == "Tumor Bed"]
    to_voxel = np.linalg.inv(np.reshape(dosed["meta"]["affine"], (4, 4)))
    from skimage.draw import polygon

    area, doses = 0.0, []
    for one in entry["meta"]["contours"]:
        if one[0] != number:
            continue
        outline = points[one[1] : one[1] + one[2], :3]
        x, y = outline[:, 0], outline[:, 1]
        area += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        inside = np.stack(polygon((x - x.min()) * 2, (y - y.min()) * 2), 1) / 2 + [x.min(), y.min()]
        at = np.column_stack([inside, np.full(len(inside), outline[0, 2]), np.ones(len(inside))]) @ to_voxel.T
        doses.append(map_coordinates(dose, at[:, 2::-1].T, float, order=1) * dosed["meta"]["rescale"][0])
    assert area * 3.0 / 1000 == pytest.approx(13.1, rel=0.01)
    assert np.concatenate(doses).mean() == pytest.approx(14.29, rel=0.005)


@pytest.mark.parametrize("name", ["Heart", "Lung_L", "GTV", "PTV_5040", "CTVn", "SpinalCord_PRV05", "Lt Kidney"])
def test_standard_names_of_structures_are_kept(name):
    assert contours.standard_name(name) == name


@pytest.mark.parametrize(
    "name", ["Heart of Mr Smith", "GTV Smith", PERSON, "SMITH", "PTV_19570303", "Müller", "", None]
)
def test_other_names_of_structures_are_dropped(name):
    assert contours.standard_name(name) is None


def test_outlines_go_into_a_lake_and_come_back(tmp_path, monkeypatch, treatment):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    lake = Lake.create(str(tmp_path / "lake"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(treatment["rtss"].read_bytes())
    ingest(lake, "d", [tmp_path / "in"], IngestOptions())
    [row] = read_items(lake, "d").to_pylist()
    found, meta = arrays.read_whole(lake, row["array"], row["content_digest"])
    [entry], [points] = read(treatment["rtss"], tmp_path / "out")
    assert np.array_equal(found, points)
    assert meta == entry["meta"]
    assert row["modality"] == "RTSTRUCT"


# Segmentations


def segmentation(segments=(1,), *, apart=False):
    """pydicom's segmentation of a liver, one frame of it, as segments at one place: alike, or each with some columns."""
    header = pydicom.dcmread(dicoms.packaged("liver_1frame.dcm"))
    frame = header.PerFrameFunctionalGroupsSequence[0]
    pixels = header.pixel_array
    frames, described = [], []
    for number in segments:
        one = copy.deepcopy(frame)
        one.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
        mine = np.arange(pixels.shape[1]) % len(segments) == number % len(segments)
        frames.append(pixels * mine if apart else pixels)
        described.append(one)
    kinds = [copy.deepcopy(header.SegmentSequence[0]) for _ in segments]
    for number, kind in zip(segments, kinds, strict=True):
        kind.SegmentNumber, kind.SegmentLabel = number, PERSON
    header.SegmentSequence, header.PerFrameFunctionalGroupsSequence = kinds, described
    header.NumberOfFrames = len(frames)
    header.PixelData = pydicom.pixels.pack_bits(np.stack(frames))
    return header, frames


def test_a_segmentation_is_a_volume_of_segment_numbers_with_codes(tmp_path):
    header, [pixels] = segmentation((3,))
    [entry], [array] = read(saved(header, tmp_path / "a.dcm"), tmp_path / "out")
    assert pixels.any()
    assert np.array_equal(array, pixels[None] * 3)
    assert entry["derived_from"] == header.ReferencedSeriesSequence[0].SeriesInstanceUID
    [segment] = entry["attributes"]["segments"]
    assert segment["number"] == 3
    assert segment["type"] == "SRT:T-62000"
    assert PERSON not in json.dumps(entry)


def test_segments_that_overlap_are_volumes_of_their_own_and_others_one(tmp_path):
    header, frames = segmentation((1, 2))
    entries, stacks = read(saved(header, tmp_path / "a.dcm"), tmp_path / "a")
    assert [entry["suffix"] for entry in entries] == ["#1", "#2"]
    assert np.array_equal(stacks[1][0], frames[1] * 2)
    apart, frames = segmentation((1, 2), apart=True)
    _, [array] = read(saved(apart, tmp_path / "b.dcm"), tmp_path / "b")
    assert np.array_equal(array[0], frames[0] + 2 * frames[1])


def test_slices_that_a_segmentation_leaves_out_are_zero(tmp_path):
    header, _ = segmentation((1, 1))
    step = float(header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices)
    far = header.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    along = header.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross([float(n) for n in along[:3]], [float(n) for n in along[3:]])
    far.ImagePositionPatient = list(np.array(far.ImagePositionPatient, float) + 4 * step * normal)
    [entry], [array] = read(saved(header, tmp_path / "a.dcm"), tmp_path / "out")
    assert [bool(one.any()) for one in array] == [True, False, False, False, True]
    assert entry["meta"]["spacing"][2] == pytest.approx(step)


# Images


def test_what_is_dark_in_monochrome1_is_bright_and_rescale_gives_it_back(tmp_path):
    path = dicoms.FOLDER / "test_files" / "dicomdirtests" / "77654033" / "CR1" / "6154"
    header = pydicom.dcmread(path)
    assert header.PhotometricInterpretation == "MONOCHROME1"
    [entry], [array] = read(path, tmp_path / "out", ReadOptions())
    slope, intercept = entry["attributes"]["rescale"]
    assert np.array_equal(array[0, 0], 2**header.BitsStored - 1 - header.pixel_array)
    original = header.pixel_array * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    assert np.allclose(array[0, 0] * slope + intercept, original, rtol=1e-12)
    assert entry["attributes"]["inverted"] is True
    assert entry["attributes"]["spacing_from"] in ("PixelSpacing", "ImagerPixelSpacing")


def test_a_volume_is_never_inverted(tmp_path):
    one = slice_at(0, 0, PhotometricInterpretation="MONOCHROME1")
    [entry], [array] = read(saved(one, tmp_path / "a.dcm"), tmp_path / "out")
    assert np.array_equal(array[0], one.pixel_array)
    assert entry["attributes"]["photometric"] == "MONOCHROME1"


def test_a_cine_is_numbered_images_with_the_time_of_a_frame(tmp_path):
    [entry], [array] = read(dicoms.packaged("examples_ybr_color.dcm"), tmp_path / "out")
    assert (entry["numbered"], array.shape) == (True, (30, 3, 240, 320))
    assert entry["attributes"]["frame_time_ms"] == float(
        pydicom.dcmread(dicoms.packaged("examples_ybr_color.dcm")).FrameTime
    )


def test_a_capture_is_refused_unless_it_says_no_or_it_is_allowed(tmp_path):
    path = dicoms.packaged("examples_rgb_color.dcm")
    assert code(path, tmp_path / "a") == "burned_in_annotation"
    assert read(path, tmp_path / "b")[0][0]["modality"] == "US"
    header = pydicom.dcmread(path)
    header.BurnedInAnnotation = "NO"
    assert read(saved(header, tmp_path / "no.dcm"), tmp_path / "c", ReadOptions())[1][0].shape == (1, 3, 240, 320)
    slices = slice_at(0, 0, BurnedInAnnotation="YES")
    assert code(saved(slices, tmp_path / "yes.dcm"), tmp_path / "d") == "burned_in_annotation"


# Privacy


def planted(header):
    """Fill every text that may be free with a name, and add elements that often hold one."""
    kept = {"PhotometricInterpretation", "SegmentationType", "ContourGeometricType", "BurnedInAnnotation"}

    def fill(dataset, element):
        if element.VR in ("LO", "SH", "PN", "ST", "LT", "UT", "AE", "CS", "UC", "UN") and element.keyword not in kept:
            element.value = PERSON if element.VR != "UN" else PERSON.encode()

    for keyword in ("SeriesDescription", "ProtocolName", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel",
                    "PatientComments", "ImageComments", "BodyPartExamined", "ViewPosition", "ContrastBolusAgent",
                    "InstitutionName", "Laterality", "DeviceSerialNumber", "StationName"):  # fmt: skip
        setattr(header, keyword, PERSON)
    header.private_block(0x0029, PERSON, create=True).add_new(1, "LO", PERSON)
    header.add_new(0x60000022, "LO", PERSON)  # an overlay's description
    header.walk(fill)
    header.AcquisitionDateTime = "19570303121314"
    return header


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "rtdose.dcm", "rtss", "liver", "examples_rgb_color.dcm", "MR_small.dcm"]
)
def test_planted_names_uids_and_dates_are_in_nothing_that_is_kept(tmp_path, name, treatment):
    path = treatment.get(name) or (dicoms.packaged(name) if name != "liver" else None)
    header = planted(pydicom.dcmread(path) if path else segmentation((1, 2))[0])
    entries, _ = read(saved(header, tmp_path / "a.dcm"), tmp_path / "out")
    for entry in entries:
        for key in ("subject", "session", "key", "acquired_at", "derived_from"):
            entry.pop(key, None)
        written = json.dumps(entry)
        assert "SMITH" not in written
        assert "1957" not in written
        uids = {str(e.value) for e in header.iterall() if e.VR == "UI" and e.keyword not in ("SOPClassUID",)}
        assert not [uid for uid in uids if uid and uid in written and not uid.startswith("1.2.840.10008.")]


def test_when_it_was_acquired_is_told_to_the_parent_alone(tmp_path):
    one = slice_at(0, 0, AcquisitionDate="20040119", AcquisitionTime="072730.5", TimezoneOffsetFromUTC="-0500")
    [entry], _ = read(saved(one, tmp_path / "a.dcm"), tmp_path / "out")
    assert entry["acquired_at"] == "2004-01-19T07:27:30.5-05:00"
    assert "2004" not in json.dumps(entry["attributes"])


def test_copies_of_a_file_are_one_item_and_two_structure_sets_of_a_series_are_two(tmp_path, treatment):
    header = pydicom.dcmread(treatment["rtss"])
    header.SOPInstanceUID += ".1"
    other = saved(header, tmp_path / "b.dcm")
    for name, parts, count in (("same", [treatment["rtss"]] * 2, 1), ("two", [treatment["rtss"], other], 2)):
        (tmp_path / name).mkdir()
        entries = dicom.read(parts[0], tmp_path / name, ReadOptions(parts=tuple(parts)))
        assert len({entry["suffix"] for entry in entries}) == len(entries) == count
    assert "" not in {entry["suffix"] for entry in entries}


def test_a_folder_of_dicom_goes_into_a_lake(tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    lake = Lake.create(str(tmp_path / "lake"))
    folder = tmp_path / "in"
    slices = [slice_at(n, 2.0 * n) for n in range(4)]
    dicoms.write(folder, slices)
    (folder / "DICOMDIR").write_bytes((dicoms.FOLDER / "test_files" / "dicomdirtests" / "DICOMDIR").read_bytes())
    (folder / "again").write_bytes((dicoms.FOLDER / "test_files" / "MR_small.dcm").read_bytes())
    ingest(lake, "d", [folder], IngestOptions())
    rows = {row["modality"]: row for row in read_items(lake, "d").to_pylist()}
    assert {name: row["shape"] for name, row in rows.items()} == {"CT": [4, 128, 128], "MR": [1, 64, 64]}
    assert rows["CT"]["subject_id"] == lake.subject_id(slices[0].PatientID)
    found, _ = arrays.read_whole(lake, rows["CT"]["array"], rows["CT"]["content_digest"])
    assert np.array_equal(found, [one.pixel_array for one in slices])
