"""Which files an ingest finds: also where folders cannot be read, links lead to themselves, and archives move."""

import shutil
import tempfile
from pathlib import Path

import made
import pytest

from diastole.lake import items, quarantine
from diastole.lake.errors import SpecError
from diastole.workers.compare import Comparison
from diastole.workers.ingest import ingest
from diastole.workers.listing import Listing


@pytest.fixture
def archive():
    """A folder that any user may reach, with a FASTA file in each of three folders."""
    top = Path(tempfile.mkdtemp())
    for number, name in enumerate("abc"):
        fasta(top / "src" / name / f"{name}.fa", "MKVW" + "A" * number)
    for path in [top, *top.rglob("*")]:
        path.chmod(0o755)  # whatever the umask is
    yield top / "src"
    for folder in (path for path in [top, *top.rglob("*")] if path.is_dir()):
        folder.chmod(0o755)
    shutil.rmtree(top)


def fasta(path, letters):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f">1\n{letters}\n")


def listed_by_nobody(comparison, listing, take_all=Comparison.take_all):
    with made.nobody():
        listed = list(listing)
    take_all(comparison, listed)


def opened(lake):
    return {r["source_key"]: r["error"] for r in quarantine.read(lake).to_pylist() if r["state"] == "open"}


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_closed_folder_is_quarantined_until_it_is_opened_and_the_rest_goes_on(lake, archive, monkeypatch, mode):
    (archive / "b").chmod(mode)
    monkeypatch.setattr(Comparison, "take_all", listed_by_nobody)
    report = ingest(lake, "d", [archive])
    assert (report.added, report.quarantined) == (2, {"unreadable": 1})
    [why] = opened(lake).values()
    assert "Permission denied" in why
    assert str(archive) not in why
    assert ingest(lake, "d", [archive]).still_quarantined == 1
    (archive / "b").chmod(0o755)
    report = ingest(lake, "d", [archive])
    assert (report.added, report.unchanged, opened(lake)) == (1, 2, {})


def test_a_path_below_a_closed_folder_is_told_without_its_name(archive):
    (archive / "b").chmod(0)
    with (
        made.nobody(),
        pytest.raises(SpecError, match=r"path 2 of 2 cannot be looked at \(Permission denied\)") as caught,
    ):
        Listing.of([archive / "a", archive / "b" / "b.fa"])
    assert str(archive) not in str(caught.value)


def test_a_link_to_itself_is_quarantined(lake, archive):
    (archive / "loop").symlink_to(archive / "loop")
    report = ingest(lake, "d", [archive])
    assert (report.added, report.quarantined) == (3, {"unreadable": 1})


def states(lake):
    return sorted((r["state"], r["nbytes"]) for r in items.read_items(lake, "d").to_pylist())


def test_an_archive_that_was_moved_goes_on_as_before(lake, archive):
    ingest(lake, "d", [archive])
    moved = archive.rename(archive.parent / "moved")
    assert ingest(lake, "d", [moved]).copies == 3
    fasta(moved / "a" / "a.fa", "MKVWMKVW")
    report = ingest(lake, "d", [moved])
    assert (report.changed, report.quarantined) == (1, {})
    assert states(lake) == [("live", 5), ("live", 6), ("live", 8)]
    back = moved.rename(archive)  # and back, where the old sources are known
    fasta(back / "b" / "b.fa", "MKVWMKVWM")
    report = ingest(lake, "d", [back])
    assert (report.changed, report.quarantined) == (1, {})
    assert states(lake) == [("live", 6), ("live", 8), ("live", 9)]


def test_a_source_that_is_still_there_keeps_its_item(lake, archive):
    for name in "xy":
        fasta(archive / name / "sub-01_T1w.fa", "MKVW")
    options = {"x": [archive / "x"], "y": [archive / "y"]}
    ingest(lake, "d", [*options["x"], *options["y"]])
    fasta(archive / "y" / "sub-01_T1w.fa", "MKVWM")
    assert ingest(lake, "d", [*options["x"], *options["y"]]).quarantined == {"id_conflict": 1}
    assert states(lake) == [("live", 4)]


def test_a_file_in_two_datasets_has_a_record_in_each(lake, tmp_path):
    bad = tmp_path / "bad.fa"
    bad.write_text(">a\nMK1\n")
    for dataset in ("d", "e"):
        ingest(lake, dataset, [bad])
    assert [r["dataset"] for r in quarantine.read(lake).sort_by("dataset").to_pylist()] == ["d", "e"]
    bad.write_text(">a\nMKV\n")
    ingest(lake, "d", [bad])
    records = {r["dataset"]: r["state"] for r in quarantine.read(lake).to_pylist()}
    assert records == {"d": "mended", "e": "open"}
