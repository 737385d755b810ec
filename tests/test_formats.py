import gzip
import io
import json
import struct
from pathlib import Path

import edfio
import nibabel
import numpy as np
import pytest

from diastole.lake.errors import ItemError
from diastole.workers import formats
from diastole.workers.formats import Limits, ReadOptions, channels, edf, fasta, nifti
from diastole.workers.formats.records import Records

PLAIN = ReadOptions()


def read(reader, path, options=PLAIN):
    folder = path.parent / f"out-{path.name}-{len(list(path.parent.iterdir()))}"
    folder.mkdir()
    reader.preflight(path, options.limits)
    return reader.read(path, folder, options), folder


def code(reader, path, options=PLAIN):
    with pytest.raises(ItemError) as caught:
        read(reader, path, options)
    return caught.value.code


def volume(shape=(5, 6, 7), dtype=np.int16, affine=None):
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return nibabel.Nifti1Image(data, np.diag([-2.0, 3, 4, 1]) if affine is None else affine)


def edit(path, at, fmt, *values):
    raw = bytearray(path.read_bytes())
    struct.pack_into(fmt, raw, at, *values)
    path.write_bytes(raw)


# NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_voxels_are_what_nibabel_reads_with_the_axes_reversed(tmp_path, name, kind, dtype):
    data = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(dtype)
    nibabel.save(kind(data, np.diag([-1.0, 2, 3, 1])), tmp_path / name)
    [entry], folder = read(nifti, tmp_path / name)
    stored = np.load(folder / entry["file"], allow_pickle=False)
    assert stored.dtype == dtype
    assert np.array_equal(stored, data.T)
    assert entry["meta"]["spacing"] == [1, 2, 3]
    assert entry["meta"]["orientation"] == "LAS"
    assert np.array_equal(np.reshape(entry["meta"]["affine"], (4, 4)), np.diag([-1, 2, 3, 1]))


def test_big_endian_voxels_are_stored_little_endian(tmp_path):
    data = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4), header), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == struct.pack(">i", 348)
    [entry], folder = read(nifti, tmp_path / "a.nii")
    stored = np.load(folder / entry["file"])
    assert stored.dtype.str == "<i2"
    assert np.array_equal(stored, data.T)


def test_rescaling_is_kept_and_never_applied(tmp_path):
    nibabel.save(volume(), tmp_path / "a.nii")
    edit(tmp_path / "a.nii", 112, "<ff", 0.5, -1024.0)
    [entry], folder = read(nifti, tmp_path / "a.nii")
    assert entry["meta"]["rescale"] == [0.5, -1024.0]
    assert np.load(folder / entry["file"]).max() == 5 * 6 * 7 - 1
    edit(tmp_path / "a.nii", 112, "<ff", float("nan"), 7.0)
    assert read(nifti, tmp_path / "a.nii")[0][0]["meta"]["rescale"] == [1.0, 0.0]
    edit(tmp_path / "a.nii", 112, "<ff", 2.0, float("inf"))
    assert code(nifti, tmp_path / "a.nii") == "header_lies"


def test_sform_goes_before_qform_and_neither_gives_no_orientation(tmp_path):
    image = volume(affine=np.diag([1.0, 1, 1, 1]))
    image.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
    image.set_sform(np.diag([-3.0, -3, 3, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    [entry], _ = read(nifti, tmp_path / "a.nii")
    assert (entry["meta"]["orientation"], entry["meta"]["spacing"]) == ("LPS", [3, 3, 3])
    edit(tmp_path / "a.nii", 254, "<h", 0)
    [entry], _ = read(nifti, tmp_path / "a.nii")
    assert (entry["meta"]["orientation"], entry["attributes"]["affine"]) == ("LAS", "qform")
    edit(tmp_path / "a.nii", 252, "<h", 0)
    [entry], _ = read(nifti, tmp_path / "a.nii")
    assert (entry["meta"]["orientation"], entry["attributes"]["affine"]) == (None, "assumed")


def test_units_become_millimetres_and_seconds(tmp_path):
    image = volume((4, 4, 4, 3), affine=np.diag([500.0, 500, 1000, 1]))
    image.header.set_zooms((500, 500, 1000, 2500))
    image.header.set_xyzt_units("micron", "msec")
    nibabel.save(image, tmp_path / "a.nii")
    [entry], folder = read(nifti, tmp_path / "a.nii")
    assert entry["meta"]["spacing"] == [0.5, 0.5, 1]
    assert entry["meta"]["time_step"] == 2.5
    assert np.load(folder / entry["file"]).shape == (3, 4, 4, 4)


def test_trailing_axes_of_one_are_squeezed_and_five_axes_refused(tmp_path):
    nibabel.save(volume((4, 5, 6, 1, 1)), tmp_path / "a.nii")
    [entry], folder = read(nifti, tmp_path / "a.nii")
    assert np.load(folder / entry["file"]).shape == (6, 5, 4)
    nibabel.save(volume((4, 5, 6, 1, 3)), tmp_path / "b.nii")
    assert code(nifti, tmp_path / "b.nii") == "unsupported"


def test_non_finite_voxels_are_counted(tmp_path):
    data = np.ones((4, 4, 4), np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    assert read(nifti, tmp_path / "a.nii")[0][0]["attributes"]["non_finite"] == 3


def test_colours_complex_numbers_and_half_pairs_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)), tmp_path / "c.nii")
    assert code(nifti, tmp_path / "c.nii") == "unsupported"
    rgb = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    assert code(nifti, tmp_path / "rgb.nii") == "unsupported"
    nibabel.save(nibabel.Nifti1Pair(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "p.hdr")
    assert nifti.sniff((tmp_path / "p.hdr").read_bytes())
    (tmp_path / "p.img").unlink()
    assert code(nifti, tmp_path / "p.hdr") == "part_missing"


@pytest.mark.parametrize("dims", [(3, 30000, 30000, 30000), (7, *[32767] * 7)])
def test_dimensions_beyond_the_limit_are_too_large(tmp_path, dims):
    nibabel.save(volume(), tmp_path / "a.nii")
    edit(tmp_path / "a.nii", 40, f"<{len(dims)}h", *dims)
    assert code(nifti, tmp_path / "a.nii") in ("too_large", "unsupported")


@pytest.mark.parametrize("dims", [(3, 0, 5, 5), (3, -5, 5, 5), (0, 5, 5, 5), (9, 5, 5, 5)])
def test_impossible_dimensions_are_a_lie(tmp_path, dims):
    nibabel.save(volume(), tmp_path / "a.nii")
    edit(tmp_path / "a.nii", 40, "<4h", *dims)
    assert code(nifti, tmp_path / "a.nii") == "header_lies"


def test_a_singular_affine_is_a_lie(tmp_path):
    nibabel.save(volume(), tmp_path / "a.nii")
    edit(tmp_path / "a.nii", 280, "<4f", 0, 0, 0, 0)
    assert code(nifti, tmp_path / "a.nii") == "header_lies"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("lost", [1, 100, 390])
def test_cut_nifti_is_truncated(tmp_path, name, lost):
    nibabel.save(volume(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-lost])
    assert code(nifti, tmp_path / name) in ("truncated", "checksum")


def test_more_voxels_than_the_gzip_holds_is_truncated(tmp_path):
    nibabel.save(volume(), tmp_path / "a.nii")
    edit(tmp_path / "a.nii", 40, "<4h", 3, 500, 500, 500)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    assert code(nifti, tmp_path / "a.nii.gz") == "truncated"


@pytest.mark.fault(35)
def test_flipped_byte_in_nii_gz_is_found(tmp_path):
    rng = np.random.default_rng(0)
    nibabel.save(
        nibabel.Nifti1Image(rng.integers(0, 255, (20, 20, 20)).astype(np.uint8), np.eye(4)), tmp_path / "a.nii.gz"
    )
    whole = (tmp_path / "a.nii.gz").read_bytes()
    found = 0
    places = rng.integers(500, len(whole), 40)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (tmp_path / "b.nii.gz").write_bytes(damaged)
        found += code(nifti, tmp_path / "b.nii.gz") in ("checksum", "truncated", "too_large")
    assert found == len(places)


# EDF


def write_edf(path, signals=None, reader=edfio.Edf, **options):
    rng = np.random.default_rng(0)
    if signals is None:
        make = edfio.EdfSignal if reader is edfio.Edf else edfio.BdfSignal
        signals = [
            make(rng.normal(0, 50, 2560), 256, label=n, physical_dimension="uV", physical_range=(-500, 500))
            for n in ("EEG Fpz-Cz", "EOG horizontal")
        ]
    reader(signals, **options).write(path)
    return signals


@pytest.mark.parametrize(("reader", "dtype"), [(edfio.Edf, "int16"), (edfio.Bdf, "int32")])
def test_samples_stay_digital_and_gain_and_offset_give_the_units(tmp_path, reader, dtype):
    write_edf(tmp_path / "a", reader=reader)
    [entry], folder = read(edf, tmp_path / "a")
    stored, meta = np.load(folder / entry["file"]), entry["meta"]
    theirs = (edfio.read_edf if reader is edfio.Edf else edfio.read_bdf)(tmp_path / "a")
    assert stored.dtype == dtype
    assert (meta["rate"], meta["channels"], meta["units"]) == (256, ["EEG Fpz-Cz", "EOG horizontal"], ["uV", "uV"])
    for row, signal in enumerate(theirs.signals):
        assert np.array_equal(stored[row], signal.digital)
        assert np.allclose(stored[row] * meta["gain"][row] + meta["offset"][row], signal.data, atol=1e-9)
    assert entry["modality"] == "EEG"


def test_each_rate_is_an_item_and_annotations_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    signals = [
        edfio.EdfSignal(rng.normal(size=rate * 10), rate, label=label)
        for label, rate in (("C3-A2", 100), ("Resp", 10), ("C4-A1", 100))
    ]
    write_edf(tmp_path / "a", signals, annotations=[edfio.EdfAnnotation(1, 2, "JOHN SMITH woke")])
    entries, folder = read(edf, tmp_path / "a")
    assert [e["suffix"] for e in entries] == ["", "#10Hz"]
    assert [e["meta"]["channel_types"] for e in entries] == [["EEG", "EEG"], ["other"]]
    assert [e["modality"] for e in entries] == ["EEG", None]
    assert np.load(folder / entries[0]["file"]).shape == (2, 1000)
    assert np.array_equal(np.load(folder / entries[1]["file"])[0], signals[1].digital)
    assert entries[0]["attributes"]["annotation_signals"] == 1
    assert entries[0]["attributes"]["rates"] == [100, 10]
    assert "SMITH" not in str(entries)


@pytest.mark.parametrize(
    ("label", "kind"),
    [("EEG Fpz-Cz", "EEG"), ("Fpz-Cz", "EEG"), ("C3-A2", "EEG"), ("F4:M1", "EEG"), ("Cz", "EEG"), ("POz", "EEG"), ("EOG left", "EOG"),
     ("EMG submental", "EMG"), ("EKG", "ECG"), ("ECG II", "ECG"), ("Resp oro-nasal", "other"), ("Temp rectal", "other"), ("Status", "other"), ("EMGX", "other")],
)  # fmt: skip
def test_channel_types_follow_the_label(label, kind):
    assert channels.channel_type(label) == kind


def test_micro_becomes_u(tmp_path):
    write_edf(tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw.replace(b"uV      ", "µV      ".encode("latin-1")))
    assert read(edf, tmp_path / "a")[0][0]["meta"]["units"] == ["uV", "uV"]


@pytest.mark.parametrize(
    ("change", "expected"), [(-1, "truncated"), (-600, "truncated"), (-5000, "truncated"), (2, "header_lies")]
)
def test_edf_of_another_size_than_its_header_is_refused(tmp_path, change, expected):
    write_edf(tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw[:change] if change < 0 else raw + b"\0" * change)
    assert code(edf, tmp_path / "a") == expected


@pytest.mark.parametrize(
    ("at", "field", "expected"),
    [(236, b"-1      ", "truncated"), (236, b"99999999", "truncated"), (236, b"many    ", "header_lies"), (252, b"9999", "header_lies"),
     (192, b"EDF+D", "unsupported"), (244, b"0       ", "header_lies"), (184, b"256     ", "header_lies")],
)  # fmt: skip
def test_lying_edf_headers_are_refused(tmp_path, at, field, expected):
    write_edf(tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw[:at] + field + raw[at + len(field) :])
    assert code(edf, tmp_path / "a") == expected


@pytest.mark.parametrize("field", ["physical", "digital"])
def test_empty_ranges_are_a_lie(tmp_path, field):
    write_edf(tmp_path / "a")
    raw = bytearray((tmp_path / "a").read_bytes())
    at = 256 + 2 * (16 + 80 + 8) + (0 if field == "physical" else 2 * 16)
    raw[at + 16 : at + 24] = raw[at : at + 8]  # the first signal's maximum becomes its minimum
    (tmp_path / "a").write_bytes(raw)
    assert code(edf, tmp_path / "a") == "header_lies"


# FASTA


def records(tmp_path, text, options=PLAIN):
    path = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    [entry], folder = read(fasta, path, options)
    letters = (folder / "letters.bin").read_bytes()
    found, at = [], 0
    for line in (folder / "records.jsonl").read_text().splitlines():
        record_id, length, occurring, said = json.loads(line)
        assert occurring == "".join(sorted(set(letters[at : at + length].decode().upper())))
        found.append((record_id, letters[at : at + length].decode(), said))
        at += length
    assert at == len(letters)
    return entry["meta"]["alphabet"], found


def test_masked_bases_keep_their_lower_case_and_white_space_is_dropped(tmp_path):
    alphabet, found = records(tmp_path, ">r1 JOHN SMITH\r\nac gt\r\n\r\nNNA\r\n>r2\nacg")
    assert (alphabet, found) == ("dna", [("r1", "acgtNNA", {}), ("r2", "acg", {})])


def test_alphabet_is_found_out_and_the_option_overrides(tmp_path):
    assert records(tmp_path, ">p\nMKVLAAGIW\n")[0] == "protein"
    assert records(tmp_path, ">p\nGATTACA\n")[0] == "dna"
    assert records(tmp_path, ">p\nGATTACA\n", ReadOptions(alphabet="protein"))[0] == "protein"


def test_u_becomes_t_and_stops_are_dropped_and_both_counted(tmp_path):
    assert records(tmp_path, ">r\nacguU\n")[1] == [("r", "acgtT", {"u_as_t": 2})]
    assert records(tmp_path, ">p\nMKVW\nL*\n")[1] == [("p", "MKVWL", {"stops_dropped": 1})]


def test_records_longer_than_a_piece_are_whole(tmp_path, monkeypatch):
    text = ">a\n" + "ACGT" * 50 + "\n>b\n" + "\n".join(["GATTACA"] * 30) + "\n>c\nAC\n"
    expected = [("a", "ACGT" * 50, {}), ("b", "GATTACA" * 30, {}), ("c", "AC", {})]
    for piece in range(1, 40):
        stream = io.BytesIO(text.encode())
        monkeypatch.setattr(fasta.source.Stream, "read", lambda self, size=piece, stream=stream: stream.read(size))
        out, lines = io.BytesIO(), io.StringIO()
        writer = Records("dna", out, lines)
        for header, block in fasta._events(fasta.source.Stream(stream, 10**6)):
            if header is not None and writer.number:
                writer.end()
            writer.begin(header) if header is not None else writer.add(block)
        writer.end()
        assert out.getvalue().decode() == "".join(s for _, s, _ in expected)
        assert writer.number == 3


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("text", "expected"),
    [(">a\nMK-VW\n", "unsupported"), (">a\nMK.VW\n", "unsupported"), (">a\nMK1VW\n", "unreadable"), (">a\nMK*VW\n", "unreadable"), (">a\n>b\nMKVW\n", "unreadable"),
     (">a\nMKVW\n>b\n", "unreadable"), (">\nMKVW\n", "unreadable"), ("MKVW\n", "unreadable"), ("", "unreadable"), (">a\nAC\0GT\n", "unreadable"),
     (">a\n" + "ACGT" * 20 + "E\n", "unreadable"), (">" + "x" * 70000 + "\nACGT\n", "unreadable")],
)  # fmt: skip
def test_junk_fasta_is_refused_as_a_whole(tmp_path, text, expected):
    path = tmp_path / "a.fa"
    path.write_text(text)
    assert code(fasta, path) == expected


def test_gzip_fasta_is_held_to_the_limit_and_to_its_checksum(tmp_path):
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">a\n" + b"A" * 3_000_000))
    assert code(fasta, path, ReadOptions(Limits(1_000_000))) == "too_large"
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    assert code(fasta, path) == "checksum"


# the registry


def test_formats_are_found_by_content_not_by_name(tmp_path):
    nibabel.save(volume(), tmp_path / "a.nii.gz")
    write_edf(tmp_path / "b")
    write_edf(tmp_path / "c", reader=edfio.Bdf)
    (tmp_path / "d").write_text(">x\nMKV\n")
    names = {}
    for number, name in enumerate(["a.nii.gz", "b", "c", "d"]):
        names[name] = formats.choose((tmp_path / name).rename(tmp_path / f"{number}.dat"), None).name
    assert names == {"a.nii.gz": "nifti", "b": "edf", "c": "edf", "d": "fasta"}


@pytest.mark.parametrize("junk", [b"", b"hello", b"\x1f\x8b", bytes(5000), b"\x1f\x8b\x08\0\0\0\0\0junk"])
def test_what_no_reader_knows_is_said_so(tmp_path, junk):
    (tmp_path / "a.nii").write_bytes(junk)
    with pytest.raises(ItemError) as caught:
        formats.choose(tmp_path / "a.nii", None)
    assert caught.value.code in ("unknown_format", "truncated", "checksum")


def test_installed_sample_images_are_read_as_nibabel_reads_them(tmp_path):
    folder = Path(nibabel.__file__).parent / "tests" / "data"
    paths = [
        folder / name for name in ("example4d.nii.gz", "example_nifti2.nii.gz", "anatomical.nii", "functional.nii")
    ]
    paths = [path for path in paths if path.exists()]
    if not paths:
        pytest.skip("this nibabel was installed without its test data")
    for path in paths:
        out = tmp_path / path.name
        out.mkdir()
        [entry] = nifti.read(path, out, ReadOptions())
        image = nibabel.load(path)
        assert np.array_equal(np.load(out / entry["file"]), np.asarray(image.dataobj.get_unscaled()).T)
        assert np.allclose(np.reshape(entry["meta"]["affine"], (4, 4)), image.affine)
        assert "".join(nibabel.aff2axcodes(image.affine)) == entry["meta"]["orientation"]
