"""Consent withdrawn by one of the many samples of a VCF: its column goes everywhere, and the others come back."""

import gzip
import json
import shutil
import signal
from dataclasses import replace

import cyvcf2
import debian
import made
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from written import hits

from diastole.cluster.driver import give_up, plan_job
from diastole.jobs import commit as commits
from diastole.jobs.withdraw import withdraw, would_withdraw
from diastole.lake import integrity, suppressed, variants
from diastole.lake.items import read_items, read_sources
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest, refresh

WHO = "HG00114"
ROWS = 350
"""Variants by which a sample is told from all others here."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A real VCF of 629 people, twice (by two names, in two datasets), and one in which they are not."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        lake = Lake.create(str(folder / "lake"))
        for dataset, name in (("v", "1kg.vcf.gz"), ("v", "uncalled_genotypes.vcf"), ("w", "1kg.vcf.gz")):
            (folder / "src" / dataset).mkdir(parents=True, exist_ok=True)
            shutil.copy(debian.file(name), folder / "src" / dataset / name)
        for dataset in ("v", "w"):
            ingest(lake, dataset, [folder / "src" / dataset])
        yield folder


@pytest.fixture
def cohort(template, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_KEYS", str(template / "keys"))
    shutil.copytree(template / "lake", tmp_path / "lake")
    shutil.copytree(template / "src", tmp_path / "src")
    return Lake.open(str(tmp_path / "lake"))


def rows(lake, dataset="v"):
    return {row["shape"][0]: row for row in read_items(lake, dataset).to_pylist()}


def columns(lake):
    """Genotypes of every sample of every group that lies in the lake, referred to or not: (its id, as bytes)."""
    for path in sorted((lake.store.local / "datasets").glob("*/arrays/*.vcz")):
        place = path.relative_to(lake.store.local).as_posix()
        group = {name: variants._read(lake, place, name)[1] for name in ("sample_id", "call_genotype")}
        for at, sample in enumerate(group["sample_id"]):
            yield str(sample), group["call_genotype"][:ROWS, at].tobytes()


def genotypes(path, without=()):
    """(variants, samples, ploidy) as cyvcf2 reads them."""
    vcf = cyvcf2.VCF(str(path))
    keep = [at for at, name in enumerate(vcf.samples) if name not in without]
    return np.array([[one[:-1] for one in record.genotypes] for record in vcf], np.int8)[:, keep]


def assert_gone(lake, theirs):
    assert hits(lake.store.local / "datasets", [lake.subject_id(WHO)]) == set()
    for room in ("predictions", "current", "maps", "quarantine", "integrity"):
        assert hits(lake.store.local / room, [lake.subject_id(WHO)]) == set()
    assert theirs not in {column for _, column in columns(lake)}
    assert integrity.check(lake, deep=True) == []


def assert_back(lake, folder, count=381, without=(WHO,)):
    """The others have what cyvcf2 reads of them."""
    row = rows(lake)[count]
    read = variants.read_variants(lake, row["array"], row["content_digest"])
    samples = [name for name in cyvcf2.VCF(str(folder / "1kg.vcf.gz")).samples if name not in without]
    assert read["sample_id"].tolist() == [lake.subject_id(name) for name in samples]
    assert row["shape"] == [count, len(samples)] == [381, 629 - len(without)]
    assert json.loads(row["attributes"])["samples"] == len(samples)
    assert np.array_equal(read["call_genotype"], genotypes(folder / "1kg.vcf.gz", without))


def test_a_withdrawn_sample_is_nowhere_and_the_others_come_back_when_the_file_is_ingested_again(cohort, tmp_path):
    before, other = rows(cohort)[381], rows(cohort)[4]
    theirs = dict(columns(cohort))[cohort.subject_id(WHO)]
    assert list(dict(columns(cohort)).values()).count(theirs) == 1
    assert len(hits(cohort.store.local / "datasets", [cohort.subject_id(WHO)])) == 2  # the search sees into arrays
    would = would_withdraw(cohort, [cohort.subject_id(WHO)])
    assert rows(cohort)[381] == before
    done = withdraw(cohort, [cohort.subject_id(WHO)], give_up)
    assert done.items == would.items == {"v": 1, "w": 1}
    assert (done.shared, would.shared, done.unknown, done.arrays) == (2, 2, 0, 2)
    assert_gone(cohort, theirs)
    assert rows(cohort) == {4: other}
    assert read_sources(cohort, "v").num_rows == 1
    known = suppressed.read(cohort)
    assert (known.items, known.sources, known.contents, known.pending) == (frozenset(),) * 4
    for take_in in (ingest, refresh):
        report = take_in(cohort, "v", [tmp_path / "src" / "v"])
        assert (report.added, report.withdrawn, report.quarantined) == (int(take_in is ingest), 0, {})
    assert_gone(cohort, theirs)
    assert_back(cohort, tmp_path / "src" / "v")
    assert rows(cohort)[381]["item_id"] == before["item_id"]
    assert rows(cohort)[381]["content_digest"] != before["content_digest"]
    again = withdraw(cohort, [cohort.subject_id(WHO)], give_up)
    assert (again.items, again.shared, again.arrays, again.unknown) == ({}, 0, 0, 0)
    assert_back(cohort, tmp_path / "src" / "v")


def test_the_command_says_that_the_files_are_to_be_ingested_again(cohort, tmp_path):
    for asked in ("--dry-run", "--wait=1"):
        said = made.cli(cohort, "withdraw", WHO, asked)
        assert said.returncode == 0
        assert "2 of these items have samples of others too; ingest their files again" in said.stdout
        assert WHO not in said.stdout + said.stderr
    assert json.loads(made.cli(cohort, "withdraw", WHO, "--json").stdout)["shared"] == 0


def test_one_after_the_other_leaves_the_rest_and_the_last_takes_the_file_with_them(cohort, tmp_path):
    folder = tmp_path / "src" / "v"
    for number, name in enumerate((WHO, "HG00112")):
        assert withdraw(cohort, [cohort.subject_id(name)], give_up).shared == 2 - number
        ingest(cohort, "v", [folder])
    assert_back(cohort, folder, without=(WHO, "HG00112"))
    names = cyvcf2.VCF(str(folder / "uncalled_genotypes.vcf")).samples
    assert withdraw(cohort, [cohort.subject_id(name) for name in names], give_up).items == {"v": 1}
    report = ingest(cohort, "v", [folder])
    assert (report.added, report.withdrawn, report.quarantined) == (0, 1, {})
    assert len(rows(cohort)) == 1


def test_a_sample_that_is_also_the_subject_of_other_items_is_withdrawn_from_both(cohort, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / f"sub-{WHO}_x.fasta").write_text(">x\nACDEFGHIKLMNPQ\n")
    assert ingest(cohort, "v", [tmp_path / "own"], IngestOptions(alphabet="protein")).added == 1
    done = withdraw(cohort, [cohort.subject_id(WHO)], give_up)
    assert (done.items, done.shared) == ({"v": 2, "w": 1}, 2)
    assert len(suppressed.read(cohort).items) == 1
    report = ingest(cohort, "v", [tmp_path / "own", tmp_path / "src" / "v"], IngestOptions(alphabet="protein"))
    assert (report.added, report.withdrawn) == (1, 1)


def test_a_group_that_cannot_be_read_may_hold_anybody_and_comes_back_from_its_file(cohort, tmp_path):
    row = rows(cohort)[4]
    shutil.rmtree(cohort.store.local / row["array"] / "sample_id")
    assert withdraw(cohort, [cohort.subject_id("nobody")], give_up).shared == 1
    assert rows(cohort).keys() == {381}
    assert ingest(cohort, "v", [tmp_path / "src" / "v"]).added == 1
    assert rows(cohort)[4]["array"] == row["array"]
    assert suppressed.read(cohort).arrays == frozenset()
    assert integrity.check(cohort, deep=True) == []


SLOW = pytest.mark.slow
KILLS = [
    ("items", False),
    ("suppressed", True),
    *(pytest.param(point, False, marks=SLOW) for point in ("suppressed", "found", "rewritten", "end")),
    *(pytest.param(point, True, marks=SLOW) for point in ("found", "rewritten", "items", "end")),
]


@pytest.mark.parametrize(("point", "between"), KILLS)
def test_a_withdrawal_of_a_sample_that_was_killed_anywhere_goes_on(cohort, tmp_path, point, between):
    theirs = dict(columns(cohort))[cohort.subject_id(WHO)]
    killed = made.cli(cohort, "withdraw", WHO, DIASTOLE_CRASH=f"withdraw-{point}:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if between:  # the file is there without the sample, before the withdrawal has ended
        path = tmp_path / "src" / "v" / "1kg.vcf.gz"
        lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        path.write_bytes(gzip.compress("".join(lines[:-1]).encode()))
        ingest(cohort, "v", [path.parent])
        path.write_bytes(gzip.compress("".join(lines).encode()))
    assert withdraw(cohort, [cohort.subject_id(WHO)], give_up).unknown == 0
    assert_gone(cohort, theirs)
    ingest(cohort, "v", [tmp_path / "src" / "v"])
    assert_gone(cohort, theirs)
    assert_back(cohort, tmp_path / "src" / "v")


def test_an_ingest_that_sleeps_past_its_lease_does_not_bring_a_sample_back(cohort, tmp_path, monkeypatch):
    from diastole.workers import publish

    settle, asked = publish.Ledger.settle, []

    def late(self, *, last=False):
        if not asked:
            asked.append(suppressed.suppress(cohort, cohort.subject_id(WHO), suppressed.Suppressed()))
        settle(self, last=last)

    monkeypatch.setattr(publish.Ledger, "settle", late)
    report = ingest(cohort, "x", [tmp_path / "src" / "v"])
    assert (report.added, report.withdrawn) == (1, 1)
    assert ingest(cohort, "x", [tmp_path / "src" / "v"]).added == 1
    assert rows(cohort, "x")[381]["shape"] == [381, 628]


@pytest.mark.fault(49)
def test_a_unit_that_reads_such_a_group_is_neither_planned_nor_published_but_its_item_is_when_it_came_back(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    lake = Lake.create(str(tmp_path / "lake"))
    made.add_proteins(lake, tmp_path / "src", made.proteins(4))
    made.residues(lake)
    plan, _, _ = plan_job(lake, made.job(), made.driver.Choice())
    units = plan.units.slice(0, 3).to_pylist()
    units[1]["inputs"].append({**units[1]["inputs"][0], "role": "second", "array": "datasets/v/arrays/0.vcz"})
    held = replace(plan, units=pa.Table.from_pylist(units, plan.units.schema))
    suppressed.suppress(lake, "0" * 32, suppressed.Suppressed(arrays=frozenset(["datasets/v/arrays/0.vcz"])))
    assert commits._withdrawn_since(lake, held) == {units[1]["item_id"]}
    assert plan_job(lake, made.job(), made.driver.Choice())[0].skipped.get("withdrawn", 0) == 0
    array = pc.unique(pc.list_flatten(plan.units["inputs"].combine_chunks()).field("array")).to_pylist()
    suppressed.suppress(lake, "1" * 32, suppressed.Suppressed(arrays=frozenset(array), pending=frozenset(["a" * 32])))
    assert plan_job(lake, made.job(), made.driver.Choice())[0].skipped["withdrawn"] == 4
