"""Estimates: a probe leaves no trace, and a run is held to what was said of it."""

import inspect
import json

import made
import pytest

from diastole.cluster import driver
from diastole.cluster.estimate import compared, estimate, read_bytes, said
from diastole.jobs import runs
from diastole.lake.errors import EnvironmentFailure, ModelError
from diastole.lake.store import Store
from diastole.workers.aside import Aside, aside
from diastole.workers.probe import spread


@pytest.fixture
def proteins(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(60, low=400, high=900))
    made.residues(lake)
    return lake


def files(lake):
    return {path.relative_to(lake.store.local).as_posix() for path in lake.store.local.rglob("*") if path.is_file()}


def planned(lake, **fields):
    return driver.plan_job(lake, made.job(**fields), driver.Choice())[0]


def test_an_estimate_writes_only_itself_and_the_run_is_held_to_it(proteins):
    before = files(proteins)
    job = made.job(resources={"price_per_hour": 3.0, "currency": "EUR"})
    plan = driver.plan_job(proteins, job, driver.Choice())[0]
    found = estimate(proteins, plan, job, 1)
    assert files(proteins) - before == {f"runs/{plan.run_id}/estimate.json"}
    assert found["seconds_low"] < found["seconds"] < found["seconds_high"]
    assert found["gpu_hours"] == 0.0
    assert found["price"] == pytest.approx((found["seconds"] + found["startup_seconds"]) / 3600 * 3.0, abs=1e-4)
    assert found["memory_bytes"] > 2**26
    assert "EUR" in said(found)[0]
    outcome = driver.run_job(proteins, job)
    record = runs.read_record(proteins, outcome.run_id)
    assert record["predicted"] == found
    assert record["actual_to_predicted"] == round(record["actual"]["seconds"] / found["seconds"], 3)
    made.assert_each_once(proteins, 60)


def test_bytes_to_read_are_those_of_the_files(proteins):
    plan = planned(proteins)
    packs = {entry["array"] for unit in plan.units["inputs"].to_pylist() for entry in unit}
    assert read_bytes(proteins, plan) == sum(proteins.store.size(path) for path in packs)


def test_what_is_refused_costs_nothing(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", ["AAXX", "AXA"])
    made.residues(lake)
    assert estimate(lake, planned(lake), made.job(), 1) is None


def test_a_probe_whose_network_dies_says_so(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", ["MAAA"])
    made.residues(lake)
    with pytest.raises(EnvironmentFailure, match="ended by signal 9"):
        estimate(lake, planned(lake), made.job(), 1)


def test_a_probe_of_a_model_that_is_not_allowed_says_so(proteins, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    with pytest.raises(ModelError, match="brings code of its own"):
        estimate(proteins, planned(proteins), made.job(), 1)


def test_a_probe_cannot_write_into_the_lake(proteins, tmp_path):
    beside = aside(proteins, tmp_path / "aside")
    with pytest.raises(EnvironmentFailure, match="write into the lake"):
        beside.store.put("datasets/d/x", b"")
    beside.store.put("runs/x/y", b"1")
    assert proteins.store.size("runs/x/y") is None
    assert beside.store.get("runs/x/y") == b"1"


def test_a_probes_store_has_each_method_of_a_store():
    own = {name: value for name, value in vars(Store).items() if not name.startswith("_") and callable(value)}
    own.pop("reading")  # which only names what fails
    for name, method in own.items():
        assert inspect.signature(vars(Aside)[name]) == inspect.signature(method), name


def test_a_probe_takes_units_from_all_over_the_plan(proteins):
    plan = planned(proteins)
    shards = spread(plan)
    assert sorted(u for table in shards for u in table["unit"].to_pylist()) == list(range(60))
    first = [int(table["shard"][0].as_py()) for table in shards][:4]
    assert len(plan.shards) > 8
    assert len(first) == 4
    assert min(first) < len(plan.shards) / 4 < len(plan.shards) * 3 / 4 <= max(first) + 1


def test_a_resumed_run_has_no_ratio():
    predicted = {"seconds": 2.0}
    assert compared(predicted, {"seconds": 3.0}, resumed=False)["actual_to_predicted"] == 1.5
    assert compared(predicted, {"seconds": 3.0}, resumed=True)["actual_to_predicted"] is None
    assert compared(None, {"seconds": 3.0}, resumed=False) == {}


def test_the_command_says_what_to_expect(proteins, tmp_path):
    done = made.cli(proteins, "plan", made.job_file(tmp_path), "--estimate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["estimate"]["units_probed"] == 60
