import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diastole.cluster import driver, local
from diastole.jobs import check, merge, parts, receipts, runs
from diastole.jobs import commit as commits
from diastole.jobs.ledger import Ledger
from diastole.lake import delta, integrity, predictions
from diastole.lake.errors import CommitError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))


class Scored:
    """A run whose shards all have receipts, not committed yet."""

    def __init__(self, lake, **fields):
        self.lake = lake
        self.plan, _, task = driver.plan_job(lake, made.job(**fields), driver.Choice())
        self.schema = predictions.table_schema(task.item_columns, task.row_columns)
        predictions.fix_output(lake, self.plan.output, task.name, ["H", "E", "C"], self.schema, {})
        runs.start(lake, self.plan)
        local.run_here(lake, self.plan, self.ledger(), 1, lambda receipt: None)

    def ledger(self):
        return Ledger(self.lake, self.plan, in_process=True)

    def commit(self):
        return commits.commit(self.lake, self.plan, self.ledger(), self.schema)

    def change(self, shard, **fields):
        """Forge a receipt."""
        receipt = receipts.read_one(self.lake, self.plan.run_id, shard)
        forged = dataclasses.replace(receipt, **fields)
        self.lake.store.put(f"runs/{self.plan.run_id}/receipts/{shard}.json", forged.to_bytes())

    def receipt(self, number=0):
        return receipts.read_one(self.lake, self.plan.run_id, f"{number:05d}")

    def part(self, number=0):
        return self.lake.store.path(f"predictions/o/{self.receipt(number).parts[0].path}")


@pytest.fixture
def cohort(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(40))
    made.residues(lake)
    return lake


def test_a_commit_publishes_once_however_often_it_is_called(cohort):
    scored = Scored(cohort)
    assert made.table(cohort) == []
    first, second = scored.commit(), scored.commit()
    assert (first.already, second.already) == (False, True)
    assert (first.rows, second.rows, first.version) == (40, 40, second.version)
    made.assert_each_once(cohort, 40)


RACER = """
import sys, time
from pathlib import Path
from diastole.jobs import commit, runs
from diastole.jobs.ledger import Ledger
from diastole.lake import predictions
from diastole.lake.layout import Lake
from diastole.workers.tasks import make_task
from diastole.lake.models import load

lake, run, flag = Lake.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
plan = runs.read_plan(lake, run)
task = make_task(load(lake, plan.model), plan.task, plan.options)
schema, ledger = predictions.table_schema(task.item_columns, task.row_columns), Ledger(lake, plan, in_process=True)
Path(sys.argv[4]).touch()
while not flag.exists():
    time.sleep(0.001)
print(commit.commit(lake, plan, ledger, schema).already)
"""


@pytest.mark.fault(12, 13)
def test_of_four_processes_that_commit_a_run_at_the_same_time_one_does_and_the_others_say_already(cohort, tmp_path):
    scored = Scored(cohort)
    line = [sys.executable, "-c", RACER, cohort.store.root, scored.plan.run_id, tmp_path / "go"]
    racers = [subprocess.Popen([*line, tmp_path / f"ready{n}"], stdout=subprocess.PIPE, text=True) for n in range(4)]
    wait_for(lambda: all((tmp_path / f"ready{n}").exists() for n in range(4)))
    (tmp_path / "go").touch()
    said = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert said == ["False", "True", "True", "True"]
    made.assert_each_once(cohort, 40)
    assert len([e for e in delta.open_table(cohort, "predictions/o").history() if e.get("run_id")]) == 1


def refused(scored, match):
    with pytest.raises(CommitError, match=match):
        scored.commit()
    assert made.table(scored.lake) == []


@pytest.mark.fault(28, 29)
def test_a_part_that_is_gone_or_cut_or_damaged_stops_the_commit_and_the_advice_mends_it(cohort):
    scored = Scored(cohort)
    part, whole = scored.part(), scored.part().read_bytes()
    part.unlink()
    refused(scored, "its file is gone")
    part.write_bytes(whole[:-1])
    refused(scored, f"of {len(whole) - 1} bytes")
    part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    refused(scored, "is damaged")
    part.write_bytes(whole)
    honest = scored.receipt().parts
    scored.change("00000", parts=(dataclasses.replace(honest[0], sha256="0" * 64),))
    refused(scored, "is damaged")
    scored.change("00000", parts=honest)
    part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    cohort.store.delete(f"runs/{scored.plan.run_id}/receipts/00000.json")
    assert made.run(cohort).scored == 40
    made.assert_each_once(cohort, 40)


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    "path",
    [
        "../../datasets/d/items/x.parquet",
        "level=item/key_group=ffffffff/x.parquet",
        "level=item/key_group={group}/other.parquet",
        "level=item/key_group={group}/{run}-00000-1/../x.parquet",
    ],
)
def test_a_receipt_that_names_what_is_not_its_own_file_is_refused(cohort, path):
    scored = Scored(cohort)
    path = path.format(group=scored.plan.key_group, run=scored.plan.run_id)
    scored.change("00000", parts=(dataclasses.replace(scored.receipt().parts[0], path=path),))
    refused(scored, "names a file outside of its table|gone")


@pytest.mark.fault(29)
def test_a_unit_twice_a_unit_short_and_a_false_count_are_refused(cohort):
    scored = Scored(cohort)
    honest = scored.receipt()
    scored.change("00000", parts=(honest.parts[0], honest.parts[0]))
    units = honest.parts[0].rows
    refused(scored, f"shard 00000: {units} units planned, {2 * units} item rows, {units} units not once")
    scored.change("00000", parts=())
    refused(scored, f"{units} units planned, 0 item rows")
    scored.change("00000", parts=(dataclasses.replace(honest.parts[0], rows=honest.parts[0].rows + 1),))
    refused(scored, "rows in a file")
    scored.change("00000", parts=honest.parts)
    assert scored.commit().rows == 40


@pytest.mark.fault(29)
def test_rows_may_come_in_any_order_and_each_must_be_of_a_unit_of_its_shard(cohort):
    scored = Scored(cohort)
    rows, stranger = (pq.ParquetFile(scored.part(number)).read() for number in (0, 1))
    first, last = rows.slice(0, 1), rows.slice(rows.num_rows - 1)
    place, other = rows.schema.get_field_index("input_digest"), pa.array(["0" * 32], pa.string())

    def forge(table, name):
        stem = f"level=item/key_group={scored.plan.key_group}/{scored.plan.run_id}-00000-{name}"
        scored.change("00000", parts=(parts.write_part(cohort, "predictions/o", stem, table, "item"),))

    forge(pa.concat_tables([rows.slice(1), stranger.slice(0, 1)]), "strange")
    refused(scored, "2 units not once")
    forge(pa.concat_tables([rows.slice(1), last]), "twice")
    refused(scored, "2 units not once")
    forge(pa.concat_tables([first.set_column(place, rows.schema.field(place), other), rows.slice(1)]), "changed")
    refused(scored, "2 units not once")
    forge(rows.take(pa.array(range(rows.num_rows))[::-1]), "turned")
    assert scored.commit().rows == 40
    made.assert_each_once(cohort, 40)


def test_where_storage_is_far_shards_are_held_to_the_plan_in_threads(cohort, monkeypatch):
    monkeypatch.setattr(check, "_is_far", lambda lake: True)
    scored = Scored(cohort)
    honest = scored.receipt(3)
    scored.change("00003", parts=())
    refused(scored, "shard 00003")
    scored.change("00003", parts=honest.parts)
    assert scored.commit().rows == 40
    made.assert_each_once(cohort, 40)


def test_shards_that_leave_a_unit_of_the_plan_out_or_have_it_twice_publish_nothing(cohort, monkeypatch):
    scored, whole = Scored(cohort), Ledger.results
    sizes = list(scored.plan.shards.values())
    for shards, unit in ((slice(-1), sum(sizes[:-1])), (slice(1, None), 0), (slice(0, None, 2), sizes[0])):
        monkeypatch.setattr(Ledger, "results", lambda ledger, shards=shards: whole(ledger)[shards])
        refused(scored, f"see unit {unit};")


@pytest.mark.fault(29)
def test_a_receipt_of_another_run_is_refused(cohort):
    scored = Scored(cohort)
    scored.change("00000", run_id="0" * 32)
    refused(scored, "belongs to another run")


def test_a_shard_without_a_receipt_stops_the_commit(cohort):
    scored = Scored(cohort)
    cohort.store.delete(f"runs/{scored.plan.run_id}/receipts/00001.json")
    refused(scored, "shards are missing")


@pytest.mark.fault(48)
def test_two_plans_over_the_same_units_publish_each_unit_once(cohort, tmp_path):
    early = Scored(cohort, name="early")
    made.add_proteins(cohort, tmp_path / "more", made.proteins(10, seed=9), prefix="q")
    late = Scored(cohort, name="late")
    assert late.plan.units.num_rows == 50
    assert early.plan.run_id != late.plan.run_id
    assert early.commit().dropped == 0
    assert late.commit().dropped == 40
    made.assert_each_once(cohort, 50)
    assert late.commit().already
    made.assert_each_once(cohort, 50)


@pytest.mark.fault(48)
def test_a_plan_whose_units_were_all_published_meanwhile_publishes_nothing(cohort):
    first, second = Scored(cohort, name="first"), Scored(cohort, name="second")
    first.commit()
    done = second.commit()
    assert (done.rows, done.dropped) == (0, 40)
    made.assert_each_once(cohort, 40)


@pytest.mark.fault(49)
def test_a_subject_withdrawn_while_a_run_holds_it_is_not_in_what_it_publishes(lake, tmp_path):
    for subject in ("01", "02"):
        path = tmp_path / "src" / f"sub-{subject}" / f"{subject}.fasta"
        path.parent.mkdir(parents=True)
        path.write_text(f">x{subject}\n{made.proteins(1, seed=int(subject))[0]}\n")
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,subject\nsub-01/01.fasta,01\nsub-02/02.fasta,02\n")
    from diastole.workers.ingest import IngestOptions, ingest

    ingest(lake, "d", [tmp_path / "src"], IngestOptions(alphabet="protein", manifest=manifest))
    made.residues(lake)
    scored = Scored(lake)
    lake.store.put(f"suppressed/{lake.subject_id('01')}", b"")
    assert scored.commit().dropped == 1
    [row] = made.table(lake)
    subjects = dict(zip(*(scored.plan.units[c].to_pylist() for c in ("item_id", "subject_id")), strict=True))
    assert subjects[row["item_id"]] == lake.subject_id("02")


def test_several_waves_are_each_published_whole(cohort, monkeypatch):
    monkeypatch.setattr(commits, "WAVE_PARTS", 3)
    scored = Scored(cohort)
    parts = len(scored.plan.shards)
    assert parts > 6
    assert scored.commit().parts == parts
    waves = list(cohort.store.list(f"runs/{scored.plan.run_id}/waves"))
    assert len(waves) == -(-parts // 3)
    made.assert_each_once(cohort, 40)
    assert scored.commit().already


def test_the_second_of_several_waves_goes_on_where_the_first_was_published(cohort, monkeypatch):
    monkeypatch.setattr(commits, "WAVE_PARTS", 3)
    scored = Scored(cohort)
    whole = commits._commit_wave

    def interrupted(lake, plan, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return whole(lake, plan, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(commits, "_commit_wave", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scored.commit()
    first = len(made.table(cohort))
    assert 0 < first < 40
    Scored(cohort, name="other").commit()  # another run publishes the rest meanwhile
    made.assert_each_once(cohort, 40)
    done = scored.commit()
    assert done.dropped == 40 - first
    made.assert_each_once(cohort, 40)


@pytest.mark.fault(14)
def test_a_run_that_was_killed_after_its_commit_and_whose_answer_was_lost_is_known_as_published(cohort, monkeypatch):
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError

    whole = DeltaTable.create_write_transaction

    def lost(table, *arguments, **named):
        whole(table, *arguments, **named)
        monkeypatch.setattr(DeltaTable, "create_write_transaction", whole)
        raise CommitFailedError("the answer is lost")

    scored = Scored(cohort)
    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    assert scored.commit().already
    made.assert_each_once(cohort, 40)


@pytest.mark.fault(46)
def test_a_driver_paused_past_its_lease_does_not_double_what_another_published(cohort, tmp_path):
    flag = tmp_path / "paused"
    line, env = made.command(cohort, "run", made.job_file(tmp_path), "--json")
    env |= {"DIASTOLE_CRASH": f"pause@before-commit:{flag}", "DIASTOLE_LEASE_SECONDS": "1"}
    paused = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: flag.exists() and stopped(paused.pid))
        time.sleep(1.2)
        other = made.cli(cohort, "run", made.job_file(tmp_path), "--json")
        assert other.returncode == 0, other.stderr
        made.assert_each_once(cohort, 40)
        os.kill(paused.pid, signal.SIGCONT)
        out, err = paused.communicate(timeout=60)
    finally:
        paused.kill()
    assert paused.returncode == 0, err
    assert json.loads(out)["table_version"] == json.loads(other.stdout)["table_version"]
    made.assert_each_once(cohort, 40)
    assert len([e for e in delta.open_table(cohort, "predictions/o").history() if e.get("run_id")]) == 1


@pytest.mark.fault(12)
def test_a_second_driver_waits_while_the_first_is_alive(cohort, tmp_path):
    line, env = made.command(cohort, "run", made.job_file(tmp_path), "--json")
    flag = tmp_path / "paused"
    env |= {"DIASTOLE_CRASH": f"pause@before-commit:{flag}"}
    paused = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: flag.exists() and stopped(paused.pid))
        other = made.cli(cohort, "run", made.job_file(tmp_path))
        assert other.returncode == 2
        assert f"driven by process {paused.pid}" in other.stderr
    finally:
        paused.kill()
        paused.wait()
    assert made.run(cohort).scored == 40  # it is dead now, and nobody need wait for its lease


def merged(lake):
    paths = [Path(uri) for uri in delta.open_table(lake, "predictions/o").file_uris()]
    return [path for path in paths if "-wave" in path.name]


def orphans(lake):
    there = {Path(uri) for uri in delta.open_table(lake, "predictions/o").file_uris()}
    return set(lake.store.path("predictions/o").rglob("*.parquet")) - there


def test_a_few_small_parts_stay_and_many_are_published_as_one_file_per_level(cohort, monkeypatch):
    scored = Scored(cohort)
    parts = [receipt.parts[0] for receipt in scored.ledger().results()]
    monkeypatch.setattr(merge, "MANY", ((len(parts) - 1, 2**20),))
    done = scored.commit()
    [file] = merged(cohort)
    assert (done.rows, done.parts) == (40, 1)
    assert len(orphans(cohort)) == len(parts)
    made.assert_each_once(cohort, 40)
    rows = pa.concat_tables([pq.read_table(scored.lake.store.path(f"predictions/o/{p.path}")) for p in parts])
    assert pq.ParquetFile(file).read().equals(rows.select(pq.read_schema(file).names))
    assert integrity.check(cohort, deep=True) == []
    assert file.name in {Path(row["path"]).name for row in integrity.read(cohort).to_pylist()}
    assert scored.commit().already


def test_few_parts_are_not_merged(cohort, monkeypatch):
    scored = Scored(cohort)
    monkeypatch.setattr(merge, "MANY", ((len(scored.plan.shards), 2**20),))
    assert scored.commit().parts == len(scored.plan.shards)
    assert merged(cohort) == []
    assert orphans(cohort) == set()


def test_of_large_parts_more_may_stay(cohort, monkeypatch):
    scored = Scored(cohort)
    sizes = sorted(receipt.parts[0].bytes for receipt in scored.ledger().results())
    monkeypatch.setattr(merge, "MANY", ((1, sizes[1]), (len(sizes), 2**20)))  # one is smaller, and they are not more
    assert scored.commit().parts == len(sizes)
    assert merged(cohort) == []


def test_a_merged_file_is_closed_when_it_is_large_and_a_large_part_stays_as_it_is(cohort, monkeypatch):
    scored = Scored(cohort)
    sizes = sorted(receipt.parts[0].bytes for receipt in scored.ledger().results())
    monkeypatch.setattr(merge, "MANY", ((2, sizes[-1]),))  # at least one is as large
    monkeypatch.setattr(merge, "LARGE", 1)
    monkeypatch.setattr(merge, "ROWS", 10)
    monkeypatch.setattr(merge, "JOINED", 1)
    done = scored.commit()
    assert done.parts > len(merged(cohort)) > 1
    assert done.rows == 40
    made.assert_each_once(cohort, 40)


@pytest.mark.fault(27)
def test_a_merged_file_is_read_with_its_page_checksums(cohort, monkeypatch):
    monkeypatch.setattr(merge, "MANY", ((1, 2**20),))
    scored = Scored(cohort)
    scored.commit()
    [file] = merged(cohort)
    whole = file.read_bytes()
    found = 0
    for at in range(100, len(whole) // 2, max(1, len(whole) // 100)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            if pq.read_table(file, page_checksum_verification=True).num_rows:
                continue
        found += 1
    file.write_bytes(whole)
    assert found > 40
    assert integrity.check(cohort, deep=True) == []


@pytest.mark.fault(11)
def test_killed_between_merge_and_wave_the_next_driver_publishes_the_same_file_once(lake, tmp_path, monkeypatch):
    made.add_proteins(lake, tmp_path / "src", made.proteins(240, low=40, high=80))
    made.residues(lake)
    file = made.job_file(tmp_path)
    code = "from diastole.jobs import merge; merge.MANY = ((2, 2**20),); from diastole.cluster.cli import main; main()"
    env = {**os.environ, "DIASTOLE_LAKE": lake.store.root, "DIASTOLE_CRASH": f"after-merge:{tmp_path / 'flag'}"}
    line = [sys.executable, "-c", code, "run", file, "--json"]
    killed = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert made.table(lake) == []
    assert len(list(lake.store.list(f"runs/{runs.list_runs(lake)[0]}/receipts"))) > 2
    [left] = lake.store.path("predictions/o").rglob("*-wave*.parquet")
    monkeypatch.setattr(merge, "MANY", ((2, 2**20),))
    assert made.run(lake).resumed
    made.assert_each_once(lake, 240)
    assert merged(lake) == [left]
    assert integrity.check(lake, deep=True) == []


def test_a_shard_that_is_redone_after_the_merge_is_published_and_the_old_merge_is_not(cohort, monkeypatch):
    monkeypatch.setattr(merge, "MANY", ((2, 2**20),))
    scored = Scored(cohort)
    with monkeypatch.context() as patch:
        patch.setattr(commits.crash, "point", interrupted_at("before-commit"))
        with pytest.raises(KeyboardInterrupt):
            scored.commit()
    [first] = cohort.store.path("predictions/o").rglob("*-wave*.parquet")
    cohort.store.delete(f"runs/{scored.plan.run_id}/receipts/00000.json")
    assert made.run(cohort).scored == 40
    made.assert_each_once(cohort, 40)
    [file] = merged(cohort)
    assert file != first


def interrupted_at(name):
    def point(here):
        if here == name:
            raise KeyboardInterrupt

    return point


def test_what_others_published_is_taken_out_of_a_merged_file_too(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "MANY", ((2, 2**20),))
    early = Scored(cohort, name="early")
    made.add_proteins(cohort, tmp_path / "more", made.proteins(10, seed=9), prefix="q")
    late = Scored(cohort, name="late")
    assert early.commit().dropped == 0
    done = late.commit()
    assert (done.dropped, done.rows) == (40, 10)
    made.assert_each_once(cohort, 50)
    assert late.commit().already


def stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that point"
        time.sleep(0.05)


def test_every_unit_and_every_detail_row_is_counted_whatever_the_totals_are():
    def differences(found, details):
        planned = pa.table({"item_id": ["a", "b", "c"], "input_digest": ["1", "2", "3"]})
        rows = pa.table(dict(zip(["item_id", "input_digest", "n_rows"], zip(*found, strict=True), strict=True)))
        counted = pa.table({"item_id": [name for name, _ in details], "n": [n for _, n in details]})
        return check.differences(planned, rows, counted)

    whole = [("c", "3", None), ("a", "1", 5), ("b", "2", 0)]
    assert differences(whole, [("a", 2), ("a", 3)]) == (0, 0)
    assert differences([*whole[:2], ("b", "1", 0)], [("a", 5)]) == (2, 0)
    assert differences([*whole[:2], whole[1]], [("a", 5)])[0] == 2
    assert differences(whole, [("a", 4), ("b", 1)]) == (0, 2)
    assert differences(whole, [("a", 5), ("c", 1)]) == (0, 1)
