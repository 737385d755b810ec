import random

import made
import pytest

from diastole.cluster.driver import Choice, give_up, plan_job
from diastole.jobs.plan import Plan
from diastole.lake import items
from diastole.lake.errors import LakeError, SpecError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))


@pytest.fixture
def cohort(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(20))
    made.residues(lake)
    return lake


def plan(lake, choice=None, **fields):
    return plan_job(lake, made.job(**fields), choice or Choice())[0]


def test_the_same_job_and_lake_give_the_same_plan_and_it_survives_storage(cohort):
    first, second = plan(cohort), plan(cohort)
    assert first.run_id == second.run_id
    assert first.to_bytes() == second.to_bytes()
    assert Plan.from_bytes(first.to_bytes()) == first
    assert Plan.from_bytes(first.to_bytes()).units.equals(first.units)
    assert first.reasons == {"new": 20}
    assert Plan.from_bytes(first.to_bytes(), units=False) == first
    assert Plan.from_bytes(first.to_bytes(), units=False).units.num_rows == 0


def test_the_order_in_which_rows_lie_in_the_items_table_changes_no_plan(cohort):
    first = plan(cohort)
    rows = items.read_items(cohort, "d")
    order = random.Random(5).sample(range(rows.num_rows), rows.num_rows)
    for start in range(0, len(order), 7):
        items.write_items(cohort, "d", rows.take(order[start : start + 7]))
    assert plan(cohort).run_id == first.run_id


def test_planning_writes_nothing(cohort):
    before = sorted(cohort.store.local.rglob("*"))
    plan(cohort)
    assert sorted(cohort.store.local.rglob("*")) == before


def test_every_unit_is_in_one_shard_and_shards_are_even(cohort):
    planned = plan(cohort)
    assert sum(planned.shards.values()) == 20
    costs = {}
    for unit in planned.units.to_pylist():
        costs[unit["shard"]] = costs.get(unit["shard"], 0) + unit["cost"]
    assert list(planned.units["unit"].to_pylist()) == list(range(20))
    assert max(costs.values()) <= sum(costs.values()) / 16 + max(planned.units["cost"].to_pylist())


def test_what_was_scored_is_not_planned_again_and_each_reason_is_told(cohort, tmp_path):
    made.run(cohort)
    assert plan(cohort).skipped == {"already scored": 20}
    assert plan(cohort, resources={"batch": 7, "memory_gb": 9, "workers": 5, "threads": 2}).units.num_rows == 0
    made.add_proteins(cohort, tmp_path / "src", [*made.proteins(19), "A" * 33, "C" * 30])
    planned = plan(cohort)
    assert (planned.reasons, planned.skipped) == ({"changed": 1, "new": 1}, {"already scored": 19})
    made.run(cohort)
    assert plan(cohort, options={"activation": "none"}).reasons == {"parameters changed": 21}
    made.residues(cohort, seed=1, version="2")
    assert plan(cohort, model="m@2").reasons == {"model changed": 21}
    made.run(cohort, model="m@2")
    assert plan(cohort, model="m@1").units.num_rows == 0
    made.assert_each_once(cohort, 20 + 2 + 21)


def test_failures_are_planned_again_only_with_retry_and_count_their_attempts(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", [*made.proteins(4), "Y" * 30])
    made.residues(lake)
    assert made.run(lake).failed == 1
    again = made.run(lake)
    assert (again.run_id, again.skipped["failed before (--retry scores it again)"]) == (None, 1)
    assert plan(lake, Choice(retry=True)).reasons == {"retry": 1}
    assert made.run(lake, Choice(retry=True)).failed == 1
    assert sorted(r["attempt"] for r in made.table(lake) if r["status"] == "failed") == [1, 2]
    assert plan(lake, Choice(retry=True)).units["attempt"].to_pylist() == [3]


def test_limit_takes_the_first_and_the_next_limit_goes_on(cohort):
    assert made.run(cohort, Choice(limit=8)).scored == 8
    planned = plan(cohort, Choice(limit=8))
    assert planned.skipped == {"already scored": 8, "beyond the limit": 4}
    assert made.run(cohort, Choice(limit=100)).scored == 12
    made.assert_each_once(cohort, 20)


def test_only_takes_these_items_and_says_which_are_not_there(cohort):
    ids = items.read_items(cohort, "d")["item_id"].to_pylist()
    assert plan(cohort, Choice(only=ids[3:5])).units["item_id"].to_pylist() == sorted(
        ids[3:5], key=lambda i: plan(cohort).units["item_id"].to_pylist().index(i)
    )
    with pytest.raises(SpecError, match="1 item ids of --only are not in the selection, first: nobody"):
        plan(cohort, Choice(only=["nobody", ids[0]]))


def test_where_selects_and_a_bad_one_is_said_in_one_line(cohort):
    selected = plan(cohort, dataset="d", where="sequence.length > 25")
    lengths = items.read_items(cohort, "d")["sequence"].to_pylist()
    assert selected.units.num_rows == sum(s["length"] > 25 for s in lengths)
    for where in ("modality =", "no_such_column = 1", "read_text('/etc/passwd') = ''", "cast(name as int) = 1"):
        with pytest.raises(SpecError, match="is not a condition over items") as caught:
            plan(cohort, dataset="d", where=where)
        assert "\n" not in str(caught.value)


def test_an_empty_selection_and_a_dataset_that_is_not_there_are_errors(cohort):
    with pytest.raises(LakeError, match="selects no item of d"):
        plan(cohort, dataset="d", where="modality = 'CT'")
    with pytest.raises(LakeError, match="there is no dataset 'x' in this lake; there is: d"):
        plan(cohort, dataset="x")


def test_a_model_of_limited_use_wants_the_purpose_to_be_named(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(3))
    made.residues(lake, licence="CC-BY-NC-4.0", permitted_use="research")
    with pytest.raises(SpecError, match="purpose: research"):
        plan(lake)
    with pytest.raises(SpecError, match="may be used for research only"):
        plan(lake, purpose="clinical")
    assert plan(lake, purpose="research").units.num_rows == 3


def test_the_spec_digest_holds_what_changes_a_result_and_nothing_else(cohort):
    base = plan(cohort)
    same = plan(cohort, name="other", resources={"workers": 3, "threads": 4, "batch": 9, "memory_gb": 5, "attempts": 1})
    assert same.spec_digest == base.spec_digest
    assert same.key_group == base.key_group
    assert plan(cohort, options={"activation": "none"}).spec_digest != base.spec_digest


def test_a_raised_task_version_makes_its_results_stale(cohort, monkeypatch):
    from diastole.workers.tasks.residues import Residues

    made.run(cohort)
    monkeypatch.setattr(Residues, "version", Residues.version + 1)
    assert plan(cohort).reasons == {"parameters changed": 20}


def test_a_run_that_was_given_up_is_not_taken_up_again(cohort):
    from diastole.jobs import runs

    given_up = plan(cohort)
    runs.start(cohort, given_up)
    give_up(cohort, given_up)
    again = made.run(cohort)
    assert again.run_id != given_up.run_id
    assert not again.resumed
    assert runs.read_record(cohort, again.run_id)["state"] == "done"
    made.assert_each_once(cohort, 20)


def test_current_has_the_newest_result_of_each_item_in_the_order_of_commits(cohort, tmp_path):
    from diastole.lake import predictions

    def current():
        return [r for r in predictions.read_current(cohort, "o").to_table().to_pylist() if r["level"] == "item"]

    made.run(cohort)
    made.residues(cohort, seed=1, version="2")
    made.run(cohort, Choice(limit=5), model="m@2")
    versions = [row["model_version"] for row in current()]
    assert (len(versions), versions.count("2")) == (20, 5)
    made.run(cohort, model="m@1", options={"activation": "none"})
    rows = current()
    assert (len(rows), {r["model_version"] for r in rows}) == (20, {"1"})
    assert len({r["spec_digest"] for r in rows}) == 1
