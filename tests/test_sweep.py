"""Sweep: what nothing refers to goes, everything else stays, whoever dies or sleeps meanwhile."""

import json
import signal
import tempfile
import time
from pathlib import Path

import made
import pytest
import worn

from diastole.jobs import runs
from diastole.jobs.sweep import sweep
from diastole.lake import integrity, items
from diastole.lake.errors import EnvironmentFailure, LakeError
from diastole.lake.store import Store

POINTS = ["sweep-begin", "sweep-fenced", "sweep-forgotten", "sweep-removing", "sweep-removed"]
SELDOM = ["after-plan", "after-part", "mid-shard", "after-receipt", "before-wave", "before-current"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A lake of 8 proteins that nobody has scored."""
    with worn.new(tmp_path_factory.mktemp("first")) as lake:
        made.residues(lake)
        made.residues(lake, seed=1, version="2")
        made.add_proteins(lake, lake.store.local.parent / "src", made.proteins(8))
        yield worn.Template(lake)


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    """The same after a run, and with what killed writers leave."""
    folder = tmp_path_factory.mktemp("second")
    with pytest.MonkeyPatch.context() as patch:
        lake = first.copy(folder, patch)
        made.run(lake, model="m@1")
        dead = worn.litter(lake, folder)
        yield worn.Template(lake), dead


@pytest.fixture
def cohort(first, tmp_path, monkeypatch):
    return first.copy(tmp_path, monkeypatch)


@pytest.fixture
def littered(second, tmp_path, monkeypatch):
    template, dead = second
    return template.copy(tmp_path, monkeypatch), dead


def test_what_nothing_refers_to_goes_and_all_else_stays(littered):
    lake, dead = littered
    needed = worn.files(lake) - set().union(*dead.values())
    told = sweep(lake, dry_run=True)
    assert worn.files(lake) >= needed.union(*dead.values())
    done = sweep(lake)
    assert done.removed == told.removed
    assert {kind: files for kind, (files, _) in done.removed.items() if files} == {k: len(p) for k, p in dead.items()}
    assert needed <= worn.files(lake)
    assert not set().union(*dead.values()) & worn.files(lake)
    assert done.left == {}
    assert integrity.check(lake, deep=True) == []
    assert {row["path"] for row in integrity.read(lake).to_pylist()} <= worn.files(lake)
    assert not list(lake.store.path("maps").rglob("*"))  # no empty folders
    made.assert_each_once(lake, 8)
    assert sum(files for files, _ in sweep(lake).removed.values()) == 0


def test_what_is_younger_than_the_grace_stays(littered):
    lake, _ = littered
    before = worn.files(lake)
    assert sum(files for files, _ in sweep(lake, 2 * worn.OLD).removed.values()) == 0
    assert worn.files(lake) == before


def test_an_older_version_of_a_table_can_be_read_for_as_long_as_the_grace(cohort, tmp_path):
    from deltalake import DeltaTable

    made.run(cohort, model="m@1")
    shown = DeltaTable(cohort.store.uri("current/o")).version()
    made.run(cohort, model="m@2", name="other")  # replaces what is shown
    worn.age(cohort, [p for p in worn.files(cohort) if p.startswith("current/")])
    assert sweep(cohort).removed["current"] == (0, 0)  # given up just now
    assert DeltaTable(cohort.store.uri("current/o"), version=shown).to_pyarrow_table().num_rows == 8
    time.sleep(0.02)
    assert sweep(cohort, 0).removed["current"][0] > 0
    with pytest.raises(Exception, match=r"(?i)not found|no such file"):
        DeltaTable(cohort.store.uri("current/o"), version=shown).to_pyarrow_table()


@pytest.mark.fault(11)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_sweep_changes_no_row_and_the_next_one_ends_it(littered, tmp_path, point):
    lake, dead = littered
    before = {path: worn.rows(lake, path) for path in ("predictions/o", "current/o", "datasets/d/items")}
    killed = made.cli(lake, "sweep", DIASTOLE_CRASH=f"{point}:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {path: worn.rows(lake, path) for path in before} == before
    assert integrity.check(lake, deep=True) == []
    assert sweep(lake).left == {}
    assert not set().union(*dead.values()) & worn.files(lake)
    assert {path: worn.rows(lake, path) for path in before} == before
    assert integrity.check(lake, deep=True) == []


@pytest.mark.fault(30, 31)
@pytest.mark.parametrize(
    "point",
    ["before-commit", *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)]
    if (SLOW := ["after-plan", "mid-shard", "after-receipt", "before-wave", "before-current"])
    else [],
)
def test_beside_a_run_a_sweep_and_a_compaction_are_refused_and_say_who_holds_the_lake(cohort, tmp_path, point):
    with worn.paused(cohort, tmp_path / "flag", point, "run", made.job_file(tmp_path, model="m@1")) as run:
        for command in (["sweep", "--grace", "0"], ["compact"]):
            refused = made.cli(cohort, *command)
            assert refused.returncode == 2
            assert f"must wait for job j, process {run.pid}" in refused.stderr
        code, said = run.wake()
    assert code == 0, said
    made.assert_each_once(cohort, 8)


@pytest.mark.fault(30, 31)
@pytest.mark.parametrize("point", ["ingest-stored", pytest.param("ingest-items", marks=pytest.mark.slow)])
def test_beside_an_ingest_a_sweep_is_refused_and_says_who_holds_the_lake(cohort, tmp_path, point):
    source = worn.made_source(tmp_path)
    with worn.paused(cohort, tmp_path / "flag", point, "ingest", "d", source, "--alphabet", "protein") as ingest:
        refused = made.cli(cohort, "sweep", "--grace", "0")
        assert refused.returncode == 2
        assert f"sweep must wait for ingest into d, process {ingest.pid}" in refused.stderr
        code, said = ingest.wake()
    assert code == 0, said
    assert items.read_items(cohort, "d").num_rows == 9
    assert integrity.check(cohort, deep=True) == []


@pytest.mark.fault(30, 31)
def test_a_run_that_slept_through_a_sweep_loses_no_part_and_is_told_to_begin_again(cohort, tmp_path):
    file = made.job_file(tmp_path, model="m@1")
    with worn.paused(cohort, tmp_path / "flag", "after-part", "run", file, DIASTOLE_LEASE_SECONDS="1") as run:
        time.sleep(1.2)
        parts = {p for p in worn.files(cohort) if p.startswith("predictions/")}
        assert sweep(cohort, 0).left == {}
        assert parts <= worn.files(cohort)  # the run may still publish it
        code, said = run.wake()
    assert code == 2, said
    assert "job j slept for over 1 s, and the lake was rewritten; run it again" in said
    assert made.table(cohort) == []
    assert made.run(cohort, model="m@1").resumed
    made.assert_each_once(cohort, 8)
    assert integrity.check(cohort, deep=True) == []


@pytest.mark.fault(30, 31)
def test_a_run_whose_parts_were_swept_while_it_slept_publishes_none_of_them(cohort, tmp_path):
    file = made.job_file(tmp_path, model="m@1")
    made.run(cohort, name="other", model="m@1", where="name = 'p0'")
    with worn.paused(cohort, tmp_path / "flag", "before-commit", "run", file, DIASTOLE_LEASE_SECONDS="1") as run:
        time.sleep(1.2)
        [run_id] = [found for found in runs.list_runs(cohort) if runs.read_record(cohort, found) is None]
        assert made.cli(cohort, "runs", "abandon", run_id).returncode == 0
        assert sweep(cohort, 0).removed["predictions"][0] > 0
        code, said = run.wake()
    assert code == 2, said
    assert len(made.table(cohort)) == 1
    assert made.run(cohort, model="m@1").scored == 7
    made.assert_each_once(cohort, 8)
    assert integrity.check(cohort, deep=True) == []


@pytest.mark.fault(31)
def test_an_ingest_whose_packs_were_swept_while_it_slept_refers_to_none_of_them(cohort, tmp_path):
    line = ["ingest", "d", worn.made_source(tmp_path), "--alphabet", "protein"]
    with worn.paused(cohort, tmp_path / "flag", "ingest-integrity", *line, DIASTOLE_LEASE_SECONDS="1") as ingest:
        time.sleep(1.2)
        assert sweep(cohort, 0).removed["packs"][0] == 1
        code, said = ingest.wake()
    assert code == 2
    assert "ingest into d slept for over 1 s" in said
    assert items.read_items(cohort, "d").num_rows == 8
    assert made.cli(cohort, *line).returncode == 0
    assert items.read_items(cohort, "d").num_rows == 9
    assert integrity.check(cohort, deep=True) == []
    made.run(cohort, model="m@1")
    assert not any(made.codes(cohort).values())


@pytest.mark.fault(31)
def test_a_sweep_that_slept_past_its_lease_removes_nothing_any_more(littered, tmp_path):
    lake, dead = littered
    flag = tmp_path / "flag"
    with worn.paused(lake, flag, "sweep-forgotten", "sweep", DIASTOLE_LEASE_SECONDS="1") as sweeping:
        time.sleep(1.2)
        made.run(lake, name="other", model="m@1")  # it need not wait
        code, said = sweeping.wake()
    assert code == 2
    assert "sweep slept for over 1 s and lost its lease" in said
    assert all(paths <= worn.files(lake) for paths in dead.values())
    assert sweep(lake).left == {}
    assert integrity.check(lake, deep=True) == []


def test_a_damaged_table_means_that_nothing_is_removed_there(littered):
    lake, dead = littered
    log = max(lake.store.path("datasets/d/items/_delta_log").glob("*.json"))
    log.write_bytes(log.read_bytes()[:40])
    done = made.cli(lake, "sweep", "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert set(said["left"]) == {"datasets/d/arrays", "datasets/d/sequences"}
    assert dead["arrays"] | dead["packs"] <= worn.files(lake)
    assert not dead["predictions"] & worn.files(lake)


def test_a_table_that_lost_its_last_commits_keeps_the_files_that_these_added(cohort, tmp_path):
    made.run(cohort, model="m@1")
    made.add_proteins(cohort, tmp_path / "src", made.proteins(2, seed=9), prefix="q")
    made.run(cohort, model="m@1")
    worn.age(cohort, before := worn.files(cohort))
    max(cohort.store.path("predictions/o/_delta_log").glob("*.json")).unlink()
    assert "lost commits" in sweep(cohort, 0).left["predictions/o"]
    assert {p for p in before if p.startswith("predictions/")} <= worn.files(cohort)


@pytest.mark.fault(31)
def test_a_folder_that_cannot_be_listed_means_that_nothing_is_removed_there(littered, monkeypatch):
    lake, dead = littered
    found = Store.found

    def refused(store, prefix):
        yield from found(store, prefix)
        if prefix == "datasets/d/arrays":
            raise EnvironmentFailure("storage failed at datasets/d/arrays: Permission denied")

    monkeypatch.setattr(Store, "found", refused)
    assert sweep(lake).left == {"datasets/d/arrays": "storage failed at datasets/d/arrays: Permission denied"}
    assert dead["arrays"] <= worn.files(lake)
    assert not dead["packs"] & worn.files(lake)


def test_what_cannot_be_listed_is_not_taken_for_empty():
    with tempfile.TemporaryDirectory() as root:
        hidden = Path(root) / "a" / "b" / "hidden"
        hidden.mkdir(parents=True)
        (hidden / "x").write_bytes(b"x")
        store = Store(root)
        assert [file.path for file in store.found("a")] == ["a/b/hidden/x"]
        assert list(store.found("nothing")) == []
        Path(root).chmod(0o755)
        hidden.chmod(0)
        with made.nobody(), pytest.raises(EnvironmentFailure, match="storage failed at a: Permission denied"):
            list(store.found("a"))


def test_a_plan_that_cannot_be_read_stops_a_sweep_before_it_removes_anything(littered):
    lake, _ = littered
    run = "0" * 32
    lake.store.put(f"runs/{run}/plan.parquet", b"PAR1")
    before = worn.files(lake)
    with pytest.raises(LakeError, match=f"the plan of run {run} is damaged"):
        sweep(lake, 0)
    assert worn.files(lake) == before


def test_arrays_that_an_unfinished_run_has_planned_stay(cohort, tmp_path):
    def arrays():
        return {row["array"] for row in items.read_items(cohort, "e", ["array"]).to_pylist()}

    job = {"model": "m@1", "dataset": "e", "output": "e"}
    made.add_proteins(cohort, tmp_path / "src", made.proteins(8, seed=4), dataset="e")
    made.cli(cohort, "run", made.job_file(tmp_path, **job), DIASTOLE_CRASH="after-plan")
    planned = arrays()
    made.add_proteins(cohort, tmp_path / "src", made.proteins(8, seed=5), dataset="e")  # the same names, other content
    assert planned.isdisjoint(arrays())
    sweep(cohort, 0)
    assert planned <= worn.files(cohort)
    assert made.run(cohort, **job).failed == 0
    time.sleep(0.02)
    sweep(cohort, 0)
    assert planned.isdisjoint(worn.files(cohort))
    assert arrays() <= worn.files(cohort)


@pytest.mark.parametrize("said", ["7", "soon", "-1d", "7w"])
def test_a_grace_that_is_no_time_is_refused(cohort, said):
    refused = made.cli(cohort, "sweep", f"--grace={said}")
    assert refused.returncode == 2
    assert "is no time; write it as 7d" in refused.stderr
