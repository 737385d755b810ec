import io
import random
import threading
import time

import made
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from diastole.cluster import driver
from diastole.jobs import ledger as ledgers
from diastole.jobs import receipts, runs
from diastole.jobs.ledger import Ledger
from diastole.lake import items
from diastole.lake.errors import EnvironmentFailure, ModelError
from diastole.workers import engine as engines
from diastole.workers import parts
from diastole.workers.queue import ByteQueue
from diastole.workers.worker import open_engine


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small shards, and no waiting after a failure."""
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))
    monkeypatch.setattr(ledgers, "PAUSE", 0.0)


def engine_threads():
    return [t for t in threading.enumerate() if t.name in ("diastole-read", "diastole-write")]


def planned(lake, **fields):
    plan, _, _ = driver.plan_job(lake, made.job(**fields), driver.Choice())
    runs.start(lake, plan)
    return plan


def probabilities(lake, plan, shards):
    """item → bytes of its probabilities, from the parts of these shards."""
    engine = open_engine(lake.store.root, plan.run_id, 1)
    found = {}
    for receipt in engine.work(iter(shards)):
        for part in receipt.parts:
            for row in pq.read_table(lake.store.path(f"predictions/o/{part.path}"), partitioning=None).to_pylist():
                found[row["item_id"]] = np.array(row["probabilities"], np.float32).tobytes()
    return found


def taken(lake, plan):
    ledger, shards = Ledger(lake, plan, in_process=True), []
    while (shard := ledger.take()) is not None:
        shards.append(shard)
    return shards


def test_results_do_not_depend_on_the_order_of_shards_or_on_what_else_is_in_them(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(60))
    made.residues(lake)
    plan = planned(lake)
    shards = taken(lake, plan)
    assert len(shards) > 8
    straight = probabilities(lake, plan, shards)
    for path, _ in list(lake.store.list(f"runs/{plan.run_id}/receipts")):
        lake.store.delete(path)
    random.Random(1).shuffle(shards)
    assert probabilities(lake, plan, shards) == straight
    for path, _ in list(lake.store.list(f"runs/{plan.run_id}/receipts")):
        lake.store.delete(path)
    assert probabilities(lake, plan, shards[3:4]) == {
        unit["item_id"]: straight[unit["item_id"]] for unit in shards[3].rows
    }


def test_neighbours_in_a_batch_change_a_result_by_less_than_the_stated_tolerance(lake, tmp_path):
    sequences = made.proteins(30, low=5, high=300)
    made.add_proteins(lake, tmp_path / "src", sequences)
    manifest = made.residues(lake)
    made.run(lake, output="together")
    made.run(lake, output="alone", name="alone", resources={"batch": 1})
    together, alone = made.scores(lake, "together"), made.scores(lake, "alone")
    for name in together:
        assert np.allclose(together[name], alone[name], rtol=0, atol=manifest.tolerance)
    weights = torch.load(io.BytesIO(made.network()))
    for number, sequence in enumerate(sequences):  # and it is what the network says of it
        x = torch.nn.functional.one_hot(torch.tensor([made.LETTERS.index(c) for c in sequence]), 20).float()
        expected = (x @ weights["fc.weight"].T + weights["fc.bias"]).softmax(-1)
        assert np.allclose(together[f"p{number}"], expected, rtol=0, atol=manifest.tolerance)


@pytest.mark.fault(39)
def test_nan_and_exceptions_of_the_network_cost_only_their_item(lake, tmp_path):
    sequences = made.proteins(20)
    sequences[3] = "W" + sequences[3]
    sequences[7] = "Y" + sequences[7]
    sequences[9] = "V" + sequences[9]
    made.add_proteins(lake, tmp_path / "src", sequences)
    made.residues(lake)
    outcome = made.run(lake)
    assert (outcome.scored, outcome.failed) == (17, 3)
    failed = {name: code for name, code in made.codes(lake).items() if code}
    assert failed == {"p3": "non_finite_output", "p7": "model_error", "p9": "non_finite_output"}
    row = made.by_name(lake)["p3"]
    assert row["probabilities"] is None
    assert row["status"] == "failed"
    assert "IndexError in code.py, line " in made.by_name(lake)["p7"]["error"]


@pytest.mark.fault(16)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(11))
    made.residues(lake, options={"most": 2})
    assert made.run(lake).scored == 11


@pytest.mark.fault(16)
def test_an_item_that_does_not_fit_alone_is_out_of_memory(lake, tmp_path, monkeypatch):
    made.add_proteins(lake, tmp_path / "src", made.proteins(5))
    made.residues(lake, options={"most": -1})  # no batch is small enough
    assert made.run(lake).failed == 5
    assert set(made.codes(lake).values()) == {"out_of_memory"}


def test_a_unit_that_the_contract_refuses_is_never_computed(lake, tmp_path):
    sequences = made.proteins(6)
    sequences[2] = "M" * 50  # it would kill the process
    made.add_proteins(lake, tmp_path / "src", sequences)
    made.residues(lake, inputs={"input": {"modality": ["protein"], "length": {"max": 45}}})
    assert made.run(lake).failed == 1
    assert made.codes(lake)["p2"] == "wrong_length"


def test_a_bug_of_a_task_on_one_item_costs_only_that_item(lake, tmp_path, monkeypatch):
    from diastole.workers.tasks.residues import Residues

    whole = Residues.finish
    monkeypatch.setattr(Residues, "finish", lambda self, state: whole(self, state if len(state.codes) != 77 else None))
    made.add_proteins(lake, tmp_path / "src", [*made.proteins(4), "A" * 77])
    made.residues(lake)
    made.run(lake)
    assert {n: c for n, c in made.codes(lake).items() if c} == {"p4": "task_error"}


@pytest.mark.fault(6)
def test_a_changed_model_file_stops_the_run_before_any_score(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(3))
    made.residues(lake)
    lake.store.put("models/m/1/net.pt", made.network(seed=1))
    with pytest.raises(ModelError, match="not the file that was pinned"):
        made.run(lake)
    assert made.table(lake) == []


def test_code_of_a_model_runs_only_when_it_is_allowed_by_digest(lake, tmp_path, monkeypatch):
    made.add_proteins(lake, tmp_path / "src", made.proteins(3))
    manifest = made.residues(lake)
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", f"m@1:{'0' * 32}")
    with pytest.raises(ModelError, match=f"DIASTOLE_ALLOW_CODE=m@1:{manifest.model_digest}"):
        made.run(lake)


def test_a_damaged_pack_fails_its_items_and_no_other(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "a", made.proteins(5), prefix="a")
    made.add_proteins(lake, tmp_path / "b", made.proteins(5, seed=1), prefix="b")
    made.residues(lake)
    packs = {i["name"][0]: i["array"] for i in items.read_items(lake, "d").to_pylist() if i["state"] == "live"}
    path = lake.store.path(packs["b"])
    data = bytearray(path.read_bytes())
    letters = pq.read_metadata(path).row_group(0).column(1)
    data[letters.data_page_offset + letters.total_compressed_size - 5] ^= 1
    path.write_bytes(data)
    made.run(lake)
    codes = made.codes(lake)
    assert {codes[f"b{n}"] for n in range(5)} <= {"pack_unreadable", "digest_mismatch"}
    assert {codes[f"a{n}"] for n in range(5)} == {None}


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_environment_that_fails_for_a_while_costs_nothing(lake, tmp_path, monkeypatch, stage):
    made.add_proteins(lake, tmp_path / "src", made.proteins(30))
    made.residues(lake)
    fail_at(monkeypatch, stage, times=3)
    outcome = made.run(lake)
    assert (outcome.scored, outcome.failed) == (30, 0)
    made.assert_each_once(lake, 30)
    assert not engine_threads()


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_environment_that_stays_broken_stops_the_run_with_its_reason_and_no_thread_hangs(
    lake, tmp_path, monkeypatch, stage
):
    made.add_proteins(lake, tmp_path / "src", made.proteins(30))
    made.residues(lake)
    with monkeypatch.context() as broken:
        fail_at(broken, stage, times=10**6)
        begun = time.monotonic()
        with pytest.raises(EnvironmentFailure, match="the disk is gone"):
            made.run(lake)
        assert time.monotonic() - begun < 20
    assert not engine_threads()
    assert made.table(lake) == []
    assert made.run(lake, resources={"attempts": 1}).failed == 0  # none of it was held against a shard


def fail_at(monkeypatch, stage, times):
    left = [times]

    def failing(whole):
        def attempt(*arguments, **named):
            if left[0] > 0:
                left[0] -= 1
                raise EnvironmentFailure("the disk is gone")
            return whole(*arguments, **named)

        return attempt

    if stage == "read":
        monkeypatch.setattr(engines.Reader, "read", failing(engines.Reader.read))
    elif stage == "compute":
        monkeypatch.setattr(receipts, "mark_attempt", failing(receipts.mark_attempt))
    else:
        monkeypatch.setattr(parts, "write_part", failing(parts.write_part))


def test_queues_hold_no_more_than_their_bound_and_let_the_oversized_through(lake, tmp_path, monkeypatch):
    queues = []

    class Watched(ByteQueue):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            queues.append(self)

    monkeypatch.setattr(engines, "ByteQueue", Watched)
    sequences = [*made.proteins(300, low=200, high=200), "A" * 5000]
    made.add_proteins(lake, tmp_path / "src", sequences)
    made.residues(lake)
    bound = 3000 / 2**30
    outcome = made.run(lake, resources={"memory_gb": 3 * bound})
    assert outcome.scored == 301
    assert [queue.limit for queue in queues] == [pytest.approx(3000)] * 2
    assert 2500 < queues[0].peak <= 10000  # the oversized one came in alone, with its window
