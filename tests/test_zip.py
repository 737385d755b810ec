"""Zip archives: the same items as the folder that was packed, and nothing of what an archive may do to its reader."""

import shutil
import struct
import warnings
import zipfile
from dataclasses import replace

import dicoms
import edfio
import nibabel
import numpy as np
import pytest
from PIL import Image
from written import hits

from diastole.cluster.driver import give_up
from diastole.jobs.withdraw import withdraw
from diastole.lake import quarantine
from diastole.lake.errors import ItemError
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions, choose
from diastole.workers.ingest import IngestOptions, ingest, refresh

pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN = ReadOptions()


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    return Lake.create(str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as made:
        yield made


def packed(target, folder, method=zipfile.ZIP_DEFLATED):
    """What lies in a folder, as a zip."""
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target


def of(target, members, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, bytes)."""
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return target


def nifti(path, values=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), values, np.int16), np.eye(4)), path)
    return path


def edf(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf([edfio.EdfSignal(np.sin(np.arange(500.0)), 50, label="EEG Cz")]).write(path)


def code(path, decoder, options=PLAIN):
    with pytest.raises(ItemError) as caught:
        decoder.decode(path, None, options)
    assert "SMITH" not in str(caught.value)
    return caught.value.code


def contents(lake, dataset):
    return sorted((row["content_digest"], row["attributes"]) for row in read_items(lake, dataset).to_pylist())


def ids(lake, dataset, modality):
    return {row["item_id"] for row in read_items(lake, dataset).to_pylist() if row["modality"] in modality}


# The same items as in a folder


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_series_of_pydicoms_package_are_the_same_items_in_a_zip_as_in_a_folder(lake, tmp_path, method):
    """Compared with what ingest makes of the folder, which tests/test_dicom_series.py holds to GDCM."""
    source = tmp_path / "source"
    for patient in ("77654033", "98892001"):
        shutil.copytree(dicoms.FOLDER / "test_files" / "dicomdirtests" / patient, source / patient)
    dicoms.write(source / "made", [dicoms.slice_at(n, 2.0 * n) for n in range(4)])
    one = ingest(lake, "folder", [source])
    if one.quarantined:  # of a series that has gaps: a zip is there as a whole, or not at all
        found = {row["source_key"] for row in quarantine.read(lake).to_pylist()}
        for path in sorted(source.rglob("*")):
            if path.is_file() and lake.source_key(str(path)) in found:
                shutil.rmtree(path.parent, ignore_errors=True)
        ingest(lake, "whole", [source])
    dataset = "whole" if one.quarantined else "folder"
    shutil.copy(dicoms.FOLDER / "test_files" / "dicomdirtests" / "DICOMDIR", source / "DICOMDIR")
    report = ingest(lake, "zip", [packed(tmp_path / "a.zip", source, method)])
    assert not report.quarantined
    assert contents(lake, "zip") == contents(lake, dataset)
    rows = {name: read_items(lake, name).to_pylist() for name in ("zip", dataset)}
    keys = ("subject_id", "modality", "shape", "laterality", "name")
    assert sorted(str([r[k] for k in keys]) for r in rows["zip"]) == sorted(
        str([r[k] for k in keys]) for r in rows[dataset]
    )
    assert len(rows["zip"]) >= 3
    both = ingest(lake, dataset, [source, tmp_path / "a.zip"])  # the ids are the same: nothing is there twice
    assert (both.added, both.changed, both.quarantined) == (0, 0, {})


def test_recordings_with_sidecars_images_and_sequences_of_several_folders_are_those_of_the_folder(lake, tmp_path):
    source = tmp_path / "source"
    edf(source / "sub-01" / "eeg" / "sub-01_task-rest_eeg.edf")
    channels = "name\ttype\tunits\tstatus\nCz\tEEG\tuV\tbad\n"
    (source / "sub-01" / "eeg" / "sub-01_task-rest_channels.tsv").write_text(channels)
    (source / "sub-01" / "eeg" / "task-rest_eeg.json").write_text('{"PowerLineFrequency": 50}')
    edf(source / "sub-01" / "eeg" / "sub-01_task-rest_run-2_eeg.edf")  # the same sidecars are beside it
    nifti(source / "sub-02" / "ses-a" / "sub-02_ses-a_T1w.nii.gz", 7)
    nifti(source / "a" / "same.nii")
    nifti(source / "b" / "same.nii", 2)
    for number, folder in enumerate("ab"):
        (source / folder / "x.fasta").write_text(f">x1\nACDEFGHIK{'AC'[number]}\n")
        Image.fromarray(np.full((9, 8), number, np.uint8)).save(source / folder / "picture.png")
    (source / "a" / ".hidden").write_bytes(b"x")
    options = IngestOptions(alphabet="protein")
    assert not ingest(lake, "folder", [source], options).quarantined
    report = ingest(lake, "zip", [packed(tmp_path / "a.zip", source)], options)
    assert (report.added, report.quarantined) == (9, {})
    assert contents(lake, "zip") == contents(lake, "folder")
    whose = [{(r["content_digest"], r["subject_id"], r["session_id"], r["modality"]) for r in read_items(lake, d).to_pylist()}
             for d in ("zip", "folder")]  # fmt: skip
    assert whose[0] == whose[1]
    assert lake.subject_id("02") in {subject for _, subject, *_ in whose[0]}
    again = ingest(lake, "zip", [tmp_path / "a.zip"], options)
    assert (again.opened, again.unchanged) == (0, 9)
    nifti(source / "b" / "same.nii", 3)
    (source / "a" / "picture.png").unlink()
    packed(tmp_path / "a.zip", source)
    report = refresh(lake, "zip", [tmp_path / "a.zip"], options)
    assert (report.changed, report.gone, report.added, report.unchanged) == (1, 1, 0, 7)


def test_members_are_removed_as_they_are_read_and_all_at_the_end(tmp_path):
    source = tmp_path / "source"
    for number in range(3):
        nifti(source / f"{number}.nii", number)
    with Decoder() as decoder:
        found = decoder.decode(packed(tmp_path / "a.zip", source), None, PLAIN)
        assert sorted(path.name for path in found.folder.iterdir()) == sorted(e["file"] for e in found.entries)
        assert len(found.entries) == 3


def test_what_is_of_a_withdrawn_subject_goes_out_of_an_archive_and_the_rest_stays(lake, tmp_path):
    source = tmp_path / "source"
    for number in range(3):
        nifti(source / f"sub-0{number}_T1w.nii", number)
    packed(tmp_path / "a.zip", source)
    assert ingest(lake, "d", [tmp_path / "a.zip"]).added == 3
    assert withdraw(lake, [lake.subject_id("01")], give_up).items == {"d": 1}
    assert ingest(lake, "d", [tmp_path / "a.zip"]).unchanged == 2
    (source / "sub-03_T1w.nii").write_bytes(nifti(tmp_path / "other.nii", 9).read_bytes())
    report = ingest(lake, "d", [packed(tmp_path / "a.zip", source)])
    assert (report.added, report.withdrawn, report.quarantined) == (1, 0, {})
    subjects = {row["subject_id"] for row in read_items(lake, "d").to_pylist()}
    assert subjects == {lake.subject_id(name) for name in ("00", "02", "03")}
    nifti(source / "alone" / "sub-01_T1w.nii", 5)
    assert ingest(lake, "d", [packed(tmp_path / "b.zip", source / "alone")]).withdrawn == 1


# Refused


def test_one_member_that_cannot_be_read_refuses_the_archive_and_says_how_many(tmp_path, decoder):
    whole = nifti(tmp_path / "x.nii").read_bytes()
    path = of(tmp_path / "a.zip", [("good.nii", whole), ("SMITH.nii", whole[:-9]), ("z.txt", b"SMITH" * 9)])
    with pytest.raises(ItemError, match=r"2 of its 3 members cannot be read") as caught:
        decoder.decode(path, None, PLAIN)
    assert caught.value.code in ("truncated", "unknown_format")
    assert "SMITH" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../x.nii", "/x.nii", "a/../../x.nii", "C:/x.nii", "..\\x.nii", "a//x.nii", "./x.nii", "x\0.nii"]
)
def test_names_that_lead_out_are_refused_and_nothing_is_written(tmp_path, decoder, name):
    plain = "?" * len(name)
    path = of(tmp_path / "a.zip", [(plain, nifti(tmp_path / "x.nii").read_bytes())])
    path.write_bytes(path.read_bytes().replace(plain.encode(), name.encode()))
    before = sorted(tmp_path.parent.iterdir())
    assert code(path, decoder) == "header_lies"
    assert sorted(tmp_path.parent.iterdir()) == before


def test_links_devices_doubles_and_files_that_are_folders_are_refused(tmp_path, decoder):
    data = nifti(tmp_path / "x.nii").read_bytes()
    for kind, expected in ((0o120777, "unsupported"), (0o020666, "unsupported")):
        info = zipfile.ZipInfo("x.nii")
        info.external_attr = kind << 16
        assert code(of(tmp_path / "a.zip", [(info, b"/etc/passwd")]), decoder) == expected
    assert code(of(tmp_path / "a.zip", [("x.nii", data), ("x.nii", data)]), decoder) == "header_lies"
    assert code(of(tmp_path / "a.zip", [("x", data), ("x/y.nii", data)]), decoder) == "header_lies"
    assert code(of(tmp_path / "a.zip", [("x" * 300, data)]), decoder) == "unsupported"


def test_what_is_encrypted_packed_otherwise_an_archive_in_an_archive_or_another_format_is_unsupported(
    tmp_path, decoder
):
    data = nifti(tmp_path / "x.nii").read_bytes()
    path = of(tmp_path / "a.zip", [("x.nii", data)])
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.rfind(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    assert code(tmp_path / "locked.zip", decoder) == "unsupported"
    assert code(of(tmp_path / "b.zip", [("x.nii", data)], zipfile.ZIP_LZMA), decoder) == "unsupported"
    assert code(of(tmp_path / "b.zip", [("in.zip", path.read_bytes())]), decoder) == "unsupported"
    for name in ("[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"):
        assert code(of(tmp_path / "b.zip", [(name, b"x"), ("x.nii", data)]), decoder) == "unsupported"
    np.savez(tmp_path / "c.npz", a=np.zeros((3, 4, 5)))
    assert code(tmp_path / "c.npz", decoder) == "unsupported"
    assert code(of(tmp_path / "b.zip", [(".x.nii", data)]), decoder) == "unreadable"


@pytest.mark.fault(36)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path, decoder):
    zeros = of(tmp_path / "a.zip", [("x.nii", bytes(2**28))])
    assert code(zeros, decoder) == "too_large"
    small = replace(PLAIN, limits=Limits(2**20))
    assert code(of(tmp_path / "b.zip", [("x.nii", bytes(2**21))]), decoder, small) == "too_large"
    many = of(tmp_path / "c.zip", [(f"{n}", b"") for n in range(20_001)], zipfile.ZIP_STORED)
    assert code(many, decoder) == "too_large"
    data = nifti(tmp_path / "x.nii").read_bytes()
    each = replace(PLAIN, limits=Limits(3 * len(data)))
    assert code(of(tmp_path / "d.zip", [(f"{n}.nii", data) for n in range(4)]), decoder, each) == "too_large"


@pytest.mark.fault(34)
def test_a_directory_that_lies_is_found_out(tmp_path, decoder):
    data = nifti(tmp_path / "x.nii").read_bytes()
    path = of(tmp_path / "a.zip", [("x.nii", data), ("y.nii", data[:-4] + b"abcd")])
    raw = path.read_bytes()
    first = raw.find(b"PK\1\2")
    second = raw.find(b"PK\1\2", first + 4)

    def with_(at, layout, value):
        lying = bytearray(raw)
        struct.pack_into(layout, lying, at, value)
        (tmp_path / "b.zip").write_bytes(lying)
        return code(tmp_path / "b.zip", decoder)

    size = len(data)
    assert with_(first + 24, "<I", size - 1) in ("header_lies", "checksum")  # its size
    assert with_(first + 24, "<I", size + 1) in ("header_lies", "checksum", "truncated")
    assert with_(first + 24, "<I", 2**32 - 2) == "too_large"
    assert with_(first + 16, "<I", 1) == "checksum"
    assert with_(second + 42, "<I", 0) == "header_lies"  # where it begins: on the other
    assert with_(second + 42, "<I", len(raw) - 40) == "header_lies"
    assert with_(first + 20, "<I", 2**31) == "header_lies"  # how long it is as packed
    assert with_(raw.rfind(b"PK\5\6") + 10, "<H", 30_000) == "too_large"
    assert with_(raw.rfind(b"PK\5\6") + 12, "<I", 2**30) == "too_large"
    assert with_(30, "<5s", b"z.nii") == "header_lies"  # the name before the member is another one
    with (tmp_path / "b.zip").open("wb") as file:
        file.write(raw + b"PK\5\6 and more")
    assert code(tmp_path / "b.zip", decoder) in ("truncated", "header_lies")


@pytest.mark.fault(32, 35)
def test_a_cut_archive_is_refused_wherever_it_was_cut_and_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    source = tmp_path / "source"
    nifti(source / "a" / "x.nii", 3)
    (source / "y.fasta").write_text(">x\nACDEFGHIK\n")
    raw = packed(tmp_path / "a.zip", source).read_bytes()
    path, rng = tmp_path / "b.zip", np.random.default_rng(0)

    told = set()
    with Decoder() as decoder_:
        path.write_bytes(raw)
        found = decoder_.decode(path, None, PLAIN)
        expected = {e["within"]: (found.folder / e["file"]).read_bytes() for e in found.entries}
        found.discard()
        for at in sorted({*range(0, 40, 5), *rng.integers(1, len(raw), 40).tolist(), len(raw) - 1}):
            path.write_bytes(raw[:at])
            assert code(path, decoder_) in ("truncated", "unknown_format", "header_lies")
        for at in rng.integers(0, len(raw), 150).tolist():
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1 :])
            try:
                found = decoder_.decode(path, None, PLAIN)
            except ItemError as error:
                told.add(str(error))
                continue
            read_ = [(found.folder / e["file"]).read_bytes() for e in found.entries]
            assert sorted(read_) == sorted(expected.values())  # a time, a version or a name: nothing of the content
            found.discard()
    assert len(told) > 3
    assert not any("gave up" in text for text in told)


@pytest.mark.fault(43)
def test_names_of_members_and_comments_are_nowhere(lake, tmp_path, capfd, caplog):
    data = nifti(tmp_path / "x.nii").read_bytes()
    (tmp_path / "in").mkdir()
    for name, members in (
        ("a.zip", [("SMITHJOHN/SMITHJOHN.nii", data), ("SMITHJOHN.fasta", b">SMITHJOHN\nACDEFGHIK\n")]),
        ("b.zip", [("SMITHJOHN/SMITHJOHN.nii", data[:-5])]),
        ("c.zip", [("../SMITHJOHN", data)]),
        ("d.zip", [("SMITHJOHN.txt", b"SMITHJOHN")]),
    ):
        path = of(tmp_path / "in" / name, members)
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = b"SMITHJOHN"
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,name\n{tmp_path}/in/a.zip,A17\n")
    report = ingest(lake, "d", [tmp_path / "in"], IngestOptions(manifest=manifest, alphabet="protein"))
    assert report.added == 2
    assert sum(report.quarantined.values()) == 3
    assert hits(lake.store.local, ["SMITHJOHN"]) == set()
    assert "SMITH" not in capfd.readouterr().out + caplog.text


def test_it_is_found_by_its_content(tmp_path):
    path = of(tmp_path / "a.nii", [("x.nii", nifti(tmp_path / "x.nii").read_bytes())])
    assert choose(path, None).name == "zip"
