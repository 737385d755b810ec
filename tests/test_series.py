"""Sources of several files: slices that come, go and move from night to night, and what lies beside a header."""

import shutil
from pathlib import Path

import numpy as np
import pybv
import pydicom
import pytest
from pydicom.data import get_testdata_file

from diastole.lake import arrays, items
from diastole.workers.ingest import IngestOptions, ingest, refresh


@pytest.fixture
def series(tmp_path):
    """A CT series of six slices, made of a real one, in two folders, with names in no order."""
    folder = tmp_path / "src"
    for place in range(6):
        write(folder / ("a" if place % 2 else "b") / f"{(place * 7) % 6}", place)
    return folder


def write(path: Path, place: int, series: str = "1.2.3", change: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    slice_ = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    slice_.SeriesInstanceUID, slice_.SOPInstanceUID = series, f"{series}.{place}"
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    slice_.ImagePositionPatient = [0, 0, 5.0 * place]
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.InstanceNumber = 100 - place
    slice_.PixelData = (slice_.pixel_array + place + change).astype("<i2").tobytes()
    slice_.save_as(path)


def rows(lake, state="live"):
    return [row for row in items.read_items(lake, "d").to_pylist() if row["state"] == state]


def did(report):
    return report.added, report.changed, report.unchanged, report.gone, report.quarantined


def voxels(lake):
    [row] = rows(lake)
    return arrays.read_whole(lake, row["array"], row["content_digest"])[0]


def test_slices_of_several_folders_are_one_item_in_the_order_of_their_places(lake, series):
    assert did(ingest(lake, "d", [series])) == (1, 0, 0, 0, {})
    real = pydicom.dcmread(get_testdata_file("CT_small.dcm")).pixel_array
    assert np.array_equal(voxels(lake), np.stack([real + place for place in range(6)]))
    [row] = rows(lake)
    assert (row["modality"], row["geometry"]["spacing"][2]) == ("CT", 5.0)
    sources = items.read_sources(lake, "d").to_pylist()
    assert len(sources) == 6
    assert {tuple(source["items"]) for source in sources} == {(row["item_id"],)}
    again = ingest(lake, "d", [series])
    assert (did(again), again.opened) == ((0, 0, 1, 0, {}), 0)


def test_a_slice_that_comes_or_goes_changes_the_series_and_no_other(lake, series):
    write(series / "other" / "0", 0, "1.2.4")
    write(series / "other" / "1", 1, "1.2.4")
    assert did(refresh(lake, "d", [series])) == (2, 0, 0, 0, {})
    write(series / "new", 6)
    report = refresh(lake, "d", [series])
    assert (did(report), report.opened) == ((0, 1, 1, 0, {}), 7)
    (series / "new").unlink()
    report = refresh(lake, "d", [series])
    assert (did(report), report.missing) == ((0, 1, 1, 0, {}), 1)
    assert sorted(row["shape"][0] for row in rows(lake)) == [2, 6]
    assert did(refresh(lake, "d", [series])) == (0, 0, 2, 0, {})


def test_a_missing_slice_is_quarantined_and_the_item_stays_as_it_was(lake, series):
    refresh(lake, "d", [series])
    [before] = rows(lake)
    kept = (series / "a" / "3").rename(series.parent / "kept")  # the place 3, in the middle
    assert did(refresh(lake, "d", [series])) == (0, 0, 0, 0, {"missing_slices": 1})
    assert rows(lake) == [before]
    report = refresh(lake, "d", [series])
    assert (report.still_quarantined, report.opened) == (1, 0)
    kept.rename(series / "a" / "3")
    assert did(refresh(lake, "d", [series])) == (0, 0, 1, 0, {})
    assert refresh(lake, "d", [series]).still_quarantined == 0


def test_a_series_that_was_moved_keeps_its_item_and_one_that_is_deleted_is_gone(lake, series):
    refresh(lake, "d", [series])
    [before] = rows(lake)
    shutil.move(series / "a", series / "c")
    report = refresh(lake, "d", [series])
    assert (did(report), report.missing) == ((0, 0, 1, 0, {}), 3)
    assert rows(lake) == [before]
    write(series / "other", 0, "1.2.4")
    for folder in ("b", "c"):
        shutil.rmtree(series / folder)
    assert did(refresh(lake, "d", [series])) == (1, 0, 0, 1, {})
    assert [row["item_id"] for row in rows(lake, "gone")] == [before["item_id"]]


def test_a_slice_that_was_copied_is_in_the_volume_once(lake, series):
    shutil.copy(series / "a" / "3", series / "copy")
    assert did(ingest(lake, "d", [series])) == (1, 0, 0, 0, {})
    assert voxels(lake).shape[0] == 6


def test_a_changed_slice_is_read_with_all_others(lake, series):
    refresh(lake, "d", [series])
    write(series / "a" / "1", 1, change=9)
    assert len({path.name for path in (series / "a").iterdir()}) == 3
    report = refresh(lake, "d", [series])
    assert (did(report), report.opened) == ((0, 1, 0, 0, {}), 6)


def test_a_bad_file_among_slices_costs_only_itself(lake, series):
    whole = (series / "a" / "1").read_bytes()
    (series / "a" / "cut").write_bytes(whole[:200])
    (series / "DICOMDIR").write_bytes(Path(get_testdata_file("DICOMDIR")).read_bytes())
    report = ingest(lake, "d", [series])
    assert (report.added, sum(report.quarantined.values())) == (1, 1)
    assert ingest(lake, "d", [series]).opened == 0


def test_dates_are_shifted_alike_for_a_subject_and_nothing_else_is_kept_of_them(lake, series):
    write(series / "later", 0, "1.2.4")
    slice_ = pydicom.dcmread(series / "later")
    slice_.AcquisitionDate = slice_.SeriesDate = slice_.StudyDate = slice_.ContentDate = "19970507"  # a week after
    slice_.save_as(series / "later")
    ingest(lake, "d", [series])
    times = sorted(row["acquired_at"] for row in rows(lake))
    assert (times[1].date() - times[0].date()).days == 7
    ingest(lake, "kept", [series], IngestOptions(dates="keep"))
    ingest(lake, "none", [series], IngestOptions(dates="drop"))
    kept = sorted(row["acquired_at"] for row in items.read_items(lake, "kept").to_pylist())
    assert [str(time.date()) for time in kept] == ["1997-04-30", "1997-05-07"]
    assert 1 <= (kept[0].date() - times[0].date()).days <= 364
    assert {row["acquired_at"] for row in items.read_items(lake, "none").to_pylist()} == {None}


def recording(folder: Path, name: str = "sub-1_eeg") -> None:
    """An EEG in BrainVision, three files, and a BIDS sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    signal = np.random.default_rng(0).normal(0, 1e-5, (3, 2000))
    pybv.write_brainvision(data=signal, sfreq=250, ch_names=["Fz", "Cz", "Pz"], fname_base=name, folder_out=folder)
    (folder / f"{name.removesuffix('_eeg')}_channels.tsv").write_text("name\ttype\tunits\nFz\tEEG\tuV\n")


def test_a_recording_whose_header_is_deleted_is_gone_and_its_other_files_do_not_keep_it(lake, tmp_path):
    source = tmp_path / "src"
    recording(source)
    assert did(refresh(lake, "d", [source])) == (1, 0, 0, 0, {})
    kept = (source / "sub-1_eeg.vhdr").rename(tmp_path / "kept")
    report = refresh(lake, "d", [source])
    assert (report.gone, report.missing) == (1, 1)
    assert report.quarantined == {"unknown_format": 2}  # the data and the markers, which say nothing of themselves
    assert rows(lake) == []
    assert refresh(lake, "d", [source]).opened == 0
    kept.rename(source / "sub-1_eeg.vhdr")
    report = refresh(lake, "d", [source])
    assert (report.changed, len(rows(lake)), report.still_quarantined) == (1, 1, 0)
    assert did(refresh(lake, "d", [source])) == (0, 0, 1, 0, {})


def test_a_data_file_that_changes_alone_is_read_with_its_header(lake, tmp_path):
    source = tmp_path / "src"
    recording(source)
    refresh(lake, "d", [source])
    data = bytearray((source / "sub-1_eeg.eeg").read_bytes())
    data[100] ^= 1
    (source / "sub-1_eeg.eeg").write_bytes(data)
    assert did(refresh(lake, "d", [source])) == (0, 1, 0, 0, {})
    (source / "sub-1_channels.tsv").unlink()
    assert refresh(lake, "d", [source]).quarantined == {}
    assert len(rows(lake)) == 1
