"""A refresh: what is new, changed, moved, copied or gone at the source, and where a dataset comes from."""

import shutil

import deltalake
import made
import pytest

from diastole.lake import delta, items, keys, quarantine
from diastole.lake.errors import SpecError
from diastole.workers.ingest import ingest, refresh
from diastole.workers.remembered import remember, remembered
from diastole.workers.sources import IngestOptions


@pytest.fixture
def source(tmp_path):
    """A folder with four FASTA files, in two folders."""
    for number, name in enumerate(("a/1", "a/2", "b/3", "b/4"), 1):
        fasta(tmp_path / "src" / f"{name}.fa", "MKVW" + "A" * number)
    return tmp_path / "src"


def fasta(path, letters):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f">1\n{letters}\n")


def did(report):
    return report.added, report.changed, report.unchanged, report.gone


def states(lake):
    return {row["nbytes"]: row["state"] for row in items.read_items(lake, "d").to_pylist()}


def test_only_what_is_new_changed_or_gone_is_done(lake, source):
    assert did(refresh(lake, "d", [source])) == (4, 0, 0, 0)
    fasta(source / "b" / "5.fa", "MKVWAAAAA")
    fasta(source / "a" / "1.fa", "MKVWAAAAAA")
    (source / "a" / "2.fa").unlink()
    report = refresh(lake, "d", [source])
    assert (did(report), report.opened, report.missing) == ((1, 1, 2, 1), 2, 1)
    assert states(lake) == {10: "live", 6: "gone", 7: "live", 8: "live", 9: "live"}
    report = refresh(lake, "d", [source])
    assert (did(report), report.opened, report.missing) == ((0, 0, 4, 0), 0, 0)


def test_what_is_gone_is_planned_no_more_and_its_prediction_stays(lake, tmp_path):
    proteins = made.proteins(4)
    made.add_proteins(lake, tmp_path / "src", proteins, dataset="p")
    made.residues(lake, name="r")
    assert made.run(lake, dataset="p", model="r").scored == 4
    [file] = (tmp_path / "src").iterdir()
    file.write_text("".join(f">p{n}\n{protein}\n" for n, protein in enumerate(proteins[:3])))
    report = refresh(lake, "p", [tmp_path / "src"], IngestOptions(public=True, alphabet="protein"))
    assert did(report) == (0, 0, 3, 1)
    assert made.run(lake, dataset="p", model="r").scored == 0
    made.assert_each_once(lake, 4, dataset="p")


def test_a_file_that_comes_back_is_live_again(lake, source):
    refresh(lake, "d", [source])
    kept = (source / "a" / "2.fa").rename(source.parent / "kept.fa")
    assert refresh(lake, "d", [source]).gone == 1
    kept.rename(source / "a" / "2.fa")
    assert did(refresh(lake, "d", [source])) == (0, 1, 3, 0)
    assert set(states(lake).values()) == {"live"}


def test_files_that_were_moved_or_copied_are_not_ingested_twice(lake, source):
    refresh(lake, "d", [source])
    before = items.read_items(lake, "d").sort_by("item_id")
    (source / "b").rename(source / "moved")
    shutil.copy(source / "a" / "1.fa", source / "copy.fa")
    report = refresh(lake, "d", [source])
    assert (did(report), report.copies, report.missing) == ((0, 0, 2, 0), 3, 2)
    assert items.read_items(lake, "d").sort_by("item_id") == before
    assert did(refresh(lake, "d", [source])) == (0, 0, 4, 0)
    (source / "a" / "1.fa").unlink()  # its copy still holds its item
    assert refresh(lake, "d", [source]).gone == 0
    (source / "copy.fa").unlink()
    assert refresh(lake, "d", [source]).gone == 1


def test_two_copies_in_one_ingest_are_one_item_whatever_the_number_of_readers(lake, source):
    for name in ("a/1", "b/3"):
        shutil.copy(source / f"{name}.fa", source / f"{name}-again.fa")
    report = ingest(lake, "d", [source], IngestOptions(workers=4))
    assert (did(report), report.copies) == ((4, 0, 0, 0), 2)
    (source / "a" / "1-again.fa").unlink()  # it was read first; its copy still holds its item
    assert did(refresh(lake, "d", [source])) == (0, 0, 4, 0)
    (source / "a" / "1.fa").unlink()
    assert did(refresh(lake, "d", [source])) == (0, 0, 3, 1)


def test_a_copy_of_what_cannot_be_taken_in_is_not_taken_in_either(lake, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{name}.fa").write_text(">r\nMKV\n>r\nMKW\n")
    report = ingest(lake, "d", [tmp_path / "src"])
    assert (did(report), report.quarantined) == ((1, 0, 0, 0), {"id_conflict": 2})


def test_each_file_is_an_item_where_that_is_said(lake, source):
    shutil.copy(source / "a" / "1.fa", source / "copy.fa")
    options = IngestOptions(each_file=True)
    assert did(ingest(lake, "d", [source], options)) == (5, 0, 0, 0)
    shutil.copy(source / "a" / "1.fa", source / "again.fa")
    report = refresh(lake, "d", [source], options)
    assert (did(report), report.copies) == ((1, 0, 5, 0), 0)


def test_files_of_two_subjects_that_hold_the_same_are_two_items(lake, tmp_path):
    for subject in ("01", "02"):
        fasta(tmp_path / "src" / f"sub-{subject}_seq.fa", "MKVW")
    manifest = tmp_path / "m.csv"
    assert ingest(lake, "d", [tmp_path / "src"]).added == 2
    fasta(tmp_path / "more" / "x.fa", "MKVW")
    fasta(tmp_path / "more" / "y.fa", "MKVW")
    manifest.write_text("path,key,subject\nx.fa,kx,s1\ny.fa,ky,s2\n")
    assert ingest(lake, "d", [tmp_path / "more"], IngestOptions(manifest=manifest)).added == 2


def test_a_file_that_took_the_place_of_another_is_its_item_and_the_other_moves(lake, source):
    refresh(lake, "d", [source])
    shutil.copy(source / "a" / "1.fa", source / "c.fa")
    fasta(source / "a" / "1.fa", "MKVWAAAAAAAAA")
    report = refresh(lake, "d", [source])
    assert (report.added, report.changed, report.quarantined) == (1, 1, {})
    assert set(states(lake).values()) == {"live"}
    assert sorted(states(lake)) == [5, 6, 7, 8, 13]


def test_a_folder_that_is_not_mounted_is_no_withdrawal(lake, tmp_path):
    for number in range(30):
        fasta(tmp_path / "src" / "mount" / f"{number}.fa", "MKVW" + "A" * number)
    fasta(tmp_path / "src" / "here.fa", "MK")
    refresh(lake, "d", [tmp_path / "src"])
    (tmp_path / "src" / "mount").rename(tmp_path / "elsewhere")
    (tmp_path / "src" / "mount").mkdir()
    with pytest.raises(SpecError, match="30 of 31 known files are not there any more; is everything mounted"):
        refresh(lake, "d", [tmp_path / "src"])
    assert set(states(lake).values()) == {"live"}
    assert refresh(lake, "d", [tmp_path / "src"], allow_gone=True).gone == 30


def test_nothing_is_gone_where_a_folder_cannot_be_listed(lake, source, monkeypatch):
    from diastole.workers.compare import Comparison

    refresh(lake, "d", [source])
    for path in source.rglob("*"):
        path.chmod(0o755)  # whatever the umask is
    (source / "a").chmod(0)
    take_all = Comparison.take_all

    def by_nobody(self, listing):
        with made.nobody():
            listed = list(listing)
        take_all(self, listed)

    for folder in (source, *source.parents):
        if folder.stat().st_uid == 0 and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    monkeypatch.setattr(Comparison, "take_all", by_nobody)
    report = refresh(lake, "d", [source])
    (source / "a").chmod(0o755)
    assert (report.gone, report.missing, report.quarantined) == (0, 0, {"unreadable": 1})
    assert set(states(lake).values()) == {"live"}


def test_what_lies_below_other_folders_is_not_looked_for(lake, source):
    ingest(lake, "d", [source / "a"])
    ingest(lake, "d", [source / "b"])
    shutil.rmtree(source / "a")
    (source / "a").mkdir()
    assert refresh(lake, "d", [source / "b"]).missing == 0
    with pytest.raises(SpecError, match="no file"):
        refresh(lake, "d", [source / "a"])
    assert refresh(lake, "d", [source]).missing == 0  # they were never found below it
    assert refresh(lake, "d", [source / "a"], allow_gone=True).gone == 2


def test_a_file_in_quarantine_that_is_deleted_leaves_it(lake, source):
    (source / "bad.fa").write_text(">1\nMK1\n")
    assert refresh(lake, "d", [source]).quarantined == {"unreadable": 1}
    (source / "bad.fa").unlink()
    refresh(lake, "d", [source])
    assert [row["state"] for row in quarantine.read(lake).to_pylist()] == ["mended"]


def test_a_table_of_sources_from_before_gets_its_new_columns(lake, source):
    ingest(lake, "d", [source])
    path = lake.dataset("d", "sources")
    old = items.read_sources(lake, "d").drop_columns(["root", "part_of"])
    deltalake.write_deltalake(lake.store.uri(path), old, mode="overwrite", schema_mode="overwrite")
    assert "root" not in [field.name for field in delta.open_table(lake, path).schema().fields]
    assert did(refresh(lake, "d", [source])) == (0, 0, 4, 0)
    (source / "a" / "1.fa").unlink()
    assert refresh(lake, "d", [source]).gone == 1


def test_where_a_dataset_comes_from_is_kept_beside_the_key_and_nowhere_in_the_lake(lake, source):
    options = IngestOptions(modality="protein", retry=True)
    remember(lake, "d", [source / "a", source / "b"], options)
    remember(lake, "d", [source / "b"], IngestOptions(alphabet="protein"))
    found = remembered(lake, "d", workers=3)
    assert [([str(source / "a")], "protein"), ([str(source / "b")], None)] == [(p, o.modality) for p, o in found]
    assert {(o.workers, o.retry) for _, o in found} == {(3, False)}
    [file] = keys.folder().glob("*.sources.json")
    assert file.stat().st_mode & 0o077 == 0
    remember(lake, "d", [source], options)  # instead of all that lies below it
    assert [paths for paths, _ in remembered(lake, "d", workers=3)] == [[str(source)]]
    remember(lake, "d", [source / "a", source / "b"], options)
    with pytest.raises(SpecError, match="not known on this machine"):
        remembered(lake, "e", workers=2)
    with pytest.raises(SpecError, match="1 of 2 paths were not ingested"):
        remembered(lake, "d", 2, [source / "a", source / "c"])


def test_a_nightly_refresh_is_one_command_with_what_the_first_ingest_said(lake, source):
    assert made.cli(lake, "ingest", "d", str(source), "--modality", "XX", "--public").returncode == 0
    fasta(source / "new.fa", "MKVWMKVW")
    (source / "a" / "1.fa").unlink()
    done = made.cli(lake, "refresh", "d")
    assert "1 added, 0 changed, 3 unchanged, 1 gone" in done.stdout
    assert {row["modality"] for row in items.read_items(lake, "d").to_pylist()} == {"XX"}
    refused = made.cli(lake, "refresh", "other")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
