"""What a dataset holds, what stands out and what cannot be: told from its table, equal to a plain look at all of its rows."""

import json
import statistics
import sys
from collections import Counter

import edfio
import made
import nibabel
import numpy as np
import pyarrow as pa
import pytest
from published import data as examples

from diastole.cluster import cli
from diastole.jobs.describe import describe
from diastole.jobs.outliers import bounds
from diastole.jobs.sound import RULES, unsound
from diastole.lake.errors import LakeError
from diastole.lake.items import ITEMS, read_items, write_items
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest


def volume(path, spacing=(1.0, 1.0, 1.5), dtype=np.int16, shape=(20, 24, 28), seed=0, affine=None, assumed=False):
    data = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    image = nibabel.Nifti1Image(data, None if assumed else np.diag([*spacing, 1.0]) if affine is None else affine)
    if assumed:
        image.header.set_zooms(spacing)
    nibabel.save(image, path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Sixty scans of two sites, of which some stand out, a file that cannot be read; recordings; proteins."""
    folder = tmp_path_factory.mktemp("cohort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        lake = Lake.create(str(folder / "lake"))
        (folder / "v").mkdir()
        (folder / "e").mkdir()
        flipped = np.diag([-1.0, 1.0, 1.5, 1.0])
        odd = {
            7: {"spacing": (1.0, 1.0, 15.0)},
            11: {"dtype": np.uint8},
            13: {"affine": flipped},
            17: {"assumed": True},
            19: {"spacing": (1000.0, 1000.0, 1500.0)},
        }
        lines = ["path,subject,session,site,name"]
        for number in range(60):
            volume(folder / "v" / f"{number}.nii", seed=number, **odd.get(number, {}))
            site = "north" if number % 3 else "south"
            lines.append(f"v/{number}.nii,S{number // 2},{number % 2},{site},JOHN SMITH {number}")
        (folder / "v" / "bad.nii").write_bytes((folder / "v" / "0.nii").read_bytes()[:900])
        (folder / "m.csv").write_text("\n".join(lines))
        ingest(lake, "v", [folder / "v"], IngestOptions(modality="MR", manifest=folder / "m.csv"))
        for number in range(12):
            labels = ["EEG a", "EEG b"] if number else ["EEG a", "EEG c"]
            seconds = 600 if number == 5 else 10 + number % 3
            values = np.random.default_rng(number).normal(0, 9, seconds * 50)
            examples.write_edf(folder / "e" / f"{number}.edf", [values, values], labels, rate=50.0)
        ingest(lake, "e", [folder / "e"], IngestOptions(modality="EEG"))
        made.add_proteins(lake, folder / "p", [*made.proteins(200, seed=4), "A" * 30_000], dataset="p")
        patch.setenv("DIASTOLE_LAKE", lake.store.root)
        yield lake


def ids(lake, dataset, *numbers, prefix="JOHN SMITH "):
    rows = read_items(lake, dataset).to_pylist()
    return {row["item_id"] for row in rows if row["name"] in {f"{prefix}{number}" for number in numbers}}


def named(found, code, what):
    return {one["item_id"] for o in found.outliers if (o.code, o.what) == (code, what) for one in o.first}


def test_counts_are_those_of_the_rows(cohort):
    found, rows = describe(cohort, "v"), read_items(cohort, "v").to_pylist()
    assert found.states == {"live": 60}
    assert (found.subjects, found.sessions) == (30, 60)
    assert found.quarantined == {"truncated": 1}
    [group] = found.groups
    assert (group.modality, group.kind, group.items) == ("MR", "volume", 60)
    assert group.nbytes == sum(row["nbytes"] for row in rows)
    assert group.fields["site"] == {"north": 40, "south": 20}
    assert group.fields["dtype"] == Counter(row["dtype"] for row in rows)
    assert group.fields["orientation"] == {"RAS": 58, "LAS": 1, "unknown": 1}
    assert group.fields["shape"] == {"28×24×20": 60}
    assert group.fields["spacing_mm"] == {"1.0×1.0×1.5": 58, "1.0×1.0×15.0": 1, "1000.0×1000.0×1500.0": 1}
    assert group.measures["extent_z_mm"]["median"] == pytest.approx(42.0)
    assert group.measures["spacing_z_mm"]["max"] == 1500.0
    assert found.unsound == []


def test_scans_that_stand_out_are_found_by_id_and_no_other(cohort):
    found = describe(cohort, "v")
    assert named(found, "far", "spacing_z_mm") == ids(cohort, "v", 7, 19)
    assert named(found, "far", "spacing_x_mm") == named(found, "far", "extent_y_mm") == ids(cohort, "v", 19)
    assert named(found, "rare", "dtype") == ids(cohort, "v", 11)
    assert named(found, "rare", "orientation") == ids(cohort, "v", 13, 17)
    assert named(found, "no_orientation", "orientation") == ids(cohort, "v", 17)
    assert named(found, "implausible_extent", "extent_mm") == ids(cohort, "v", 19)
    assert {o.code for o in found.outliers} == {"far", "rare", "no_orientation", "implausible_extent"}


@pytest.fixture
def say(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output and error)."""

    def said(lake, *arguments):
        monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)
        monkeypatch.setattr(sys, "argv", ["diastole", *arguments])
        code = cli.answer()
        return code, "".join(capsys.readouterr())

    return said


def test_no_name_is_told(cohort, say):
    for words in (("describe", "v"), ("describe", "v", "--json"), ("check", "--deep"), ("check", "--json")):
        code, told = say(cohort, *words)
        assert code == 0
        assert "SMITH" not in told
        assert "unsound" in told or "checked" in told or "stands out" in told


def test_recordings_have_rates_channels_units_and_durations(cohort):
    found = describe(cohort, "e")
    [group] = found.groups
    assert (group.kind, group.items) == ("recording", 12)
    assert group.fields["rate_hz"] == {"50.0": 12}
    assert group.fields["channels"] == {"EEG a, EEG b": 11, "EEG a, EEG c": 1}
    assert group.fields["units"] == {"uV": 12}
    assert (group.measures["duration_s"]["min"], group.measures["duration_s"]["max"]) == (10.0, 600.0)
    [long] = [row["item_id"] for row in read_items(cohort, "e").to_pylist() if row["shape"][1] == 30_000]
    [other] = [row["item_id"] for row in read_items(cohort, "e").to_pylist() if "EEG c" in row["signal"]["channels"]]
    assert named(found, "far", "duration_s") == {long}
    assert named(found, "rare", "channels") == {other}


def test_lengths_of_sequences_are_those_of_the_rows(cohort):
    found, rows = describe(cohort, "p"), read_items(cohort, "p").to_pylist()
    lengths = sorted(row["sequence"]["length"] for row in rows)
    told = found.groups[0].measures["length"]
    assert (told["min"], told["max"]) == (lengths[0], lengths[-1])
    assert told["median"] == statistics.median_low(lengths)
    assert told["p5"] == lengths[int(np.ceil(0.05 * len(lengths))) - 1]
    assert named(found, "far", "length") == {row["item_id"] for row in rows if row["sequence"]["length"] == 30_000}


def test_near_is_within_five_deviations_of_logarithms():
    rng = np.random.default_rng(0)
    values = np.round(rng.lognormal(5, 0.4, 2001), 2)
    logs, counts = np.unique(np.log(values), return_counts=True)
    low, high, middle = bounds(logs, counts)
    known = np.median(np.log(values))
    deviation = np.median(np.abs(np.log(values) - known))
    np.testing.assert_allclose([low, high, middle], [known - 5 * deviation, known + 5 * deviation, known])
    low, high, _ = bounds(np.array([0.0, 0.04, 0.06]), np.array([9, 1, 1]))
    assert low < 0.04 < high < 0.06  # most are alike: 5 % is near


def test_a_small_or_empty_dataset_has_no_outliers(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", ["ACD", "A" * 3000, "A" * 3001])
    found = describe(lake, "d")
    assert (found.outliers, found.groups[0].items) == ([], 3)
    for path in (tmp_path / "src").iterdir():
        path.unlink()
    with pytest.raises(LakeError, match="there is: d"):
        describe(lake, "e")


# What cannot be


def spoilt(lake, **change):
    """The first item of v, with other numbers in its row."""
    row = read_items(lake, "v").sort_by("item_id").to_pylist()[0]
    for name, value in change.items():
        if isinstance(value, dict):
            row[name] = {**row[name], **value}
        else:
            row[name] = value
    write_items(lake, "v", pa.Table.from_pylist([row], ITEMS))
    return row["item_id"]


@pytest.fixture
def scans(lake, tmp_path):
    (tmp_path / "v").mkdir()
    for number in range(2):
        volume(tmp_path / "v" / f"{number}.nii", seed=number)
    ingest(lake, "v", [tmp_path / "v"], IngestOptions(modality="MR"))
    return lake


@pytest.mark.parametrize(
    ("codes", "change"),
    [
        ({"shape", "bytes"}, {"shape": [0, 24, 20]}),
        ({"bytes"}, {"shape": [29, 24, 20]}),
        ({"spacing"}, {"geometry": {"spacing": [1.0, -1.0, 1.5]}}),
        ({"spacing"}, {"geometry": {"spacing": [1.0, float("nan"), 1.5]}}),
        ({"affine_spacing"}, {"geometry": {"spacing": [1.0, 1.0, 1.6]}}),
        ({"affine"}, {"geometry": {"affine": [1.0, 0.0, 0.0]}}),
        ({"affine"}, {"geometry": {"affine": [*np.diag([1.0, 1.0, 1.5, 2.0]).ravel()]}}),
        ({"rate", "channels"}, {"signal": {"rate": 0.0, "channels": ["a"], "units": ["uV"]}}),
        ({"length"}, {"sequence": {"length": 3, "alphabet": "dna", "letters": "A", "assembly": None}}),
    ],
)
def test_rows_that_cannot_be_are_named_by_their_code(scans, codes, change):
    if "signal" in change or "sequence" in change:
        row = read_items(scans, "v").sort_by("item_id").to_pylist()[0]
        write_items(scans, "v", pa.Table.from_pylist([row | change], ITEMS))
        item = row["item_id"]
    else:
        item = spoilt(scans, **change)
    found, unread = unsound(scans, deep=False)
    assert ({one.code for one in found}, {one.item_id for one in found}, unread) == (codes, {item}, {})
    assert codes <= set(RULES)
    assert [one.code for one in describe(scans, "v").unsound] == sorted(codes)


def test_deep_the_arrays_own_words_are_held_to_the_row(scans, tmp_path):
    item = spoilt(scans, geometry={"spacing": [1.0, 1.0, 1.5004]})  # within what an affine may differ
    assert unsound(scans, deep=False)[0] == []
    assert [(one.item_id, one.code) for one in unsound(scans, deep=True)[0]] == [(item, "array_disagrees")]


@pytest.mark.parametrize(("value", "code"), [(0, "gain"), ("NaN", "gain"), (2.0, None)])
def test_deep_gains_must_be_finite_and_not_zero(lake, tmp_path, value, code):
    edfio.Edf([edfio.EdfSignal(np.arange(500.0), 50, label="EEG a")]).write(tmp_path / "a.edf")
    ingest(lake, "e", [tmp_path / "a.edf"], IngestOptions(modality="EEG"))
    array = read_items(lake, "e")["array"][0].as_py()
    path = lake.store.path(f"{array}/zarr.json")
    group = json.loads(path.read_text())
    group["attributes"]["diastole"]["gain"] = [float(value)]
    path.write_text(json.dumps(group))
    assert [one.code for one in unsound(lake, deep=True)[0]] == [code] * (code is not None)


def test_check_and_describe_end_with_1_where_something_cannot_be(scans, say):
    assert say(scans, "check", "--deep")[0] == 0
    item = spoilt(scans, geometry={"spacing": [1.0, 1.0, -1.5]})
    for words in (("check", "--json"), ("check",), ("describe", "v"), ("describe", "v", "--json")):
        code, told = say(scans, *words)
        assert code == 1
        assert item in told


def test_a_table_that_cannot_be_read_is_said_and_the_others_are_looked_at(scans, tmp_path):
    made.add_proteins(scans, tmp_path / "src", made.proteins(3))
    for path in scans.store.path("datasets/d/items").glob("*.parquet"):
        path.write_bytes(b"PAR1 nothing PAR1")
    item = spoilt(scans, geometry={"spacing": [1.0, 1.0, -1.5]})
    found, unread = unsound(scans, deep=True)
    assert list(unread) == ["d"]
    assert {one.item_id for one in found} == {item}


def test_other_kinds_are_told_apart(lake, tmp_path):
    made.images(lake, tmp_path, np.zeros((3, 8, 9), np.uint8))
    [group] = describe(lake, "d").groups
    assert (group.kind, group.fields["shape"]) == ("image", {"1×8×9": 3})
