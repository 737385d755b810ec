"""Who is to blame for a death, told from what is in storage."""

import dataclasses
import pickle

import made
import pyarrow as pa
import pytest

from diastole.cluster.driver import Choice, plan_job
from diastole.jobs import receipts, runs
from diastole.jobs.ledger import RETURNS, Ledger
from diastole.jobs.receipts import Receipt
from diastole.lake.errors import CommitError, EnvironmentFailure


@pytest.fixture
def plan(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))
    made.add_proteins(lake, tmp_path / "src", made.proteins(32, low=20, high=20))
    made.residues(lake)
    planned = plan_job(lake, made.job(resources={"attempts": 1}), Choice())[0]
    runs.start(lake, planned)
    return planned


def begin(lake, plan, shard):
    return receipts.mark_attempt(
        lake, plan.run_id, shard.shard, in_process=shard.in_process, session=shard.session, alone=shard.alone
    )


def finish(lake, plan, ledger, shard):
    ledger.receive(receipts.put(lake, Receipt(plan.run_id, shard.shard, 1, scored=len(shard.units))))


def test_the_first_receipt_of_a_shard_counts(lake, plan):
    first = receipts.put(lake, Receipt(plan.run_id, "00000", 1, scored=2))
    second = receipts.put(lake, Receipt(plan.run_id, "00000", 2, scored=9))
    assert first == second == receipts.read_one(lake, plan.run_id, "00000")


def test_what_is_no_receipt_is_told_with_what_to_do(lake, plan):
    lake.store.put(f"runs/{plan.run_id}/receipts/00000.json", b"{}")
    with pytest.raises(CommitError, match="delete it and run again"):
        list(receipts.read_all(lake, plan.run_id))


def test_a_shard_that_was_only_handed_out_is_not_suspect(lake, plan):
    ledger = Ledger(lake, plan, in_process=False)
    begun, waiting = ledger.take(), ledger.take()
    begin(lake, plan, begun)
    assert ledger.died([begun.shard, waiting.shard]) == 1
    assert receipts.deaths(lake, plan.run_id, "") == {begun.shard: 0}
    handed = [ledger.take().shard for _ in range(ledger.waiting - 1)]
    assert waiting.shard in handed
    assert begun.shard not in handed
    assert ledger.take() is None  # the suspect waits for a worker that has nothing else
    last = ledger.take(idle=True)
    assert (last.shard, last.alone) == (begun.shard, True)


def test_a_shard_is_split_only_after_it_killed_alone_and_ends_at_one_item(lake, plan):
    ledger = Ledger(lake, plan, in_process=False)
    poisoned = plan.units["item_id"].to_pylist()[5]
    deaths = 0
    while not ledger.finished:
        shard = ledger.take(idle=True)
        if poisoned in [unit["item_id"] for unit in shard.rows] and shard.rows[0]["refused_code"] is None:
            begin(lake, plan, shard)
            assert ledger.died([shard.shard]) == 1
            deaths += 1
            assert deaths < 20
        else:
            refused = [unit["item_id"] for unit in shard.rows if unit["refused_code"] == "worker_died"]
            assert refused in ([], [poisoned])
            finish(lake, plan, ledger, shard)
    done = [r for r in receipts.read_all(lake, plan.run_id) if r.children is None]
    assert sum(r.scored for r in done) == 32
    again = Ledger(lake, plan, in_process=False)
    assert again.finished  # also told from storage alone


def test_a_driver_that_sees_another_drivers_open_attempts_blames_nobody(lake, plan):
    killed = Ledger(lake, plan, in_process=False)
    begin(lake, plan, killed.take())
    assert receipts.deaths(lake, plan.run_id, "another") == {}
    here = Ledger(lake, plan, in_process=True)
    shard = here.take()
    begin(lake, plan, shard)
    assert receipts.deaths(lake, plan.run_id, here.session) == {}
    assert receipts.deaths(lake, plan.run_id, "the next") == {shard.shard: 0}  # it was the process that died
    here.give_up()
    assert receipts.deaths(lake, plan.run_id, "the next") == {}  # or that was interrupted


def test_a_shard_that_keeps_coming_back_stops_the_run_with_the_reason(lake, plan):
    ledger = Ledger(lake, plan, in_process=False)
    shard = ledger.take().shard
    for _ in range(RETURNS - 1):
        ledger.returned(shard, "503")
    with pytest.raises(EnvironmentFailure, match=f"came back {RETURNS} times: 503"):
        ledger.returned(shard, "503")


def test_a_shard_that_comes_back_with_its_receipt_in_storage_is_done(lake, plan):
    ledger = Ledger(lake, plan, in_process=False)
    shard = ledger.take()
    receipts.put(lake, Receipt(plan.run_id, shard.shard, 1, scored=2))
    ledger.returned(shard.shard, "the word of it was lost")
    assert ledger.is_done(shard.shard)


def test_a_shard_travels_with_its_own_units_only_and_a_worker_reads_a_plan_without_any(lake, plan):
    shard = Ledger(lake, plan, in_process=False).take()
    there = pickle.loads(pickle.dumps(shard))
    assert there.units.equals(shard.units)
    assert there.session == shard.session
    many = pa.concat_tables([plan.units] * 100).combine_chunks()
    cut = dataclasses.replace(shard, units=many.slice(50, shard.units.num_rows))
    assert len(pickle.dumps(cut)) < 2 * len(pickle.dumps(shard))
    header = runs.read_plan(lake, plan.run_id, units=False)
    assert header == plan
    assert header.units.num_rows == 0
