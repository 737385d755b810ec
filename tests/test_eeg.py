"""EEG in BrainVision, EEGLAB, FIF, EDF and BDF, with BIDS' sidecars, against mne, in files that other libraries wrote."""

import json
import shutil
import tempfile
from datetime import UTC, datetime, time
from pathlib import Path

import edfio
import eeglabio.utils
import mne
import numpy as np
import pybv
import pytest
import scipy.io
import xarray
from published import data
from test_planted import found_in, texts_of

from diastole.lake import arrays
from diastole.lake.errors import ItemError
from diastole.lake.items import read_items
from diastole.workers import formats
from diastole.workers.decode import Decoder
from diastole.workers.formats import ReadOptions, channels, events
from diastole.workers.ingest import ingest

mne.set_log_level("ERROR")
LABELS = ["Fpz", "Cz", "EOG left", "SMITH JOHN"]
EVENTS = [(1.0, 0.5, "Sleep stage N2"), (2.5, 0.0, "Eyes closed"), (12.0, 3.0, "SMITH JOHN woke: apnea")]
KEPT = [[1.0, 0.5, "Sleep stage N2"], [2.5, 0.0, "Eyes closed"], [12.0, 3.0, "other"]]


@pytest.fixture(scope="module")
def real():
    """Real scalp EEG, in uV, four channels of it."""
    x = data.eeg()
    return np.stack([x, x[::-1], 3 * x, x - 20])


@pytest.fixture
def raw(real):
    """The same as mne holds it, with events."""
    made = mne.io.RawArray(real * 1e-6, mne.create_info(LABELS, 250.0, ["eeg", "eeg", "eog", "misc"]))
    onsets, durations, texts = zip(*EVENTS, strict=True)
    made.set_annotations(mne.Annotations(onsets, durations, texts))
    return made


def read(path):
    """(entries, their numbers in their units); the source's parts are those that the reader tells."""
    reader, part = formats.part_of(path, None)
    parts = (path, *(path.parent / name for name in part.beside)) if part.beside else ()
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    reader.preflight(path, ReadOptions().limits)
    entries = reader.read(path, folder, ReadOptions(parts=parts))
    for entry in entries:
        stored, meta = np.load(folder / entry["file"]), entry["meta"]
        entry["stored"] = stored
        entry["values"] = stored * np.array(meta["gain"])[:, None] + np.array(meta["offset"])[:, None]
    return entries


def one(path):
    [entry] = read(path)
    return entry


def code(path):
    with pytest.raises(ItemError) as caught:
        read(path)
    return caught.value.code


def events_of(theirs):
    """mne's annotations as meta has them, names held to the allow-list."""
    shift = theirs.first_time
    found = zip(theirs.annotations.onset, theirs.annotations.duration, theirs.annotations.description, strict=True)
    return [[pytest.approx(a - shift, abs=1e-6), pytest.approx(b, abs=1e-6), events.name(c)] for a, b, c in found]


def same(entry, theirs, of=None):
    """Values within 1e-6 uV of mne's, which are volts, and in float32 where the file's are."""
    wanted = theirs.get_data()
    factors = np.array([{"uV": 1e-6, "mV": 1e-3}.get(unit, 1.0) for unit in entry["meta"]["units"]])[:, None]
    rows = slice(None) if of is None else of
    np.testing.assert_allclose((entry["values"] * factors)[rows], wanted[rows], rtol=0, atol=1e-12)
    assert entry["meta"]["rate"] == theirs.info["sfreq"]


# BrainVision


def brainvision(folder, values, fmt="binary_int16", name="rec", **said):
    folder.mkdir(parents=True, exist_ok=True)
    given = [
        {"onset": 250, "duration": 125, "type": "Stimulus", "description": 1, "channels": "all"},
        {"onset": 700, "duration": 1, "type": "Response", "description": 15, "channels": "all"},
        {"onset": 900, "duration": 1, "type": "Comment", "description": "SMITH JOHN woke", "channels": "all"},
    ]
    options = {"resolution": 0.05, "unit": "µV", "events": given, "meas_date": "19570312010101000000"} | said
    labels = options.pop("ch_names", LABELS)
    pybv.write_brainvision(
        data=values * 1e-6, sfreq=250, ch_names=labels, ref_ch_names="FCz", fname_base=name, folder_out=folder, fmt=fmt, overwrite=True, **options
    )  # fmt: skip
    return folder / f"{name}.vhdr"


@pytest.mark.parametrize(("fmt", "dtype"), [("binary_int16", "int16"), ("binary_float32", "float32")])
def test_brainvision_is_what_mne_reads_and_stays_as_it_was_digitised(tmp_path, real, fmt, dtype):
    path = brainvision(tmp_path, real, fmt)
    entry, theirs = one(path), mne.io.read_raw_brainvision(path)
    same(entry, theirs)
    assert (entry["stored"].dtype, entry["modality"]) == (dtype, "EEG")
    meta = entry["meta"]
    assert meta["events"][0] == [0.0, 0.004, "New Segment/"]  # mne leaves it out
    assert meta["events"][1:] == events_of(theirs)
    assert [e[2] for e in meta["events"][1:]] == ["Stimulus/S  1", "Response/R 15", "other"]
    assert entry["attributes"]["other_events"] == 1
    assert meta["channels"] == ["Fpz", "Cz", "EOG left", "ch4"]
    assert (meta["units"], meta["reference"]) == (["uV"] * 4, ["FCz"] * 4)
    assert (meta["bad_channels"], meta["power_line_hz"]) == (None, None)


def test_vectorised_brainvision_of_other_units_is_what_mne_reads(tmp_path, real):
    path = brainvision(tmp_path, real, "binary_float32", resolution=[0.1, 1, 2, 0.5])
    header = path.read_text()
    stored = np.fromfile(tmp_path / "rec.eeg", "<f4").reshape(-1, 4)
    np.ascontiguousarray(stored.T).tofile(tmp_path / "rec.eeg")
    header = header.replace("MULTIPLEXED", "VECTORIZED").replace("Ch2=Cz,FCz,1,µV", "Ch2=Cz,FCz,1,mV")
    path.write_text(header.replace("Ch4=SMITH JOHN,FCz,0.5,µV", "Ch4=SMITH JOHN,,0.5,°C"))
    entry, theirs = one(path), mne.io.read_raw_brainvision(path)
    same(entry, theirs)
    assert np.array_equal(entry["stored"], stored.T)
    assert entry["meta"]["units"] == ["uV", "mV", "uV", "Cel"]
    assert entry["meta"]["reference"] == ["FCz", "FCz", "FCz", None]


def test_a_placeholder_stands_for_the_name_and_no_codepage_for_latin_1(tmp_path, real):
    path = brainvision(tmp_path, real)
    text = (
        path.read_text()
        .replace("DataFile=rec.eeg", "DataFile=$b.eeg")
        .replace("MarkerFile=rec.vmrk", "MarkerFile=$b.vmrk")
    )
    path.write_bytes(text.replace("Codepage=UTF-8\n", "").encode("latin-1"))
    _, part = formats.part_of(path, None)
    assert part.beside == ("rec.eeg", "rec.vmrk")
    assert one(path)["meta"]["units"] == ["uV"] * 4


@pytest.mark.fault(41, 42)
@pytest.mark.parametrize("name", ["../rec.eeg", "/etc/passwd", "C:\\rec.eeg", "..", "a/b.eeg", ""])
def test_a_header_that_names_a_file_elsewhere_is_refused(tmp_path, real, name):
    path = brainvision(tmp_path / "in", real)
    shutil.copy(tmp_path / "in" / "rec.eeg", tmp_path / "rec.eeg")
    path.write_text(path.read_text().replace("DataFile=rec.eeg", f"DataFile={name}"))
    assert code(path) == "header_lies"


@pytest.mark.fault(42)
def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path, real):
    path = brainvision(tmp_path / "in", real)
    (tmp_path / "in" / "rec.eeg").rename(tmp_path / "secret")
    (tmp_path / "in" / "rec.eeg").symlink_to(tmp_path / "secret")
    assert code(path) == "part_missing"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [("NumberOfChannels=4", "NumberOfChannels=3", "truncated"), ("NumberOfChannels=4", "NumberOfChannels=99999999999", "header_lies"),
     ("NumberOfChannels=4", "NumberOfChannels=-4", "header_lies"), ("SamplingInterval=4000.0", "SamplingInterval=0", "header_lies"),
     ("SamplingInterval=4000.0", "SamplingInterval=nan", "header_lies"), ("INT_16", "INT_64", "unsupported"), ("DataFormat=BINARY", "DataFormat=ASCII", "unsupported"),
     ("DataFormat=BINARY", "DataFormat=BINARY\nDataType=FREQUENCYDOMAIN", "unsupported"), ("Ch3=", "Ch33=", "header_lies"), ("0.05,µV", "nan,µV", "header_lies"), ("0.05,µV", "many,µV", "header_lies")],
)  # fmt: skip
def test_lying_brainvision_headers_are_refused(tmp_path, real, old, new, expected):
    path = brainvision(tmp_path, real)
    text = path.read_text()
    text = text if old in text else text.replace("SamplingInterval=4000\n", "SamplingInterval=4000.0\n")
    assert old in text
    path.write_text(text.replace(old, new))
    if "NumberOfChannels=3" in new:
        (tmp_path / "rec.eeg").write_bytes((tmp_path / "rec.eeg").read_bytes()[:-2])
    assert code(path) == expected


def test_brainvision_without_its_data_or_markers_or_cut_says_so(tmp_path, real):
    path = brainvision(tmp_path, real)
    whole = (tmp_path / "rec.eeg").read_bytes()
    (tmp_path / "rec.eeg").write_bytes(whole[:-3])
    assert code(path) == "truncated"
    (tmp_path / "rec.eeg").unlink()
    assert code(path) == "part_missing"
    (tmp_path / "rec.eeg").write_bytes(whole)
    (tmp_path / "rec.vmrk").write_bytes(b"SMITH")
    assert code(path) == "unreadable"
    (tmp_path / "rec.vmrk").unlink()
    assert code(path) == "part_missing"


# EEGLAB


@pytest.mark.parametrize("fmt", ["v5", "v7.3"])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_eeglab_is_what_mne_reads(tmp_path, raw, fmt, precision):
    path = tmp_path / "a.set"
    eeglabio.utils.export_mne_raw(raw.copy(), str(path), precision=precision, fmt=fmt)
    entry, theirs = one(path), mne.io.read_raw_eeglab(path)
    assert entry["stored"].dtype == {"single": "float32", "double": "float64"}[precision]
    if precision == "single":
        same(entry, theirs)
    else:  # of which mne keeps 24 bits
        np.testing.assert_allclose(entry["values"] * 1e-6, raw.get_data(), rtol=0, atol=1e-15)
        np.testing.assert_allclose(entry["values"] * 1e-6, theirs.get_data(), rtol=1e-7)
    meta = entry["meta"]
    assert meta["events"] == events_of(theirs) == KEPT
    assert (meta["channels"], meta["reference"]) == (["Fpz", "Cz", "EOG left", "ch4"], ["common"] * 4)
    assert meta["channel_types"][:3] == ["EEG", "EEG", "EOG"]


def eeglab(path, values, compressed=True, structure=True, **fields):
    """As EEGLAB itself lays a recording out, written by scipy."""
    labels = np.array([(label, "") for label in LABELS], [("labels", "O"), ("type", "O")])
    found = np.array(
        [(t, a * 250 + 1, b * 250) for a, b, t in EVENTS] + [(7, 251.0, 0.0)],
        [("type", "O"), ("latency", "O"), ("duration", "O")],
    )
    said = {"setname": "SMITH JOHN", "nbchan": 4.0, "trials": 1.0, "pnts": float(values.shape[1]), "srate": 250.0, "xmin": 0.0, "data": values.astype("f4"),
            "chanlocs": labels[None], "event": found[None], "ref": "averef", "comments": "SMITH JOHN", "etc": {"x": {"y": {"z": 1.0}}}} | fields  # fmt: skip
    scipy.io.savemat(path, {"EEG": said} if structure else said, do_compression=compressed, appendmat=False)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("structure", [True, False])
@pytest.mark.parametrize("outside", [None, "x.fdt"])
def test_eeglab_in_one_file_or_two_as_a_structure_or_not_is_what_mne_reads(
    tmp_path, real, compressed, structure, outside
):
    if outside:
        real.T.astype("<f4").tofile(tmp_path / outside)
    path = eeglab(tmp_path / "x.set", real, compressed, structure, **({"data": outside} if outside else {}))
    entry, theirs = one(path), mne.io.read_raw_eeglab(path)
    same(entry, theirs)
    assert formats.part_of(path, None)[1].beside == ((outside,) if outside else ())
    assert entry["meta"]["reference"] == ["average"] * 4
    assert entry["meta"]["events"] == events_of(theirs) == [[1.0, 0.0, "7"], *KEPT]


def test_an_fdt_that_was_renamed_with_its_set_is_found_and_others_are_refused(tmp_path, real):
    path = eeglab(tmp_path / "x.set", real, data="was.fdt")
    assert code(path) == "part_missing"
    real.T.astype("<f4").tofile(tmp_path / "x.fdt")
    same(one(path), mne.io.RawArray(real.astype("f4").astype(float) * 1e-6, mne.create_info(4, 250.0, "eeg")))
    (tmp_path / "x.fdt").write_bytes((tmp_path / "x.fdt").read_bytes()[:-4])
    assert code(path) == "truncated"
    assert code(eeglab(tmp_path / "y.set", real, data="../x.fdt")) == "header_lies"
    assert code(eeglab(tmp_path / "y.set", real, data="x.dat")) == "unsupported"


def test_epochs_and_other_matlab_files_are_refused(tmp_path, real):
    cut = real[:, :1000].reshape(4, 500, 2)
    assert code(eeglab(tmp_path / "a.set", real, data=cut, trials=2.0, pnts=500.0)) == "unsupported"
    assert code(eeglab(tmp_path / "b.set", real, data=cut)) == "unsupported"
    scipy.io.savemat(tmp_path / "c.mat", {"x": np.ones((5, 5))})
    assert code(tmp_path / "c.mat") == "unsupported"
    eeglab(tmp_path / "d.set", real, chanlocs=np.array([("a",)], [("labels", "O")])[None])
    assert code(tmp_path / "d.set") == "header_lies"


@pytest.mark.fault(33)
@pytest.mark.parametrize("compressed", [True, False])
def test_what_unpacks_to_more_than_the_limit_is_refused_before_it_is_stored(tmp_path, real, compressed):
    path = eeglab(tmp_path / "a.set", np.zeros((4, 2**21)), compressed)
    if compressed:
        assert path.stat().st_size < 10**6
    reader = formats.choose(path, None)
    with pytest.raises(ItemError) as caught:
        reader.read(path, tmp_path, ReadOptions(formats.Limits(2**20)))
    assert caught.value.code == "too_large"
    assert not (tmp_path / "signal.npy").exists()


@pytest.mark.fault(42)
def test_hdf5_that_links_elsewhere_is_refused(tmp_path, real):
    import h5py

    (tmp_path / "secret").write_bytes(real.T.astype("f4").tobytes())
    for how in ("external", "link", "virtual"):
        path = tmp_path / f"{how}.set"
        with h5py.File(path, "w", userblock_size=512) as file:
            file["srate"] = np.array([[250.0]])
            if how == "external":
                file.create_dataset("data", (7500, 4), "f4", external=[(str(tmp_path / "secret"), 0, 120000)])
            elif how == "link":
                file["data"] = h5py.ExternalLink(str(tmp_path / "external.set"), "/data")
            else:
                layout = h5py.VirtualLayout((7500, 4), "f4")
                layout[:] = h5py.VirtualSource(str(tmp_path / "external.set"), "data", (7500, 4))
                file.create_virtual_dataset("data", layout)
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(512))
        assert code(path) == "unsupported"


# FIF


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize(
    ("fmt", "dtype"), [("single", "float32"), ("double", "float64"), ("short", "int16"), ("int", "int32")]
)
def test_fif_is_what_mne_reads(tmp_path, raw, real, fmt, dtype, dated):
    info = mne.create_info(
        [*LABELS[:3], "STI 014", "SMITH JOHN with a long name"], 250.0, ["eeg", "eeg", "eog", "stim", "misc"]
    )
    said = mne.io.RawArray(np.vstack([real[:3] * 1e-6, np.arange(7500)[None] % 7, real[3:]]), info, first_samp=77)
    said.info["bads"] = ["Cz", "SMITH JOHN with a long name"]
    said.set_meas_date(datetime(2020, 1, 1, tzinfo=UTC) if dated else None)
    said.set_annotations(mne.Annotations(*zip(*EVENTS, strict=True)))
    said.set_eeg_reference(projection=True)
    path = tmp_path / ("a_raw.fif.gz" if fmt == "int" else "a_raw.fif")
    said.save(path, fmt=fmt)
    entry, theirs = one(path), mne.io.read_raw_fif(path)
    same(entry, theirs)
    assert entry["stored"].dtype == dtype
    meta = entry["meta"]
    assert meta["events"] == events_of(theirs) == KEPT
    assert (meta["channels"], meta["bad_channels"]) == (["Fpz", "Cz", "EOG left", "STI 014", "ch5"], [1, 4])
    assert meta["channel_types"] == ["EEG", "EEG", "EOG", "TRIG", "other"]
    assert meta["units"] == ["uV", "uV", "uV", None, None]
    assert entry["attributes"]["projectors"] == [{"kind": "average reference", "applied": False}]


def test_meg_keeps_tesla_and_a_gap_is_an_event_as_mne_says(tmp_path, real):
    info = mne.create_info(["MEG 0111", "MEG 0112", "EEG 001"], 250.0, ["mag", "grad", "eeg"])
    said = mne.io.RawArray(np.tile(real[:3], 4) * 1e-12, info)
    said.set_annotations(mne.Annotations([40.0], [20.0], ["BAD_ACQ_SKIP"]))
    said.save(tmp_path / "a_raw.fif", buffer_size_sec=1.0)
    entry, theirs = one(tmp_path / "a_raw.fif"), mne.io.read_raw_fif(tmp_path / "a_raw.fif")
    np.testing.assert_allclose(entry["values"] * [[1], [1], [1e-6]], theirs.get_data(), rtol=0, atol=1e-18)
    assert (entry["meta"]["units"], entry["modality"]) == (["T", "T/m", "uV"], "MEG")
    assert entry["meta"]["events"] == events_of(theirs)
    assert {event[2] for event in entry["meta"]["events"]} == {"BAD_ACQ_SKIP"}


@pytest.mark.parametrize("naming", ["neuromag", "bids"])
def test_split_fif_is_read_as_one(tmp_path, real, naming):
    said = mne.io.RawArray(np.tile(real, 20) * 1e-6, mne.create_info(4, 250.0, "eeg"))
    said.save(tmp_path / "sub-1_task-x_eeg.fif", split_size="2MB", split_naming=naming, buffer_size_sec=2.0)
    first = tmp_path / ("sub-1_task-x_eeg.fif" if naming == "neuromag" else "sub-1_task-x_split-01_eeg.fif")
    others = sorted(path.name for path in tmp_path.glob("*.fif") if path != first)
    assert len(others) == 2
    assert list(formats.part_of(first, None)[1].beside) == others
    entry = one(first)
    same(entry, mne.io.read_raw_fif(first))
    assert entry["attributes"]["files"] == 3
    assert code(tmp_path / others[0]) == "unsupported"
    (tmp_path / others[0]).unlink()
    assert code(first) == "part_missing"


def test_averages_and_epochs_are_refused(tmp_path, raw):
    made = mne.make_fixed_length_epochs(raw, 2.0)
    made.save(tmp_path / "a-epo.fif")
    made.average().save(tmp_path / "a-ave.fif")
    assert code(tmp_path / "a-epo.fif") == code(tmp_path / "a-ave.fif") == "unsupported"


# EDF and BDF


def edf(path, real, kind=edfio.Edf, labels=("EEG Fpz-Cz", "C3-A2", "EOG left", "SMITH JOHN"), **said):
    make = edfio.EdfSignal if kind is edfio.Edf else edfio.BdfSignal
    signals = [
        make(values, 250, label=label, physical_dimension="uV") for values, label in zip(real, labels, strict=True)
    ]
    said = {"annotations": [edfio.EdfAnnotation(a, b or None, c) for a, b, c in EVENTS]} | said
    kind(signals, **said).write(path)
    return path


@pytest.mark.parametrize(
    ("kind", "name", "reads"), [(edfio.Edf, "a.edf", mne.io.read_raw_edf), (edfio.Bdf, "a.bdf", mne.io.read_raw_bdf)]
)
def test_annotations_of_edf_and_bdf_are_events_as_mne_says(tmp_path, real, kind, name, reads):
    entry, theirs = one(edf(tmp_path / name, real, kind)), reads(tmp_path / name)
    np.testing.assert_allclose(entry["values"] * 1e-6, theirs.get_data(), rtol=0, atol=1e-12)
    meta = entry["meta"]
    assert meta["events"] == events_of(theirs) == KEPT
    assert meta["channels"] == ["EEG Fpz-Cz", "C3-A2", "EOG left", "ch4"]
    assert meta["reference"] == ["Cz", "A2", None, None]
    assert "SMITH" not in str({**entry, "values": 0, "stored": 0})


def test_events_count_from_the_first_sample_also_where_that_is_later_than_the_start(tmp_path, real):
    path = edf(tmp_path / "a.edf", real, starttime=time(1, 2, 3, 500000))
    assert b"+0.5\x14\x14" in path.read_bytes()
    assert one(path)["meta"]["events"] == KEPT


def test_edf_d_without_gaps_is_read_and_with_gaps_refused(tmp_path, real):
    path = edf(tmp_path / "a.edf", real)
    whole = path.read_bytes().replace(b"EDF+C", b"EDF+D")
    path.write_bytes(whole)
    assert one(path)["meta"]["events"] == KEPT
    assert b"+7\x14\x14" in whole
    path.write_bytes(whole.replace(b"+7\x14\x14", b"+8\x14\x14"))
    assert code(path) == "unsupported"


def test_triggers_of_a_biosemi_status_channel_are_events_as_mne_finds_them(tmp_path, real):
    status = np.full(7500, 0x100000)
    for at, value in ((500, 7), (510, 9), (900, 255), (4000, 1)):
        status[at : at + 40] = 0x100000 + value
    signals = [edfio.BdfSignal(real[0], 250, label="Cz", physical_dimension="uV")]
    signals.append(
        edfio.BdfSignal(status, 250, label="Status", physical_dimension="Boolean", physical_range=(-(2**23), 2**23 - 1))
    )
    edfio.Bdf(signals).write(tmp_path / "a.bdf")
    entry = one(tmp_path / "a.bdf")
    theirs = mne.io.read_raw_bdf(tmp_path / "a.bdf", stim_channel="Status", preload=True)
    found = mne.find_events(theirs, consecutive=True, mask=0xFFFF, mask_type="and", shortest_event=1)
    assert len(found) == 4
    assert entry["meta"]["events"] == [[at / 250, 0.0, str(value)] for at, _, value in found]
    assert entry["meta"]["units"] == ["uV", None]


# BIDS


def bids(folder, real, rows=None):
    path = brainvision(folder, real, name="sub-01_ses-2_task-rest_run-1_eeg")
    rows = rows or [
        ("Cz", "EEG", "uV", "bad", "A1"),
        ("Fpz", "EEG", "mV", "good", "n/a"),
        ("EOG left", "VEOG", "uV", "n/a", "n/a"),
        ("gone", "MISC", "n/a", "n/a", "n/a"),
    ]
    table = ["name\ttype\tunits\tstatus\treference\tnotes", *("\t".join([*row, "SMITH JOHN"]) for row in rows)]
    (folder / "sub-01_ses-2_task-rest_run-1_channels.tsv").write_text("\n".join(table) + "\n")
    (folder / "sub-01_ses-2_task-rest_run-1_events.tsv").write_text(
        "onset\tduration\ttrial_type\tvalue\n1.5\t2\tEyes open\t3\n4\tn/a\tn/a\t12\nn/a\t1\tblink\t1\n6\t0\tSMITH JOHN\t1\n"
    )
    (folder / "sub-01_eeg.json").write_text(json.dumps({"PowerLineFrequency": 60, "EEGReference": "linked mastoids"}))
    (folder / "sub-01_task-rest_eeg.json").write_text(
        json.dumps({"PowerLineFrequency": 50, "InstitutionName": "SMITH"})
    )
    (folder / "sub-02_eeg.json").write_text("junk of another subject")
    return path


def test_sidecars_say_types_bad_channels_events_reference_and_mains(tmp_path, real):
    path = bids(tmp_path, real)
    assert formats.part_of(path, None)[1].beside == (
        "sub-01_ses-2_task-rest_run-1_eeg.eeg", "sub-01_ses-2_task-rest_run-1_eeg.vmrk", "sub-01_ses-2_task-rest_run-1_channels.tsv",
        "sub-01_ses-2_task-rest_run-1_events.tsv", "sub-01_task-rest_eeg.json", "sub-01_eeg.json",
    )  # fmt: skip
    entry = one(path)
    meta, said = entry["meta"], entry["attributes"]
    assert meta["channel_types"] == ["EEG", "EEG", "VEOG", "other"]
    assert meta["bad_channels"] == [1]
    assert meta["events"] == [[1.5, 2.0, "Eyes open"], [4.0, 0.0, "12"], [6.0, 0.0, "other"]]
    assert (meta["power_line_hz"], meta["reference"]) == (50.0, ["FCz", "A1", "FCz", "FCz"])
    assert meta["units"] == ["uV"] * 4  # what the gain is of is the file's to say
    assert (
        said["channels_not_in_sidecar"],
        said["sidecar_channels_not_in_file"],
        said["unit_differs_from_sidecar"],
    ) == (1, 1, 1)
    assert said["events_from"] == "sidecar"
    assert "SMITH" not in str({**entry, "values": 0, "stored": 0})


def test_a_sidecar_beside_edf_eeglab_and_fif_is_read_too(tmp_path, real, raw):
    for number, ending in enumerate(("edf", "set", "fif")):
        path = tmp_path / f"sub-{number}_task-x_eeg.{ending}"
        write = {"edf": lambda p: edf(p, real), "set": lambda p: eeglab(p, real), "fif": raw.save}[ending]
        write(path)
        (tmp_path / f"sub-{number}_task-x_events.tsv").write_text("onset\tduration\ttrial_type\n2\t1\tblink\n")
        (tmp_path / "task-x_eeg.json").write_text('{"EEGReference": "average"}')
        assert formats.part_of(path, None)[1].beside == (f"sub-{number}_task-x_events.tsv", "task-x_eeg.json")
        meta = one(path)["meta"]
        assert meta["events"] == [[2.0, 1.0, "blink"]]
        assert meta["reference"][1] == ("A2" if ending == "edf" else "average")


@pytest.mark.parametrize(
    ("name", "text"),
    [("channels.tsv", "name\ttype\nCz\n"), ("channels.tsv", "type\nEEG\n"), ("events.tsv", "onset\tduration\nnow\t1\n"), ("eeg.json", "[" * 5000), ("eeg.json", "[1]"),
     ("eeg.json", '{"a": ')],
)  # fmt: skip
def test_a_broken_sidecar_is_said_so(tmp_path, real, name, text):
    path = bids(tmp_path, real)
    (tmp_path / f"sub-01_ses-2_task-rest_run-1_{name}").write_text(text)
    assert code(path) == "header_lies"


# What is kept of texts


@pytest.mark.parametrize("text", ["Sleep stage W", "Sleep stage N3", "Sleep stage R", "Sleep stage ?", "Obstructive apnea|Obstructive Apnea", "Limb movement", "SpO2 desaturation",
                                  "Arousal (ARO RES)", "Lights off", "Lights On", "eyes_closed", "EyesOpen", "BAD_ACQ_SKIP", "bad", "EDGE boundary", "boundary", "New Segment/",
                                  "Stimulus/S  1", "Response/R 15", "S255", "T0", "12", "65535", "Seizure onset", "Spindle", "K-complex", "DIN1"])  # fmt: skip
def test_events_of_the_field_keep_their_names(text):
    assert events.name(text) == text


@pytest.mark.parametrize("text", ["John Smith", "SMITH", "apnea Smith", "12.3.1957", "1957 3 12", "123456", "S 1 J 2", "", "Dr. Müller", "Sleep stage W (Smith)", "wake\nup John",
                                  "a" * 100, "j.smith@x.org", "0151 234567"])  # fmt: skip
def test_what_may_name_somebody_becomes_other(text):
    assert events.name(text) == "other"


@pytest.mark.parametrize("label", ["EEG Fpz-Cz", "C3-A2", "EEG F4-M1", "EOG horizontal", "Resp oro-nasal", "Temp rectal", "EMG Chin1-Chin2", "SpO2", "E128", "EXG1", "MEG 0113",
                                   "STI 014", "LAT", "Tib ant", "POL A'12", "AFF5h", "A1+A2", "Status", "ECG II", "Nasal Pressure", "HEOG"])  # fmt: skip
def test_labels_of_the_field_stay(label):
    assert channels.label(label, 7) == label


@pytest.mark.parametrize(
    "label", ["John Smith", "SMITHJOHN1957", "EEG Smith", "Smith-Cz", "", "EEG 12.03.1957", "C3-A2 Müller", "a " * 40]
)
def test_labels_that_may_name_somebody_become_numbers(label):
    assert channels.label(label, 7) == "ch7"


@pytest.mark.parametrize(("text", "unit"), [("uV", "uV"), ("µV", "uV"), ("mV", "mV"), ("V", "V"), ("nV", "nV"), ("°C", "Cel"), ("degC", "Cel"), ("mmHg", "mm[Hg]"), ("%", "%"),
                                            ("cmH2O", "cm[H2O]"), ("bpm", "/min"), ("MV", "mV"), ("UV", "uV"), ("", None), ("Smith", None), ("Boolean", None), ("S", "S"), ("s", "s")])  # fmt: skip
def test_units_are_ucum_or_unknown(text, unit):
    assert channels.unit(text) == unit


# All of them


def every(folder, real, raw):
    """A file of each format, with a name planted in it wherever text may be."""
    folder.mkdir()
    raw.info["description"] = raw.info["experimenter"] = "SMITH JOHN"
    raw.info["subject_info"] = {"his_id": "SMITH JOHN", "last_name": "SMITH", "first_name": "JOHN"}
    raw.set_meas_date(datetime(1957, 3, 12, tzinfo=UTC))
    raw.save(folder / "a_raw.fif")
    raw.save(folder / "b_raw.fif.gz")
    eeglab(folder / "c.set", real)
    eeglabio.utils.export_mne_raw(raw.copy(), str(folder / "d.set"), fmt="v7.3")
    edf(folder / "e.edf", real, patient=edfio.Patient(name="SMITH_JOHN"))
    edf(folder / "f.bdf", real, edfio.Bdf)
    brainvision(folder, real, name="g")
    return [folder / name for name in ("a_raw.fif", "b_raw.fif.gz", "c.set", "d.set", "e.edf", "f.bdf", "g.vhdr")]


@pytest.mark.fault(43)
def test_a_folder_is_ingested_with_what_lies_beside_and_a_changed_sidecar_is_read_again(tmp_path, lake, real, raw):
    src = tmp_path / "src"
    every(src, real, raw)
    bids(src / "bids", real + 1)
    eeglab(src / "h.set", real, data="h.fdt")
    (real + 2).T.astype("<f4").tofile(src / "h.fdt")
    long = mne.io.RawArray(np.tile(real, 20) * 1e-6, mne.create_info(LABELS, 250.0, "eeg"))
    long.save(src / "i_raw.fif", split_size="2MB", buffer_size_sec=2.0)
    report = ingest(lake, "d", [src])
    assert (report.added, report.quarantined) == (10, {})
    assert found_in(texts_of(lake.store.local), ["SMITH"]) == []
    table = src / "bids" / "sub-01_ses-2_task-rest_run-1_channels.tsv"
    table.write_text(table.read_text().replace("good", "bad"))
    report = ingest(lake, "d", [src])
    assert (report.added, report.changed, report.quarantined) == (0, 1, {})
    bad = [arrays.read_meta(lake, row["array"])["bad_channels"] for row in read_items(lake, "d").to_pylist()]
    assert bad.count([0, 1]) == 1


@pytest.mark.fault(43)
def test_no_text_of_a_header_is_in_an_entry(tmp_path, real, raw):
    for path in every(tmp_path / "in", real, raw):
        text = json.dumps([{k: v for k, v in entry.items() if k not in ("values", "stored")} for entry in read(path)])
        assert "SMITH" not in text.upper()
        assert "1957" not in text


@pytest.mark.fault(32, 36)
def test_cut_anywhere_a_recording_is_refused_with_a_code_and_quotes_nothing(tmp_path, real, raw):
    for path in every(tmp_path / "in", real, raw):
        victim = path.with_suffix(".eeg") if path.suffix == ".vhdr" else path
        whole, chosen = victim.read_bytes(), np.random.default_rng(1)
        for at in [*chosen.integers(1, len(whole), 12).tolist(), len(whole) - 1, 130, 700]:
            at |= victim != path  # a .vhdr without DataPoints does not know how many whole samples there were
            victim.write_bytes(whole[:at])
            with pytest.raises(ItemError) as caught:
                read(path)
            assert caught.value.code in ("truncated", "checksum", "unreadable", "unknown_format", "header_lies"), (
                path.name,
                at,
            )
            assert "SMITH" not in str(caught.value)
        victim.write_bytes(whole)


@pytest.mark.fault(35, 38)
def test_with_bytes_flipped_a_recording_is_read_or_refused_with_a_code(tmp_path, real, raw):
    said = []
    for path in every(tmp_path / "in", real[:, :1000], raw.crop(0, 4)):
        whole, chosen = path.read_bytes(), np.random.default_rng(2)
        for at in chosen.integers(0, min(len(whole), 6000), 40):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(chosen.integers(8))
            path.write_bytes(damaged)
            try:
                read(path)
            except ItemError as error:
                said.append(str(error))
        path.write_bytes(whole)
    assert len(said) > 20
    assert "SMITH" not in str(said)


@pytest.mark.fault(33)
def test_a_large_recording_of_each_format_is_read_under_the_childs_cap(tmp_path, real, raw):
    long = np.tile(real, 400)  # 12,000,000 samples, 96 MB as doubles
    many = mne.io.RawArray(np.tile(real, 400) * 1e-6, raw.info)
    eeglab(tmp_path / "a.set", long)
    many.save(tmp_path / "b_raw.fif.gz", fmt="short")
    brainvision(tmp_path, long, "binary_float32", name="c")
    with Decoder(memory_bytes=400 * 2**20) as decoder:
        for name in ("a.set", "b_raw.fif.gz", "c.vhdr"):
            decoded = decoder.decode(tmp_path / name, None, ReadOptions())
            stored = np.load(decoded.file(decoded.entries[0]["file"]), mmap_mode="r")
            assert stored.shape == (4, 3_000_000)
            decoded.discard()


def test_the_stored_array_opens_in_xarray(tmp_path, lake, real):
    path = brainvision(tmp_path, real)
    entry = one(path)
    stored = arrays.write_recording(lake, "datasets/d/arrays", entry["stored"], entry["meta"])
    opened = xarray.open_zarr(lake.store.local / stored.path, consolidated=False)
    assert opened["signal"].dims == ("channel", "time")
    meta = opened.attrs["diastole"]
    values = opened["signal"].values * np.array(meta["gain"])[:, None]
    np.testing.assert_allclose(values * 1e-6, mne.io.read_raw_brainvision(path).get_data(), rtol=0, atol=1e-12)
    assert meta["events"] == entry["meta"]["events"]
    assert arrays.read_whole(lake, stored.path, stored.content_digest)[1]["events"] == meta["events"]
