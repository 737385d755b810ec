"""Consent withdrawn: gone from every copy, whatever dies in between, and never back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import edfio
import made
import numpy as np
import pyarrow.parquet as pq
import pytest

from diastole.cluster import cli
from diastole.cluster.driver import give_up, plan_job
from diastole.jobs import commit as commits
from diastole.jobs import runs
from diastole.jobs.compact import compact
from diastole.jobs.withdraw import withdraw, would_withdraw
from diastole.lake import integrity, leases, packs, predictions, sequences, suppressed
from diastole.lake.errors import BusyError
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest

ROOMS = ("datasets", "predictions", "current", "maps", "quarantine", "integrity")


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))


def add(lake, folder, kind="fasta", subjects=("01", "02", "03"), each=4, seed=0):
    """Some sequences, images and recordings of each subject; all sequences in one pack, all images in another."""
    rng, lines = np.random.default_rng(seed), ["path,subject,key"]
    (folder / kind).mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        name = f"{kind}/MRN{subject}.{kind}"
        if kind == "fasta":
            found = made.proteins(each, seed=int(subject) + 100 * seed)
            (folder / name).write_text("".join(f">x{n}\n{text}\n" for n, text in enumerate(found)))
        elif kind == "npy":
            np.save(folder / name, rng.integers(0, 250, (each, 20, 20)).astype(np.uint8))
        else:
            signal_of = rng.integers(-100, 100, 500).astype(float)
            edfio.Edf([edfio.EdfSignal(signal_of, 50, label="EEG a")]).write(folder / name)
        lines.append(f"{name},{subject},k{subject}")
    manifest = folder / f"{kind}.csv"
    manifest.write_text("\n".join(lines))
    modality = {"fasta": None, "npy": "XC", "edf": "EEG"}[kind]
    options = IngestOptions(alphabet="protein", manifest=manifest, modality=modality)
    return ingest(lake, {"fasta": "d", "npy": "i", "edf": "e"}[kind], [folder / kind], options)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Twelve proteins of three subjects, scored; images and recordings of theirs; and another version of the model."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        patch.setenv("DIASTOLE_ALLOW_CODE", "")
        patch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))
        lake = Lake.create(str(folder / "lake"))
        for kind in ("fasta", "npy", "edf"):
            add(lake, folder / "src", kind)
        made.residues(lake)
        made.run(lake)
        made.residues(lake, version="2", seed=3)
        yield folder, os.environ["DIASTOLE_ALLOW_CODE"]


@pytest.fixture
def cohort(template, tmp_path, monkeypatch):
    """A copy of it, from sources at paths of their own, with the key that it has."""
    folder, allowed = template
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", allowed)
    monkeypatch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
    shutil.copytree(folder / "lake", tmp_path / "lake")
    shutil.copytree(folder / "src", tmp_path / "src")
    return Lake.open(str(tmp_path / "lake"))


def items_of(lake, subject):
    wanted = lake.subject_id(subject)
    tables = [read_items(lake, dataset).to_pylist() for dataset in lake.datasets()]
    return {row["item_id"] for rows in tables for row in rows if row["subject_id"] == wanted}


def contents(lake):
    """Everything that can be read out of every file of a lake: bytes, and the values of Parquet files."""
    for room in ROOMS:
        for path in sorted((lake.store.local / room).rglob("*")):
            yield path.relative_to(lake.store.local).as_posix(), b""
            if path.is_file():
                data = path.read_bytes()
                yield path.as_posix(), data
                if path.suffix == ".parquet":
                    yield path.as_posix(), str(pq.ParquetFile(path).read().to_pylist()).encode()


def assert_nowhere(lake, words):
    """None of some words is in the name or the content of a file."""
    for path, data in contents(lake):
        for word in words:
            assert word not in path, path
            assert word.encode() not in data, path


def letters(lake):
    """All sequences that lie in packs, referred to or not."""
    files = (lake.store.local / "datasets/d/sequences").glob("*.parquet")
    return {bytes(text) for path in files for text in pq.ParquetFile(path).read()["sequence"].to_pylist()}


def assert_all_others(lake, gone, before):
    """Items of others are what they were, and can be read; each has its row."""
    for dataset in ("d", "i", "e"):
        rows = read_items(lake, dataset).to_pylist()
        same = {row["item_id"]: row["content_digest"] for row in rows}
        assert same == {item: digest for item, digest in before[dataset].items() if item not in gone}
        for row in rows:
            if dataset == "d":
                sequences.verified(
                    row["content_digest"], sequences.read_rows(lake, row["array"], [row["row"]])[row["row"]]
                )
            elif dataset == "i":
                pack = packs.Pack.open(lake, row["array"])
                _, bad = pack.read(row["row"], row["row"] + 1, packs.raw_digests([row["content_digest"]]))
                assert not bad.any()
            else:
                assert lake.store.size(f"{row['array']}/zarr.json")
    assert integrity.check(lake, deep=True) == []


def digests(lake):
    return {
        dataset: {row["item_id"]: row["content_digest"] for row in read_items(lake, dataset).to_pylist()}
        for dataset in ("d", "i", "e")
    }


def shown(lake):
    return {row["item_id"] for row in predictions.read_current(lake, "o").to_table().to_pylist()}


def test_nothing_of_a_withdrawn_subject_is_left_and_the_others_stay_as_they_were(cohort, tmp_path):
    gone, before = items_of(cohort, "01"), digests(cohort)
    rows = (
        read_items(cohort, "e").to_pylist() + read_items(cohort, "i").to_pylist() + read_items(cohort, "d").to_pylist()
    )
    theirs = [row for row in rows if row["item_id"] in gone]
    text = made.proteins(4, seed=1)[0].encode()
    assert text in letters(cohort)
    assert len(gone) == 4 + 4 + 1
    would = would_withdraw(cohort, [cohort.subject_id("01")])
    assert items_of(cohort, "01") == gone
    done = withdraw(cohort, [cohort.subject_id("01")], give_up)
    assert done.items == would.items == {"d": 4, "e": 1, "i": 4}
    assert done.rows == would.rows
    assert (done.packs, would.packs, done.arrays, done.unknown) == (2, 2, 3, 0)
    assert_nowhere(cohort, {*gone, cohort.subject_id("01"), *(row["content_digest"] for row in theirs)})
    assert text not in letters(cohort)
    assert_all_others(cohort, gone, before)
    made.assert_each_once(cohort, 8)
    assert shown(cohort) == set(before["d"]) - gone
    assert made.run(cohort, model="m@1").run_id is None  # nobody's result has become stale
    again = withdraw(cohort, [cohort.subject_id("01")], give_up)
    assert (again.items, again.rows, again.packs, again.arrays, again.unknown) == ({}, {}, 0, 0, 0)
    made.assert_each_once(cohort, 8)


def test_an_older_content_that_only_a_pack_remembers_goes_too(cohort, tmp_path):
    old = made.proteins(4, seed=1)[0].encode()
    add(cohort, tmp_path / "src", seed=1)  # every protein changes
    made.run(cohort, model="m@1")
    assert old in letters(cohort)
    withdraw(cohort, [cohort.subject_id("01")], give_up)
    assert not {made.proteins(4, seed=s)[n].encode() for s in (1, 101) for n in range(4)} & letters(cohort)
    assert len(letters(cohort)) == 8
    assert {row["item_id"] for row in made.table(cohort)} == set(digests(cohort)["d"])


def test_after_a_compaction_a_withdrawal_leaves_no_word_of_files_that_are_gone(cohort, tmp_path):
    add(cohort, tmp_path / "src", subjects=("01", "02", "03", "04"))
    made.run(cohort, model="m@1")
    assert any(done.table.startswith("current/") for done in compact(cohort))
    add(cohort, tmp_path / "src", subjects=("01", "02", "03", "04", "05"))
    made.run(cohort, model="m@1")
    compact(cohort)
    gone = items_of(cohort, "04")
    withdraw(cohort, [cohort.subject_id("04")], give_up)
    assert integrity.check(cohort, deep=True) == []
    assert_nowhere(cohort, gone)


def test_a_damaged_pack_goes_with_what_is_withdrawn_and_the_others_in_it_are_healed_from_their_sources(
    cohort, tmp_path
):
    before, gone = digests(cohort), items_of(cohort, "01")
    [pack] = (cohort.store.local / "datasets/d/sequences").glob("*.parquet")
    data = bytearray(pack.read_bytes())
    letters = pq.ParquetFile(pack).metadata.row_group(0).column(1)
    data[letters.data_page_offset + letters.total_compressed_size - 5] ^= 1  # in the one page that holds all of them
    pack.write_bytes(data)
    assert withdraw(cohort, [cohort.subject_id("01")], give_up).damaged == 8
    assert not pack.exists()
    manifest = IngestOptions(alphabet="protein", manifest=tmp_path / "src" / "fasta.csv", verify=True)
    assert ingest(cohort, "d", [tmp_path / "src" / "fasta"], manifest).healed == 8
    assert_all_others(cohort, gone, before)


def test_what_was_withdrawn_does_not_come_back_by_any_name(cohort, tmp_path):
    add(cohort, tmp_path / "src")  # the same, at another path
    withdraw(cohort, [cohort.subject_id("01")], give_up)
    for kind in ("fasta", "npy", "edf"):
        report = add(cohort, tmp_path / "src", kind)
        assert (report.withdrawn, report.added, report.quarantined) == (1, 0, {})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (tmp_path / "src").rglob("MRN01.*"):
        (elsewhere / f"other.{path.suffix[1:]}").write_bytes(path.read_bytes())
    report = ingest(cohort, "d", [elsewhere], IngestOptions(alphabet="protein"))
    assert (report.withdrawn, report.added, report.quarantined) == (3, 0, {})
    path = tmp_path / "src" / "fasta" / "MRN01.fasta"
    path.write_text(path.read_text() + ">y\nACDEFGHIKL\n")  # other bytes at a known path, and no manifest
    report = ingest(cohort, "d", [path], IngestOptions(alphabet="protein"))
    assert (report.withdrawn, report.added) == (1, 0)
    lines = f"path,subject,derived_from\n{elsewhere / 'z.fasta'},09,{min(suppressed.read(cohort).items)}"
    (elsewhere / "z.fasta").write_text(">z\nACDEFGHIKLMN\n")
    (tmp_path / "z.csv").write_text(lines)
    options = IngestOptions(alphabet="protein", manifest=tmp_path / "z.csv")
    assert ingest(cohort, "d", [elsewhere / "z.fasta"], options).withdrawn == 1
    assert b"ACDEFGHIKL" not in letters(cohort)
    assert items_of(cohort, "01") == set()
    assert would_withdraw(cohort, [cohort.subject_id("01")]).items == {}


def test_the_same_content_of_another_subject_stays_and_may_come_again(cohort, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    for subject in ("04", "05"):
        (twin / f"{subject}.fasta").write_text(">x\nACDEFGHIKLMNPQ\n")
        (tmp_path / f"{subject}.csv").write_text(f"path,subject,key\n{twin}/{subject}.fasta,{subject},k{subject}")
        options = IngestOptions(alphabet="protein", manifest=tmp_path / f"{subject}.csv")
        assert ingest(cohort, "d", [twin / f"{subject}.fasta"], options).added == 1
    withdraw(cohort, [cohort.subject_id("04")], give_up)
    assert len(items_of(cohort, "05")) == 1
    assert b"ACDEFGHIKLMNPQ" in letters(cohort)  # it is 05's as well
    assert ingest(cohort, "d", [twin / "05.fasta"], options).withdrawn == 0
    assert made.run(cohort, model="m@1").scored == 1


def test_items_that_are_derived_from_withdrawn_ones_go_with_them(cohort, tmp_path):
    parent = min(items_of(cohort, "01") & set(digests(cohort)["d"]))
    (tmp_path / "mask.fasta").write_text(">m\nACDEFGHIK\n")
    (tmp_path / "m.csv").write_text(f"path,derived_from\nmask.fasta,{parent}")
    options = IngestOptions(alphabet="protein", manifest=tmp_path / "m.csv")
    assert ingest(cohort, "d", [tmp_path / "mask.fasta"], options).added == 1
    assert withdraw(cohort, [cohort.subject_id("01")], give_up).items["d"] == 5
    assert b"ACDEFGHIK" not in letters(cohort)
    assert ingest(cohort, "d", [tmp_path / "mask.fasta"], options).withdrawn == 1


@pytest.mark.fault(49)
def test_a_unit_of_which_any_input_is_withdrawn_is_neither_planned_nor_published(cohort):
    plan, _, _ = plan_job(cohort, made.job(model="m@2"), made.driver.Choice())
    other = plan.units["item_id"][0].as_py()
    suppressed.suppress(cohort, "0" * 32, suppressed.Suppressed(items=frozenset([other])))
    assert commits._withdrawn_since(cohort, plan) == {other}
    later, _, _ = plan_job(cohort, made.job(model="m@2"), made.driver.Choice())
    assert later.skipped["withdrawn"] == 1
    assert other not in later.units["item_id"].to_pylist()
    second = plan.units.slice(3).to_pylist()  # the same where the plan is in pieces, and the input is a second one
    second[2]["inputs"].append({**second[2]["inputs"][0], "role": "second", "item_id": "f" * 32})
    suppressed.suppress(cohort, "1" * 32, suppressed.Suppressed(items=frozenset(["f" * 32])))
    import pyarrow as pa

    units = pa.concat_tables([plan.units.slice(0, 3), pa.Table.from_pylist(second, plan.units.schema)])
    from dataclasses import replace

    assert commits._withdrawn_since(cohort, replace(plan, units=units)) == {other, units["item_id"][5].as_py()}


SLOW = pytest.mark.slow
RUN_POINTS = [
    pytest.param("after-plan", marks=SLOW),
    pytest.param("mid-shard", marks=SLOW),
    "after-part",
    pytest.param("before-wave", marks=SLOW),
    pytest.param("after-merge", marks=SLOW),
    pytest.param("before-commit", marks=SLOW),
    "after-commit",
    pytest.param("before-current", marks=SLOW),
    pytest.param("before-record", marks=SLOW),
]


@pytest.mark.fault(31, 49)
@pytest.mark.parametrize("point", RUN_POINTS)
def test_a_run_that_was_killed_anywhere_ends_right_after_a_withdrawal(cohort, tmp_path, point):
    file = made.job_file(tmp_path, model="m@2")
    made.cli(cohort, "run", file, DIASTOLE_CRASH=f"{point}:{tmp_path / 'flag'}")
    assert (tmp_path / "flag").exists()
    gone, before = items_of(cohort, "02"), digests(cohort)
    done = withdraw(cohort, [cohort.subject_id("02")], give_up)
    assert len(done.runs) == 1
    assert_nowhere(cohort, gone)
    made.run(cohort, model="m@2")
    assert [r for r in runs.list_runs(cohort) if runs.read_record(cohort, r) is None] == []
    assert_nowhere(cohort, gone)
    assert_all_others(cohort, gone, before)
    made.assert_each_once(cohort, 16)  # of two models
    assert made.run(cohort, model="m@2").run_id is None


POINTS = [
    "suppressed",
    *(pytest.param(point, marks=SLOW) for point in ("found", "runs", "checkpoint", "rows", "outputs", "datasets")),
    "rewritten",
    pytest.param("packed", marks=SLOW),
    "items",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_withdrawal_that_was_killed_anywhere_goes_on(cohort, tmp_path, point):
    gone, before = items_of(cohort, "01"), digests(cohort)
    command = ("withdraw", "sub-01", "--json")
    killed = made.cli(cohort, *command, DIASTOLE_CRASH=f"withdraw-{point}:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    plan, _, _ = plan_job(cohort, made.job(model="m@1", options={"activation": "none"}), made.driver.Choice())
    assert not gone & set(plan.units["item_id"].to_pylist())  # from the first moment on
    done = made.cli(cohort, *command)
    assert (done.returncode, json.loads(done.stdout)["unknown"]) == (0, 0), done.stderr
    assert_nowhere(cohort, {*gone, cohort.subject_id("01")})
    assert_all_others(cohort, gone, before)
    made.assert_each_once(cohort, 8)


@pytest.mark.fault(31)
@pytest.mark.parametrize("point", ["mid-shard", pytest.param("before-commit", marks=SLOW)])
def test_a_withdrawal_beside_a_run_is_refused_but_the_run_publishes_nothing_of_it(cohort, tmp_path, point):
    line, env = made.command(
        cohort, "run", made.job_file(tmp_path, model="m@2"), DIASTOLE_CRASH=f"pause@{point}:{tmp_path / 'flag'}"
    )
    running = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: stopped(running.pid))
        gone = items_of(cohort, "01")
        refused = made.cli(cohort, "withdraw", "01")
        assert refused.returncode == 2
        assert "suppressed from now on" in refused.stderr
        assert "must wait for job j, process" in refused.stderr
        waiting_line, env = made.command(cohort, "withdraw", "01", "--wait", "60")
        waiting = subprocess.Popen(waiting_line, env=env, stdout=subprocess.DEVNULL)
        running.send_signal(signal.SIGCONT)
        assert running.wait(60) == 0
        if point == "mid-shard":
            newest = [row["item_id"] for row in made.table(cohort) if row["model_version"] == "2"]
            assert not gone & set(newest)
        assert waiting.wait(60) == 0
    finally:
        running.kill()
        running.wait()
    assert_nowhere(cohort, gone)
    made.assert_each_once(cohort, 16)


@pytest.mark.fault(31, 49)
def test_a_run_that_sleeps_past_its_lease_at_its_commit_cannot_bring_it_back(cohort, tmp_path):
    line, env = made.command(
        cohort,
        "run",
        made.job_file(tmp_path, model="m@2", output="p"),
        DIASTOLE_CRASH=f"pause@before-commit:{tmp_path / 'flag'}",
        DIASTOLE_LEASE_SECONDS="1",
    )
    running = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: stopped(running.pid))
        time.sleep(1.2)
        gone = items_of(cohort, "01")
        withdraw(cohort, [cohort.subject_id("01")], give_up)
        running.send_signal(signal.SIGCONT)
        running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert not gone & {row["item_id"] for row in made.table(cohort, output="p")}
    made.run(cohort, model="m@2", output="p")
    assert_nowhere(cohort, gone)
    made.assert_each_once(cohort, 8, output="p")


def stopped(pid):
    with Path(f"/proc/{pid}/stat").open() as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that point"
        time.sleep(0.02)


def test_an_ingest_that_sleeps_past_its_lease_does_not_bring_it_back(cohort, tmp_path, monkeypatch):
    from diastole.workers import publish

    settle, asked = publish.Ledger.settle, []

    def late(self, *, last=False):
        if not asked:
            asked.append(suppressed.suppress(cohort, cohort.subject_id("09"), suppressed.Suppressed()))
        settle(self, last=last)

    monkeypatch.setattr(publish.Ledger, "settle", late)
    report = add(cohort, tmp_path / "late", subjects=("08", "09"))
    assert (report.added, report.withdrawn) == (4, 1)
    assert items_of(cohort, "09") == set()


def test_names_of_subjects_are_in_nothing_that_is_printed_or_kept(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIASTOLE_LAKE", cohort.store.root)

    def say(*arguments):
        monkeypatch.setattr(sys, "argv", ["diastole", "withdraw", *arguments])
        code = cli.answer()
        out, err = capsys.readouterr()
        assert "SMITH" not in out + err
        return code, out, err

    (tmp_path / "list.txt").write_text("sub-01\n\nSMITH^JOHN\n")
    _, dry, _ = say("--file", str(tmp_path / "list.txt"), "--dry-run", "--json")
    assert json.loads(dry)["items"] == {"d": 4, "e": 1, "i": 4}
    assert len(digests(cohort)["d"]) == 12
    assert not list(cohort.store.names("suppressed"))
    code, out, err = say("--file", str(tmp_path / "list.txt"))
    assert (code, "1 of them have no item" in out) == (0, True), err
    code, _, err = say("--id", "SMITH^JOHN")
    assert (code, "subject_id" in err) == (2, True)
    assert json.loads(say("--id", cohort.subject_id("02"), "--json")[1])["items"] == {"d": 4, "e": 1, "i": 4}
    assert say()[0] == 2
    for path in cohort.store.local.rglob("*"):
        assert "SMITH" not in path.name
        assert not path.is_file() or b"SMITH" not in path.read_bytes()


def test_a_withdrawal_is_refused_where_the_lake_is_held_alone(cohort):
    with leases.exclusive(cohort, "sweep"), pytest.raises(BusyError, match=r"suppressed from now on.*held alone"):
        withdraw(cohort, [cohort.subject_id("01")], give_up)
    assert suppressed.subjects(cohort) == {cohort.subject_id("01")}
