"""The same promises with workers on Ray. Runs in this process share one Ray; kills go through the command line."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import made
import numpy as np
import psutil
import published
import pytest

from diastole.cluster import private_ray
from diastole.jobs import runs
from diastole.lake.errors import EnvironmentFailure, ModelError


@pytest.fixture(scope="module")
def shared_ray():
    """One Ray with four slots. Ray is imported after its token is set, so nowhere at the top."""
    with private_ray.private_ray(4):
        yield


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


@pytest.fixture
def cohort(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(120, low=40, high=80))
    return lake


@pytest.fixture
def short():
    """Ray needs a folder with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def test_results_are_bit_identical_for_any_number_of_workers(lake, tmp_path, monkeypatch, shared_ray):
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (1000, 10**9))
    made.add_proteins(lake, tmp_path / "src", made.proteins(40, low=50, high=400))
    published.fetch(lake, "predictdssp")
    model = {"model": "predictdssp"}
    given = {}
    for workers in (0, 1, 2, 4):
        output = f"w{workers}"
        chosen = {"workers": workers, "threads": 1}
        outcome = made.run(lake, name=output, output=output, resources=chosen, **model)
        assert (outcome.scored, outcome.failed) == (40, 0)
        given[workers] = {r["item_id"]: r["probabilities"] for r in made.table(lake, output=output)}
    assert given[1] == given[0]
    assert given[2] == given[0]
    assert given[4] == given[0]
    made.run(lake, name="t2", output="t2", resources={"threads": 2}, **model)
    assert all_slots_are_free()
    for row in made.table(lake, output="t2"):  # other threads: the model's tolerance
        assert np.allclose(row["probabilities"], given[0][row["item_id"]], rtol=0, atol=1e-5)


@pytest.mark.fault(6)
def test_a_model_that_cannot_be_loaded_stops_the_run_at_once_with_the_reason(cohort, shared_ray):
    published.fetch(cohort, "predictdssp")
    cohort.store.put("models/predictdssp/1.3.1/dssp.pt", b"something else")
    begun = time.monotonic()
    with pytest.raises(ModelError, match="not the file that was pinned"):
        made.run(cohort, model="predictdssp", resources={"workers": 2})
    assert time.monotonic() - begun < 30
    assert made.table(cohort) == []
    assert all_slots_are_free()


@pytest.mark.fault(9)
def test_what_ray_does_not_have_is_an_error_that_names_it(cohort, shared_ray, monkeypatch):
    from diastole.cluster import actors

    made.residues(cohort)
    monkeypatch.setattr(actors, "START_SECONDS", 1.0)
    whole = actors.Crew.__init__

    def greedy(self, lake, plan, *arguments):
        object.__setattr__(plan, "device", "cuda")
        whole(self, lake, plan, *arguments)

    monkeypatch.setattr(actors.Crew, "__init__", greedy)
    with pytest.raises(EnvironmentFailure, match="no worker started within 1 s: each needs 1 CPU, 1 GPU"):
        made.run(cohort, resources={"workers": 1})
    assert all_slots_are_free()


def test_workers_ask_ray_for_their_share_of_a_gpu(cohort, shared_ray):
    from diastole.cluster import driver
    from diastole.cluster.actors import gpus_per_worker

    made.residues(cohort)
    plan, _, _ = driver.plan_job(cohort, made.job(resources={"gpus_per_worker": 0.5}), driver.Choice())
    assert gpus_per_worker(plan) == 0.0  # there is none here
    object.__setattr__(plan, "device", "cuda")
    assert gpus_per_worker(plan) == 0.5


def all_slots_are_free():
    """No actor outlives its run."""
    import ray

    wait_for(lambda: ray.available_resources().get("CPU") == 4.0, 20)
    return True


@pytest.mark.fault(1, 2, 3)
@pytest.mark.parametrize(
    "point", ["mid-shard", *(pytest.param(point, marks=pytest.mark.slow) for point in ("after-part", "after-receipt"))]
)
@pytest.mark.fault(1, 2, 3)
def test_a_worker_that_is_killed_loses_no_item(cohort, tmp_path, short, point):
    made.residues(cohort, batch=2**16)
    flag = tmp_path / "flag"
    file = made.job_file(tmp_path, resources={"workers": 2, "attempts": 2})
    done = made.cli(cohort, "run", file, "--json", DIASTOLE_CRASH=f"{point}:{flag}", TMPDIR=short)
    assert done.returncode == 0, done.stderr
    assert list(Path(short).iterdir()) == []  # Ray's folder is gone with it
    assert flag.exists()
    assert (json.loads(done.stdout)["scored"], json.loads(done.stdout)["failed"]) == (120, 0)
    made.assert_each_once(cohort, 120)
    assert list(cohort.store.local.glob("runs/*/attempts/*.died")) or point == "after-receipt"


@pytest.mark.fault(11)
def test_a_driver_that_is_killed_leaves_no_process_and_its_run_is_finished_by_the_next(cohort, tmp_path):
    made.residues(cohort, options={"pause": 0.3}, batch=2**16)
    line, env = made.command(cohort, "run", made.job_file(tmp_path, resources={"workers": 2}))
    driver = subprocess.Popen(line, env=env, start_new_session=True)
    wait_for(lambda: list(cohort.store.local.glob("runs/*/receipts/*")))
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) > 4
    # Two agents of Ray, which have no model and no data, tell a Ray that is gone of its end for a minute, then end too.
    working = [process for process in family if "Agent" not in process.name()]
    assert {"raylet", "gcs_server"} <= {process.name() for process in working}
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert made.table(cohort) == []
    _, left = psutil.wait_procs(working, timeout=20)
    assert not left, [process.name() for process in left]
    [run] = runs.list_runs(cohort)
    done_before = len(list(cohort.store.list(f"runs/{run}/receipts")))
    outcome = made.run(cohort)
    assert outcome.resumed
    assert (outcome.run_id, outcome.failed) == (run, 0)
    assert done_before >= 1
    made.assert_each_once(cohort, 120)


@pytest.mark.slow
@pytest.mark.fault(5)
def test_an_item_that_kills_its_worker_costs_only_itself(lake, tmp_path):
    sequences = made.proteins(40, low=40, high=80)
    sequences[11] = "M" + sequences[11]
    made.add_proteins(lake, tmp_path / "src", sequences)
    made.residues(lake, batch=2**16)
    file = made.job_file(tmp_path, resources={"workers": 2, "attempts": 1})
    done = made.cli(lake, "run", file, "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["scored"], json.loads(done.stdout)["failed"]) == (39, 1)
    assert {n: c for n, c in made.codes(lake).items() if c} == {"p11": "worker_died"}
    made.assert_each_once(lake, 40)


@pytest.mark.slow
@pytest.mark.fault(47)
def test_a_run_does_not_wait_for_a_worker_that_has_stopped_and_leaves_none_behind(cohort, tmp_path, short):
    made.residues(cohort, batch=2**16)
    flag = tmp_path / "flag"
    line, env = made.command(cohort, "run", made.job_file(tmp_path, resources={"workers": 2}), "--json")
    env |= {"DIASTOLE_CRASH": f"pause@mid-shard:{flag}", "DIASTOLE_LATE_SECONDS": "0.5", "TMPDIR": short}
    driver = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    try:
        wait_for(flag.exists)
        family = [p for p in psutil.Process(driver.pid).children(recursive=True) if "Agent" not in p.name()]
        wait_for(lambda: psutil.STATUS_STOPPED in [process.status() for process in family])
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
    assert driver.returncode == 0, err
    assert (json.loads(out)["scored"], json.loads(out)["failed"]) == (120, 0)
    made.assert_each_once(cohort, 120)
    assert not left, [(process.name(), process.status()) for process in left]
    # The stopped one has begun a shard that another did too; neither is held against it.
    [run] = runs.list_runs(cohort)
    assert len(list(cohort.store.list(f"runs/{run}/attempts"))) > len(list(cohort.store.list(f"runs/{run}/receipts")))
    assert not list(cohort.store.local.glob("runs/*/attempts/*.died"))


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that point"
        time.sleep(0.02)
