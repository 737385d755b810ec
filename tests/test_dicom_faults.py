"""Faults 32 to 38 in DICOM: cut, damaged, lying, nested and inflated files cost one item, a code and no more memory than is allowed."""

import io
import struct
import time
import zlib

import dicoms
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from diastole.lake.errors import ItemError
from diastole.workers import formats
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions, dicom

ALLOWED = ReadOptions(Limits(2**26), allow_burned_in=True)


def outcome(path, folder, options=ALLOWED):
    """The code of what was raised, or the arrays."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    try:
        dicom.preflight(path, options.limits)
        return [np.load(folder / entry["file"]) for entry in dicom.read(path, folder, options)]
    except ItemError as error:
        return error.code


def edited(path, **fields):
    header = pydicom.dcmread(dicoms.packaged("CT_small.dcm"))
    for keyword, value in fields.items():
        setattr(header, keyword, value)
    header.save_as(path)
    return path


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "image_dfl.dcm",
     "SC_rgb_rle_2frame.dcm", "rtdose_1frame.dcm"],
)  # fmt: skip
def test_a_file_that_is_cut_anywhere_is_refused_and_read_only_if_no_pixel_is_missing(tmp_path, name):
    whole = dicoms.packaged(name).read_bytes()
    [expected] = outcome(dicoms.packaged(name), tmp_path / "out")
    path, codes = tmp_path / "cut", set()
    for at in [*range(0, len(whole) - 1, max(len(whole) // 60, 1)), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:at])
        found = outcome(path, tmp_path / "out")
        if isinstance(found, str):
            codes.add(found)
        else:
            assert np.array_equal(found[0], expected)  # what was cut off was padding
    assert codes <= {"truncated", "unreadable", "unsupported", "header_lies"}
    assert "truncated" in codes


@pytest.mark.fault(32)
def test_a_header_that_is_cut_is_found_before_its_series_is_told(tmp_path):
    whole = dicoms.packaged("CT_small.dcm").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:1500])
    with pytest.raises(ItemError) as caught:
        formats.part_of(tmp_path / "cut", None)
    assert caught.value.code == "truncated"


@pytest.mark.fault(33)
def test_a_megabyte_that_inflates_to_two_gigabytes_is_too_large_in_seconds_and_in_little_memory(tmp_path):
    whole = dicoms.packaged("image_dfl.dcm").read_bytes()
    length = struct.unpack("<I", whole[140:144])[0]
    start = 144 + length
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(zlib.decompress(whole[start:], -15)[:-262144]) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**20)) + packer.flush(
        zlib.Z_FULL_FLUSH
    )  # as often as wanted: it starts afresh each time
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(whole[:start] + first + zeros * 2100 + packer.flush())
    assert bomb.stat().st_size < 2.5 * 2**20
    began = time.monotonic()
    with Decoder(memory_bytes=2**30) as decoder, pytest.raises(ItemError) as caught:
        decoder.decode(bomb, None, ALLOWED)
    assert caught.value.code == "too_large"
    assert time.monotonic() - began < 20
    assert formats.part_of(bomb, None)[1].key  # tells what it is without inflating it all


@pytest.mark.fault(37)
@pytest.mark.parametrize("defined", [False, True])
def test_five_thousand_nested_sequences_are_refused(tmp_path, defined):
    whole = dicoms.packaged("CT_small.dcm").read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00")
    if defined:
        inner = b""
        for _ in range(5000):
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
            inner = b"\x40\x00\x75\x02SQ\0\0" + struct.pack("<I", len(item)) + item
    else:
        begin = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        inner = begin * 5000 + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * 5000
    (tmp_path / "deep").write_bytes(whole[:at] + inner + whole[at:])
    found = outcome(tmp_path / "deep", tmp_path / "out")
    if defined:  # nothing asks for what is in it, so nothing is nested
        assert np.array_equal(found[0][0], pydicom.dcmread(dicoms.packaged("CT_small.dcm")).pixel_array)
    else:
        assert found == "header_lies"


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({"Rows": 65535, "Columns": 65535}, {"too_large"}),
        ({"Rows": 0}, {"header_lies"}),
        ({"Rows": 129}, {"truncated"}),
        ({"NumberOfFrames": 2**31 - 1}, {"too_large"}),
        ({"NumberOfFrames": -3}, {"header_lies"}),
        ({"NumberOfFrames": 2}, {"truncated"}),
        ({"BitsAllocated": 24}, {"unsupported"}),
        ({"BitsStored": 17}, {"header_lies"}),
        ({"HighBit": 11}, {"unsupported"}),
        ({"SamplesPerPixel": 5}, {"unsupported"}),
        ({"PhotometricInterpretation": "CMYK"}, {"unsupported"}),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, {"unsupported", "burned_in_annotation"}),
        ({"PixelSpacing": [0, 0]}, {"header_lies"}),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, {"header_lies"}),
        ({"RescaleSlope": 0}, {"header_lies"}),
        ({"SOPClassUID": "1.2.3"}, {"unsupported"}),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, fields, codes):
    assert outcome(edited(tmp_path / "a", **fields), tmp_path / "out") in codes


@pytest.mark.fault(34)
@pytest.mark.parametrize("length", [2**31, 2**32 - 2])
def test_an_element_that_claims_gigabytes_is_truncated(tmp_path, length):
    whole = dicoms.packaged("CT_small.dcm").read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00")
    (tmp_path / "a").write_bytes(whole[:at] + b"\x09\x01\x10\x00OB\0\0" + struct.pack("<I", length) + whole[at:])
    assert outcome(tmp_path / "a", tmp_path / "out") == "truncated"


@pytest.mark.fault(33)
def test_a_compressed_frame_that_claims_another_size_is_refused_before_it_is_decoded(tmp_path):
    header = pydicom.dcmread(dicoms.packaged("JPEG2000.dcm"))
    [frame] = pydicom.encaps.generate_frames(header.PixelData, number_of_frames=1)
    at = frame.index(b"\xff\x4f\xff\x51") + 8
    header.PixelData = encapsulate([frame[:at] + struct.pack(">II", 60000, 60000) + frame[at + 8 :]])
    header.save_as(tmp_path / "a")
    assert outcome(tmp_path / "a", tmp_path / "out") == "header_lies"


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "liver_1frame.dcm", "rtstruct.dcm"],
)
def test_flipped_bytes_give_pixels_or_a_code_and_never_another_error(tmp_path, name):
    whole = dicoms.packaged(name).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(132, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "a").write_bytes(damaged)
        found = outcome(tmp_path / "a", tmp_path / "out")
        assert isinstance(found, list) or found


def test_a_gzipped_file_and_what_is_no_image_are_refused(tmp_path):
    assert outcome(dicoms.packaged("zipMR.gz"), tmp_path / "out") == "unsupported"
    for name in ("waveform_ecg.dcm", "test-SR.dcm", "rtplan.dcm", "fall.dcm"):
        assert outcome(dicoms.packaged(name), tmp_path / "out") == "unsupported"


@pytest.mark.slow
def test_a_series_of_six_hundred_slices_is_read_in_the_childs_memory(tmp_path):
    """300 MB of voxels in the gigabyte of address space that a decoder has."""
    slices = [dicoms.slice_at(n, float(n)) for n in range(5)]
    paths = []
    for number in range(600):
        one = slices[number % 5]
        one.Rows = one.Columns = 512
        one.PixelData = np.full((512, 512), number, np.int16).tobytes()
        one.ImagePositionPatient, one.SOPInstanceUID = [0, 0, float(number)], f"1.2.{number}"
        paths.append(tmp_path / f"{(number * 7919) % 600:03}")
        one.save_as(paths[-1])
    with Decoder() as decoder:
        decoded = decoder.decode(paths[0], None, ReadOptions(parts=tuple(map(str, sorted(paths)))))
        [entry] = decoded.entries
        array = np.load(decoded.file(entry["file"]), mmap_mode="r")
        assert array.shape == (600, 512, 512)
        assert np.array_equal(array[:, 0, 0], np.arange(600))


def test_the_child_reads_a_series_of_several_files(tmp_path):
    paths = dicoms.write(tmp_path / "in", [dicoms.slice_at(n, 2.0 * n) for n in range(4)])
    with Decoder() as decoder:
        decoded = decoder.decode(paths[0], None, ReadOptions(parts=tuple(map(str, paths))))
        assert decoded.format == "dicom"
        assert np.load(decoded.file(decoded.entries[0]["file"])).shape == (4, 128, 128)


def test_a_palette_in_segments_is_refused_or_read_but_never_guessed(tmp_path):
    header = pydicom.dcmread(dicoms.packaged("examples_palette.dcm"))
    for colour in ("Red", "Green", "Blue"):
        delattr(header, f"{colour}PaletteColorLookupTableData")
    buffer = io.BytesIO()
    header.save_as(buffer)
    (tmp_path / "a").write_bytes(buffer.getvalue())
    assert outcome(tmp_path / "a", tmp_path / "out") == "unsupported"


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("keyword", "vr", "words"),
    [
        ("RescaleSlope", b"DS", b"1x"),
        ("RescaleIntercept", b"DS", b"-10x4"),
        ("PixelSpacing", b"DS", b"0.6x"),
        ("ImagePositionPatient", b"DS", b"1\\2"),
        ("ImageOrientationPatient", b"DS", b"1\\0"),
        ("SliceThickness", b"DS", b"?"),
    ],
)
def test_what_says_what_values_and_places_mean_is_never_left_out_where_it_is_damaged(tmp_path, keyword, vr, words):
    """Else a CT whose intercept has one bad byte would be 1024 Hounsfield units off, and nobody told."""
    data = dicoms.packaged("CT_small.dcm").read_bytes()
    tag = pydicom.datadict.tag_for_keyword(keyword)
    at = data.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr)
    [length] = struct.unpack("<H", data[at + 6 : at + 8])
    (tmp_path / "f").write_bytes(data[: at + 8] + words.ljust(length)[:length] + data[at + 8 + length :])
    (tmp_path / "out").mkdir()
    with pytest.raises(ItemError, match=f"its {keyword} is not what it has to be") as caught:
        dicom.read(tmp_path / "f", tmp_path / "out", ALLOWED)
    assert caught.value.code == "header_lies"
