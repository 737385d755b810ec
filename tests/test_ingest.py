import csv
import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import edfio
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from diastole.lake import arrays, integrity, items, packs, quarantine, sequences
from diastole.lake.errors import LakeError, SpecError
from diastole.lake.ids import content_digest
from diastole.workers.ingest import IngestOptions, ingest

NAME = "SMITHJOHN1957"


def nifti(path, seed=0, shape=(8, 9, 10), **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(-100, 1000, shape).astype(np.int16)
    image = nibabel.Nifti1Image(data, np.diag([-1.0, 1, 2, 1]))
    for field, value in header.items():
        image.header[field] = value
    nibabel.save(image, path)
    return data


def edf(path, rates=((256, "EEG Fpz-Cz"), (256, "EOG left")), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    edfio.Edf(
        [
            edfio.EdfSignal(rng.normal(0, 9, rate * 4), rate, label=label, physical_dimension="uV")
            for rate, label in rates
        ],
        **options,
    ).write(path)


def rows(lake, dataset="d"):
    return {r["item_id"]: r for r in items.read_items(lake, dataset).to_pylist()}


def states(lake, dataset="d"):
    return sorted(r["state"] for r in items.read_sources(lake, dataset).to_pylist())


def codes(lake):
    return sorted(r["error_code"] for r in quarantine.read(lake).to_pylist() if r["state"] == "open")


def result(report):
    return report.added, report.changed, report.unchanged, report.gone, report.quarantined


def commits(lake, table):
    return len(list((lake.store.local / table / "_delta_log").glob("*.json")))


def test_volume_is_stored_as_it_is_and_described(lake, tmp_path):
    data = nifti(tmp_path / "src" / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii.gz")
    report = ingest(lake, "d", [tmp_path / "src"])
    assert result(report) == (1, 0, 0, 0, {})
    [row] = rows(lake).values()
    assert row["item_id"] == lake.item_id("d", "sub-01_ses-2_T1w")
    assert row["subject_id"] == lake.subject_id("01")
    assert (row["modality"], row["name"], row["state"], row["dtype"]) == ("MR", None, "live", "int16")
    assert (row["shape"], row["nbytes"]) == ([10, 9, 8], 8 * 9 * 10 * 2)
    assert row["geometry"]["orientation"] == "LAS"
    stored, meta = arrays.read_whole(lake, row["array"], row["content_digest"])
    assert np.array_equal(stored, data.T)
    assert meta["spacing"] == [1, 1, 2]
    assert integrity.check(lake, deep=True) == []
    assert {p for p, _ in lake.store.list("datasets/d/arrays")} == set(integrity.read(lake)["path"].to_pylist())


def test_recording_has_one_item_for_each_rate(lake, tmp_path):
    edf(tmp_path / "night.edf", ((256, "EEG Fpz-Cz"), (1, "Temp rectal"), (256, "EOG left")))
    assert ingest(lake, "d", [tmp_path / "night.edf"]).added == 2
    found = rows(lake)
    main, slow = found[lake.item_id("d", "night")], found[lake.item_id("d", "night#1Hz")]
    assert main["signal"] == {"rate": 256, "channels": ["EEG Fpz-Cz", "EOG left"], "units": ["uV", "uV"]}
    assert (main["shape"], main["modality"], slow["shape"], slow["modality"]) == ([2, 1024], "EEG", [1, 4], None)
    assert json.loads(main["attributes"])["channel_types"] == ["EEG", "EOG"]
    stored, meta = arrays.read_whole(lake, main["array"], main["content_digest"])
    assert np.allclose(
        stored[0] * meta["gain"][0] + meta["offset"][0], edfio.read_edf(tmp_path / "night.edf").signals[0].data
    )


def test_sequences_are_packed_and_named_only_if_public(lake, tmp_path):
    (tmp_path / "p.fa").write_text(">sp|P1 x\nMKVW\n>sp|P2 y\nmkl*\n")
    ingest(lake, "d", [tmp_path / "p.fa"])
    row = rows(lake)[lake.item_id("d", "p\0sp|P2")]
    assert (row["row"], row["modality"], row["name"], row["shape"], row["nbytes"]) == (1, "protein", None, [3], 3)
    assert row["sequence"] == {"alphabet": "protein", "letters": "KLM", "length": 3, "assembly": None}
    assert row["content_digest"] == sequences.sequence_digest("protein", b"MKL")
    assert sequences.read_rows(lake, row["array"], [1]) == {1: b"MKL"}
    assert ingest(lake, "d", [tmp_path / "p.fa"], IngestOptions(public=True)).changed == 2
    assert {r["name"] for r in rows(lake).values()} == {"sp|P1", "sp|P2"}


def test_assembly_names_the_records_of_a_genome(lake, tmp_path):
    (tmp_path / "g.fa").write_text(">chr1\nACGTN\n")
    ingest(lake, "d", [tmp_path / "g.fa"], IngestOptions(assembly="GRCh38", public=True))
    row = rows(lake)[lake.item_id("d", "GRCh38\0chr1")]
    assert (row["name"], row["sequence"]["assembly"], row["modality"]) == ("chr1", "GRCh38", "dna")


# Nothing is done twice


def test_reingest_of_unchanged_files_opens_nothing(lake, tmp_path):
    nifti(tmp_path / "src" / "a.nii")
    (tmp_path / "src" / "p.fa").write_text(">a\nMKVW\n>b\nMKL\n")
    ingest(lake, "d", [tmp_path / "src"])
    before = commits(lake, "datasets/d/items"), commits(lake, "datasets/d/sources"), commits(lake, "integrity")
    for path in (tmp_path / "src").iterdir():  # same size and time, other bytes: to open them would be to notice
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    report = ingest(lake, "d", [tmp_path / "src"])
    assert result(report) == (0, 0, 3, 0, {})
    assert (report.opened, report.bytes) == (0, 0)
    assert (
        commits(lake, "datasets/d/items"),
        commits(lake, "datasets/d/sources"),
        commits(lake, "integrity"),
    ) == before


def test_touched_file_changes_only_its_source(lake, tmp_path):
    nifti(tmp_path / "a.nii")
    ingest(lake, "d", [tmp_path / "a.nii"])
    before = rows(lake), commits(lake, "datasets/d/items")
    os.utime(tmp_path / "a.nii", (1, 1))
    assert result(ingest(lake, "d", [tmp_path / "a.nii"])) == (0, 0, 1, 0, {})
    assert (rows(lake), commits(lake, "datasets/d/items")) == before
    assert ingest(lake, "d", [tmp_path / "a.nii"]).opened == 0


def test_same_voxels_in_other_bytes_leave_the_item_as_it_was(lake, tmp_path):
    nifti(tmp_path / "a.nii")
    ingest(lake, "d", [tmp_path / "a.nii"])
    before, files = rows(lake), integrity.read(lake).num_rows
    nifti(tmp_path / "a.nii", descrip=b"another text")
    assert result(ingest(lake, "d", [tmp_path / "a.nii"])) == (0, 0, 1, 0, {})
    assert rows(lake) == before
    assert integrity.read(lake).num_rows == files


def test_changed_voxels_move_the_item_to_a_new_array(lake, tmp_path):
    nifti(tmp_path / "a.nii")
    ingest(lake, "d", [tmp_path / "a.nii"])
    [before] = rows(lake).values()
    nifti(tmp_path / "a.nii", seed=1)
    assert result(ingest(lake, "d", [tmp_path / "a.nii"])) == (0, 1, 0, 0, {})
    [after] = rows(lake).values()
    assert after["item_id"] == before["item_id"]
    assert after["array"] != before["array"]
    arrays.read_whole(lake, before["array"], before["content_digest"])  # what a running job planned is still there


def test_new_option_changes_the_row_and_not_the_array(lake, tmp_path):
    nifti(tmp_path / "a.nii")
    ingest(lake, "d", [tmp_path / "a.nii"])
    assert ingest(lake, "d", [tmp_path / "a.nii"], IngestOptions(modality="CT", licence="CC0-1.0")).changed == 1
    [row] = rows(lake).values()
    assert (row["modality"], row["licence"]) == ("CT", "CC0-1.0")
    assert integrity.check(lake, deep=True) == []


def test_grown_fasta_leaves_the_rows_and_packs_of_its_records(lake, tmp_path):
    path = tmp_path / "p.fa"
    path.write_text(">a\nMKVW\n>b\nMKL\n")
    ingest(lake, "d", [path])
    before = rows(lake)
    path.write_text(">a\nMKVW\n>b\nMKLL\n>c\nMAAE\n")
    assert result(ingest(lake, "d", [path])) == (1, 1, 1, 0, {})
    after = rows(lake)
    kept = lake.item_id("d", "p\0a")
    assert after[kept] == before[kept]
    new = [after[lake.item_id("d", f"p\0{record}")] for record in "bc"]
    assert [(r["array"] != after[kept]["array"], r["row"]) for r in new] == [(True, 0), (True, 1)]


def test_record_that_left_its_fasta_is_gone_and_comes_back(lake, tmp_path):
    path = tmp_path / "p.fa"
    path.write_text(">a\nMKVW\n>b\nMKL\n")
    ingest(lake, "d", [path])
    path.write_text(">a\nMKVW\n")
    assert result(ingest(lake, "d", [path])) == (0, 0, 1, 1, {})
    assert rows(lake)[lake.item_id("d", "p\0b")]["state"] == "gone"
    path.write_text(">a\nMKVW\n>b\nMKL\n")
    assert result(ingest(lake, "d", [path])) == (0, 1, 1, 0, {})
    assert {r["state"] for r in rows(lake).values()} == {"live"}


# Conflicts


@pytest.mark.parametrize("together", [True, False])
def test_two_sources_with_one_id_and_one_content_are_one_item(lake, tmp_path, together):
    for folder in ("x", "y"):
        nifti(tmp_path / folder / "sub-01_T1w.nii")
    if together:
        report = ingest(lake, "d", [tmp_path / "x", tmp_path / "y"])
        assert (result(report), report.copies) == ((1, 0, 0, 0, {}), 1)
    else:
        assert result(ingest(lake, "d", [tmp_path / "x"])) == (1, 0, 0, 0, {})
        report = ingest(lake, "d", [tmp_path / "y"])
        assert (result(report), report.copies) == ((0, 0, 0, 0, {}), 1)
    assert states(lake) == ["ingested", "ingested"]


@pytest.mark.parametrize("together", [True, False])
def test_two_sources_with_one_id_and_other_content_conflict(lake, tmp_path, together):
    for seed, folder in enumerate(("x", "y")):
        nifti(tmp_path / folder / "sub-01_T1w.nii", seed)
    if together:
        assert result(ingest(lake, "d", [tmp_path / "x", tmp_path / "y"])) == (1, 0, 0, 0, {"id_conflict": 1})
    else:
        ingest(lake, "d", [tmp_path / "x"])
        assert result(ingest(lake, "d", [tmp_path / "y"])) == (0, 0, 0, 0, {"id_conflict": 1})
    assert "key" in quarantine.read(lake)["error"][0].as_py()
    [row] = rows(lake).values()
    stored, _ = arrays.read_whole(lake, row["array"], row["content_digest"])
    assert np.array_equal(stored.T, nibabel.load(tmp_path / "x" / "sub-01_T1w.nii").dataobj.get_unscaled())
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,key\ny/sub-01_T1w.nii,second\n")
    report = ingest(lake, "d", [tmp_path / "x", tmp_path / "y"], IngestOptions(manifest=manifest))
    assert result(report) == (1, 0, 1, 0, {})
    assert codes(lake) == []


def test_two_records_with_one_id_in_a_fasta_conflict_and_the_rest_is_ingested(lake, tmp_path):
    (tmp_path / "p.fa").write_text(">a\nMKVW\n>a\nMKL\n>b\nMKE\n>b\nMKE\n")
    assert result(ingest(lake, "d", [tmp_path / "p.fa"])) == (2, 0, 1, 0, {"id_conflict": 1})
    assert states(lake) == ["quarantined"]
    report = ingest(lake, "d", [tmp_path / "p.fa"])
    assert (report.opened, report.still_quarantined) == (0, 1)


# Quarantine


def test_bad_files_are_quarantined_and_the_rest_goes_on(lake, tmp_path):
    src = tmp_path / "src"
    nifti(src / "a.nii.gz")
    nifti(src / "b.nii.gz", 1)
    edf(src / "c.edf")
    whole = (src / "b.nii.gz").read_bytes()
    (src / "b.nii.gz").write_bytes(whole[:-50])
    (src / "c.edf").write_bytes((src / "c.edf").read_bytes()[:-1000])
    (src / "d.dat").write_bytes(b"nothing that anybody knows")
    (src / "e.fa").write_text(">a\nMK1VW\n")
    report = ingest(lake, "d", [src])
    assert result(report) == (1, 0, 0, 0, {"truncated": 2, "unknown_format": 1, "unreadable": 1})
    assert codes(lake) == ["truncated", "truncated", "unknown_format", "unreadable"]
    (src / "b.nii.gz").write_bytes(whole)
    report = ingest(lake, "d", [src])
    assert (result(report), report.opened, report.still_quarantined) == ((1, 0, 1, 0, {}), 1, 3)
    assert codes(lake) == ["truncated", "unknown_format", "unreadable"]
    assert ingest(lake, "d", [src], IngestOptions(retry=True)).opened == 3


@pytest.mark.fault(36)
def test_short_edf_is_quarantined(lake, tmp_path):
    edf(tmp_path / "a.edf")
    (tmp_path / "a.edf").write_bytes((tmp_path / "a.edf").read_bytes()[:-2])
    assert ingest(lake, "d", [tmp_path / "a.edf"]).quarantined == {"truncated": 1}
    assert rows(lake) == {}


def test_damaged_file_leaves_the_item_that_it_gave_before(lake, tmp_path):
    nifti(tmp_path / "a.nii")
    ingest(lake, "d", [tmp_path / "a.nii"])
    before = rows(lake)
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(whole[:-1])
    assert ingest(lake, "d", [tmp_path / "a.nii"]).quarantined == {"truncated": 1}
    assert rows(lake) == before
    (tmp_path / "a.nii").write_bytes(whole)
    assert result(ingest(lake, "d", [tmp_path / "a.nii"])) == (0, 0, 1, 0, {})


def test_raised_limit_reads_what_was_too_large_and_nothing_else(lake, tmp_path):
    nifti(tmp_path / "src" / "a.nii")
    nifti(tmp_path / "src" / "b.nii", shape=(20, 20, 20))
    assert ingest(lake, "d", [tmp_path / "src"], IngestOptions(max_item_bytes=2000)).quarantined == {"too_large": 1}
    report = ingest(lake, "d", [tmp_path / "src"])
    assert (report.opened, report.added) == (1, 1)


@pytest.mark.fault(42)
def test_links_that_leave_the_folder_are_refused(lake, tmp_path):
    nifti(tmp_path / "outside" / "secret.nii")
    nifti(tmp_path / "src" / "real" / "a.nii", 1)
    (tmp_path / "src" / "leaves.nii").symlink_to(tmp_path / "outside" / "secret.nii")
    (tmp_path / "src" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "src" / "stays.nii").symlink_to(tmp_path / "src" / "real" / "a.nii")
    (tmp_path / "src" / "nowhere.nii").symlink_to(tmp_path / "src" / "absent")
    report = ingest(lake, "d", [tmp_path / "src"])
    assert (report.added, report.copies, report.quarantined) == (1, 1, {"unreadable": 3})


def test_hidden_files_and_sidecars_are_no_sources(lake, tmp_path):
    nifti(tmp_path / "src" / "a.nii")
    for name in (".hidden.nii", ".git/x.nii", "a.json", "participants.tsv", "dwi.bval"):
        (tmp_path / "src" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_text("x")
    report = ingest(lake, "d", [tmp_path / "src"])
    assert (report.files, result(report)) == (1, (1, 0, 0, 0, {}))


# Names


def everything(root):
    """All that lies in a folder, as text: names, and contents with Parquet files unpacked."""
    for path in sorted(root.rglob("*")):
        yield str(path.relative_to(root))
        if path.suffix == ".parquet":
            yield str(pq.read_table(path).to_pylist())
        elif path.is_file():
            yield path.read_bytes().decode("latin-1")


@pytest.mark.fault(43)
def test_planted_patient_name_is_nowhere_in_the_lake(lake, tmp_path, capfd, caplog):
    src = tmp_path / "src" / NAME
    text = NAME.encode()
    nifti(src / f"{NAME}.nii.gz", descrip=text, aux_file=text, db_name=text, intent_name=text)
    nifti(src / f"sub-{NAME}_ses-{NAME}_T1w.nii", 1)
    patient, recording = edfio.Patient(name=NAME, code=NAME), edfio.Recording(hospital_administration_code=NAME)
    notes = [edfio.EdfAnnotation(0, 1, NAME)]
    edf(src / f"{NAME} night.edf", patient=patient, recording=recording, annotations=notes)
    edf(src / "short.edf", patient=patient)
    (src / "short.edf").write_bytes((src / "short.edf").read_bytes()[:-7])
    (src / f"{NAME}.fa").write_text(f">{NAME} {NAME}\nMKVW\n")
    (src / "bad.fa").write_text(f">{NAME}\nMK1\n")
    (src / f"{NAME}.dat").write_bytes(text * 100)
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,subject,session,key,derived_from\n{src / 'short.edf'},{NAME},{NAME},{NAME},{NAME}\n")
    report = ingest(lake, "d", [tmp_path / "src"], IngestOptions(manifest=manifest))
    assert (report.added, sum(report.quarantined.values())) == (4, 3)
    texts = list(everything(lake.store.local))
    assert any("content_digest" in text for text in texts)  # the tables were unpacked
    assert any("truncated" in text for text in texts)
    assert not [text[:200] for text in texts if NAME.lower() in text.lower()]
    assert NAME not in str(report) + caplog.text + "".join(capfd.readouterr())


def test_errors_of_the_user_name_no_file(lake, tmp_path):
    nifti(tmp_path / NAME / "a.nii")
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path\n{NAME}/b.nii\n")
    for paths, options in (
        ([tmp_path / NAME / "absent"], IngestOptions()),
        ([tmp_path / NAME], IngestOptions(manifest=manifest)),
    ):
        with pytest.raises(SpecError) as caught:
            ingest(lake, "d", paths, options)
        assert NAME not in str(caught.value)


def test_public_names_are_kept_as_names_only(lake, tmp_path):
    nifti(tmp_path / "MNI152.nii")
    ingest(lake, "d", [tmp_path / "MNI152.nii"], IngestOptions(public=True))
    [row] = rows(lake).values()
    assert row.pop("name") == "MNI152"
    assert "MNI152" not in str(row)


# The manifest and the options


def test_manifest_fills_the_columns(lake, tmp_path):
    nifti(tmp_path / "src" / "a.nii")
    said = {
        "path": "a.nii", "key": "k1", "name": "first", "subject": "sub-07", "session": "2", "modality": "CT", "site": "north",
        "laterality": "L", "acquired_at": "2020-01-31T12:00:00", "licence": "CC0", "permitted_use": "research", "derived_from": "k0",
    }  # fmt: skip
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, said)
        writer.writeheader()
        writer.writerow(said)
    ingest(lake, "d", [tmp_path / "src"], IngestOptions(manifest=tmp_path / "m.csv", modality="MR", licence="other"))
    row = rows(lake)[lake.item_id("d", "k1")]
    assert row["subject_id"] == lake.subject_id("07")
    assert row["derived_from"] == lake.item_id("d", "k0")
    assert row["acquired_at"] == datetime(2020, 1, 31, 12, tzinfo=UTC)
    told = {c: row[c] for c in ("name", "modality", "site", "laterality", "licence", "permitted_use")}
    assert told == {c: said[c] for c in told}


@pytest.mark.parametrize(
    ("text", "hint"),
    [("path,kye\na.nii,1\n", "kye"), ("key\n1\n", "path"), ("path\na.nii\nb.nii\n", "line 3"), ("path\na.nii\na.nii\n", "line 3"),
     ("path,site\na.nii,x,y\n", "line 2"), ("path,acquired_at\na.nii,yesterday\n", "line 2"), ("", "path")],
)  # fmt: skip
def test_manifest_that_cannot_be_meant_says_where(lake, tmp_path, text, hint):
    nifti(tmp_path / "a.nii")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(SpecError, match=hint):
        ingest(lake, "d", [tmp_path / "a.nii"], IngestOptions(manifest=tmp_path / "m.csv"))
    assert lake.datasets() == []


@pytest.mark.parametrize(
    "options", [{"format": "dicm"}, {"alphabet": "rna"}, {"workers": 0}, {"deadline_s": -1}, {"max_item_bytes": 0}]
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(SpecError):
        IngestOptions(**options)


def test_nothing_to_ingest_is_an_error_of_the_user(lake, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError):
        ingest(lake, "d", [tmp_path / "empty"])
    with pytest.raises(LakeError):
        ingest(lake, "Not A Name", [tmp_path])


def test_progress_ends_at_the_number_of_files(lake, tmp_path):
    for seed in range(5):
        nifti(tmp_path / "src" / f"{seed}.nii", seed)
    seen = []
    ingest(lake, "d", [tmp_path / "src"], progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5)


# Whatever dies


@pytest.mark.parametrize("point", ["stored", "integrity", "items", "quarantine"])
def test_ingest_killed_anywhere_is_mended_by_the_next(lake, tmp_path, point):
    src = tmp_path / "src"
    nifti(src / "a.nii")
    (src / "p.fa").write_text(">a\nMKVW\n>b\nMKL\n")
    (src / "bad.edf").write_text("x")
    np.save(src / "s.npy", np.random.default_rng(0).integers(0, 9, (4, 20, 20)).astype(np.uint8))
    script = (
        "import sys; from diastole.lake.layout import Lake; from diastole.workers.ingest import ingest\n"
        "ingest(Lake.open(sys.argv[1]), 'd', [sys.argv[2]])"
    )
    arguments = [sys.executable, "-c", script, str(lake.store.local), str(src)]
    killed = subprocess.run(arguments, env={**os.environ, "DIASTOLE_CRASH": f"ingest-{point}"}, check=False)
    assert killed.returncode == -9
    report = ingest(lake, "d", [src])
    assert report.opened == 4
    assert len(rows(lake)) == 7
    assert {r["state"] for r in rows(lake).values()} == {"live"}
    paths = integrity.read(lake)["path"].to_pylist()
    assert len(paths) == len(set(paths))
    assert integrity.check(lake, deep=True) == []
    assert set(paths) == {
        p for part in ("arrays", "images", "sequences") for p, _ in lake.store.list(f"datasets/d/{part}")
    }
    for row in rows(lake).values():
        if row["dtype"] == "uint8" and row["sequence"] is None:
            expected = packs.raw_digests([row["content_digest"]])
            assert not packs.Pack.open(lake, row["array"]).read(row["row"], row["row"] + 1, expected)[1].any()
        elif row["sequence"] is None:
            arrays.read_whole(lake, row["array"], row["content_digest"])
        else:
            letters = sequences.read_rows(lake, row["array"], [row["row"]])[row["row"]]
            assert content_digest({"alphabet": "protein"}, letters) == row["content_digest"]
    assert ingest(lake, "d", [src]).opened == 0


def test_order_of_reading_does_not_change_the_lake(tmp_path, lake):
    for seed in range(6):
        nifti(tmp_path / "src" / f"{seed}.nii", seed, shape=(8, 8, 8 * (6 - seed)))
    nifti(tmp_path / "src" / "x" / "sub-1_T1w.nii", 7, shape=(60, 60, 60))
    nifti(tmp_path / "src" / "y" / "sub-1_T1w.nii", 8)
    for name, workers in (("one", 1), ("four", 4)):
        assert ingest(lake, name, [tmp_path / "src"], IngestOptions(workers=workers)).quarantined == {"id_conflict": 1}
    digests = [sorted(r["content_digest"] for r in rows(lake, name).values()) for name in ("one", "four")]
    assert digests[0] == digests[1]
