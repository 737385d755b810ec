"""What an unfinished run leaves behind: finished, planned anew, or recorded as what it is."""

import made
import pytest

from diastole.cluster.driver import Choice, give_up, run_job
from diastole.jobs import runs
from diastole.lake import integrity, predictions
from diastole.lake.errors import CommitError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))


@pytest.fixture
def cohort(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(20))
    made.residues(lake)
    return lake


class Stopped(Exception):
    pass


def stop_at(monkeypatch, name):
    """End a run at a crash point, as a kill would, once."""

    def point(here):
        if here == name:
            monkeypatch.setattr("diastole.lake.crash.point", lambda _: None)
            raise Stopped

    monkeypatch.setattr("diastole.lake.crash.point", point)


def test_a_run_after_a_stopped_limited_one_finishes_it_and_scores_the_rest(cohort, monkeypatch):
    stop_at(monkeypatch, "before-wave")
    with pytest.raises(Stopped):
        made.run(cohort, Choice(limit=3))
    outcome = made.run(cohort)
    assert (outcome.resumed, outcome.scored) == (True, 20)
    made.assert_each_once(cohort, 20)


def test_a_run_that_was_published_is_done_even_where_it_is_given_up(cohort, monkeypatch):
    stop_at(monkeypatch, "after-commit")
    with pytest.raises(Stopped):
        made.run(cohort)
    made.residues(cohort, seed=1, version="2")
    outcome = run_job(cohort, made.job(model="m@2"), Choice(replan=True))
    assert outcome.scored == 20
    assert sorted(runs.read_record(cohort, run)["state"] for run in runs.list_runs(cohort)) == ["done", "done"]
    assert integrity.check(cohort, deep=True) == []
    written = {row["written_by"] for row in integrity.read(cohort).to_pylist()}
    assert set(runs.list_runs(cohort)) <= written
    made.run(cohort, model="m@1")
    assert {row["model_version"] for row in predictions.read_current(cohort, "o").to_table().to_pylist()} == {"1"}


def test_giving_up_a_published_run_does_not_bring_its_results_over_newer_ones(cohort, monkeypatch):
    stop_at(monkeypatch, "after-commit")
    with pytest.raises(Stopped):
        made.run(cohort, Choice(limit=5))
    made.residues(cohort, seed=1, version="2")
    made.run(cohort, name="other", model="m@2")
    [plan] = runs.unfinished(cohort, "j")
    assert give_up(cohort, plan) == "done"
    rows = predictions.read_current(cohort, "o").to_table().to_pylist()
    assert (len(rows), {row["model_version"] for row in rows}) == (20, {"2"})


def test_a_part_that_is_lost_after_its_wave_was_fixed_is_redone_as_the_message_says(cohort, monkeypatch):
    stop_at(monkeypatch, "before-commit")
    with pytest.raises(Stopped):
        made.run(cohort)
    run_id = runs.list_runs(cohort)[0]
    next(iter(cohort.store.path("predictions/o").rglob("*.parquet"))).unlink()
    with pytest.raises(CommitError, match="run again") as refused:
        made.run(cohort)
    receipt = next(word for word in str(refused.value).split() if word.startswith(f"runs/{run_id}/receipts/"))
    cohort.store.delete(receipt)
    assert made.run(cohort).scored == 20
    made.assert_each_once(cohort, 20)
    assert integrity.check(cohort, deep=True) == []


def test_what_failed_in_another_run_does_not_keep_out_what_was_scored_here(cohort, monkeypatch):
    stop_at(monkeypatch, "before-wave")
    with pytest.raises(Stopped):
        made.run(cohort)
    monkeypatch.setattr("diastole.workers.read.Reader.read", _unreadable)
    assert made.run(cohort, name="other").failed == 20
    monkeypatch.undo()
    assert made.run(cohort).dropped == 0
    rows = predictions.read_current(cohort, "o").to_table().to_pylist()
    assert {row["status"] for row in rows} == {"scored"}


def _unreadable(self, unit):
    from diastole.lake.errors import ItemError

    raise ItemError("pack_unreadable", "for this test")
