"""Each file of pydicom's package is read as pydicom reads it, pixel for pixel, or refused with a code: docs/dicom-files.md."""

import dicom_table
import dicoms
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.pixels import apply_color_lut

from diastole.lake.errors import ItemError
from diastole.workers.formats import ReadOptions, dicom

ROOT = dicom_table.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore")


def arrays_of(path):
    try:
        entries, arrays = dicom_table.outcome(path, allow=True)
    except ItemError as error:
        return error.code, None
    return entries, arrays


def as_pydicom_has_them(entry, array, header):
    """The stored array in the order of pydicom's axes, with MONOCHROME1 turned back."""
    if entry["kind"] == "images":
        array = np.moveaxis(array, 1, -1) if array.shape[1] == 3 else array[:, 0]
        if entry["attributes"].get("inverted"):
            array = 2**header.BitsStored - 1 - array
    return array[0] if len(array) == 1 else array


def test_the_table_of_files_says_what_the_code_does():
    assert (ROOT / "docs" / "dicom-files.md").read_text() == dicom_table.table()


def test_every_file_that_is_read_equals_pydicoms_pixel_array_pixel_for_pixel():
    read, codes = 0, {}
    for path in dicoms.files():
        entries, arrays = arrays_of(path)
        if arrays is None:
            codes[entries] = codes.get(entries, 0) + 1
            continue
        [entry], [array] = entries, arrays
        if entry["kind"] == "contours":
            continue
        header = pydicom.dcmread(path)
        expected = header.pixel_array
        if header.PhotometricInterpretation == "PALETTE COLOR":
            expected = apply_color_lut(expected, header)
        found = as_pydicom_has_them(entry, array, header)
        assert found.dtype == expected.dtype.newbyteorder("="), path.name
        assert np.array_equal(found, expected.reshape(found.shape)), path.name
        read += 1
    assert read >= 98
    assert set(codes) == {"unknown_format", "unsupported", "truncated", "header_lies", "index_file"}


@pytest.mark.parametrize(
    "name", ["JPGExtended.dcm", "JPEG-lossy.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEGLSNearLossless_16.dcm"]
)
def test_jpeg_that_pydicom_itself_does_not_decode_equals_gdcm(name):
    path = dicoms.packaged(name)
    [entry], [array] = dicom_table.outcome(path, allow=True)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert np.array_equal(np.moveaxis(array, 1, -1).squeeze(), expected.squeeze())
    assert entry["attributes"]["format"] == "dicom"


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_gives_the_pixels_back(tmp_path, bits, frames):
    import imagecodecs
    from pydicom.encaps import encapsulate

    made = pydicom.dcmread(dicoms.packaged("chrGreek.dcm"))
    wide = np.uint8 if bits == 8 else np.uint16
    pixels = np.random.default_rng(0).integers(0, 2**bits, (frames, 40, 50)).astype(wide)
    coded = [imagecodecs.jpeg8_encode(p, lossless=True, bitspersample=bits, predictor=1) for p in pixels]
    made.Rows, made.Columns, made.NumberOfFrames, made.BitsStored, made.HighBit = 40, 50, frames, bits, bits - 1
    made.BitsAllocated = 8 if bits == 8 else 16
    made.PixelData = encapsulate(coded)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    made.save_as(tmp_path / "a")
    _, [array] = dicom_table.outcome(tmp_path / "a", allow=True)
    assert np.array_equal(array[:, 0], pixels)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (8, 7), (16, 16), (16, 12), (32, 32), (32, 20)])
def test_plain_pixels_are_pydicoms_also_where_bits_are_not_used(tmp_path, syntax, signed, allocated, stored):
    made = dicoms.slice_at(0, 0.0)
    pixels = np.random.default_rng(0).integers(0, 2**allocated, (2, 6, 5)).astype(f"u{allocated // 8}")
    made.Rows, made.Columns, made.PixelRepresentation = 6, 5, signed
    made.BitsAllocated, made.BitsStored, made.HighBit = allocated, stored, stored - 1
    if "PixelPaddingValue" in made:
        del made.PixelPaddingValue
    for number in range(2):
        made.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        made["PixelData"].VR = "OW"
        made.PixelData = pixels[number].tobytes()
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        made.ImagePositionPatient = [0, 0, number]
        made.save_as(tmp_path / f"{number}", implicit_vr=syntax.startswith("Implicit"))
    paths = tuple(sorted(tmp_path.iterdir()))
    out = tmp_path / "out"
    out.mkdir()
    [entry] = dicom.read(paths[0], out, ReadOptions(parts=paths))
    found = np.load(out / entry["file"])
    expected = np.stack([pydicom.dcmread(path).pixel_array for path in paths])
    assert found.dtype == expected.dtype.newbyteorder("<")
    assert np.array_equal(found, expected)
