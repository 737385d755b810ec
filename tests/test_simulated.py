"""Two thousand shards and two hundred workers that fail, through the real planner, dispatcher, receipts and commit."""

import os
import tempfile
from pathlib import Path

import made
import pytest

from diastole.cluster.driver import Choice, plan_job
from diastole.cluster.simulated import Work, made_rows, run_simulated
from diastole.jobs import commit, runs
from diastole.jobs.ledger import Ledger
from diastole.jobs.parts import write_part
from diastole.lake import predictions
from diastole.lake.layout import Lake


@pytest.fixture
def lake(monkeypatch):
    """A lake in memory, where there is a folder that is: thousands of files that must be durable take a disk a minute."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        monkeypatch.setenv("DIASTOLE_KEYS", str(Path(folder) / "keys"))
        yield Lake.create(f"{folder}/lake")


@pytest.fixture
def many(lake, tmp_path, monkeypatch):
    """A plan of 2,000 shards of two proteins, the output's schema, and a worker's way to write parts."""
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    made.add_proteins(lake, tmp_path / "src", made.proteins(4000, low=20, high=20))
    made.residues(lake)
    cost = plan_job(lake, made.job(), Choice(limit=1))[0].cost
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (1.0, 2.0 * cost))
    plan, _, task = plan_job(lake, made.job(resources={"attempts": 3}), Choice())
    schema = predictions.table_schema(task.item_columns, task.row_columns)
    predictions.fix_output(lake, plan.output, task.name, ["H", "E", "C"], schema, {})
    runs.start(lake, plan)

    def write(shard, number):
        stem = f"level=item/key_group={plan.key_group}/{plan.run_id}-{shard.shard}-{number}"
        rows = made_rows(plan, shard.units, task.item_columns)
        return (write_part(lake, lake.predictions(plan.output), stem, rows, "item"),)

    return plan, schema, write


def test_each_of_many_units_ends_once_whatever_happens_to_two_hundred_workers(lake, many):
    plan, schema, write = many
    poisoned = frozenset(plan.units["item_id"].to_pylist()[500:502])
    work = Work(workers=200, slow=0.01, deaths=0.02, returns=0.02, poisoned=poisoned)
    ledger = Ledger(lake, plan, in_process=False)
    did = run_simulated(lake, ledger, work, write)
    assert len(plan.shards) == 2000
    assert min(did.events[what] for what in ("died", "returned", "copies")) > 0
    done = commit.commit(lake, plan, Ledger(lake, plan, in_process=False), schema)
    assert (done.rows, done.parts) == (4000, 1)
    made.assert_each_once(lake, 4000)
    failed = [row["item_id"] for row in made.table(lake) if row["status"] == "failed"]
    assert sorted(failed) == sorted(poisoned)  # others died of it too, and were scored in the end
    assert all(row["error_code"] == "worker_died" for row in made.table(lake) if row["status"] == "failed")


def test_a_run_with_slow_workers_ends_sooner_where_what_is_late_is_copied(lake, many):
    plan, _, _ = many
    took = {}
    for copies in (True, False):
        for folder in ("attempts", "receipts"):
            for path, _ in list(lake.store.list(f"runs/{plan.run_id}/{folder}")):
                lake.store.delete(path)
        ledger = Ledger(lake, plan, in_process=False)
        did = run_simulated(lake, ledger, Work(workers=500, slow=0.01), lambda *_: (), copies=copies)
        assert (ledger.units_done, ledger.open) == (4000, 0)
        took[copies] = did.seconds
    assert took[True] < 0.7 * took[False]
