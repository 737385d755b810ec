"""Nodes of a Ray that die, hang, are drained, lose their head: real raylets on this machine (ray_nodes.py), real runs.

The nodes look for each other every half a second here, as docs/ray.md has it for those who want to know soon.
"""

import json
import os
import signal
import time
from pathlib import Path

import made
import psutil
import pytest
from ray_nodes import Nodes

from diastole.jobs import runs

RECOVERS = 30.0
"""Seconds, of which a loaded machine takes most; docs/ray.md has what was measured."""


@pytest.fixture
def cohort(lake, tmp_path, monkeypatch):
    """180 proteins in 12 shards, of a second each."""
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)
    made.add_proteins(lake, tmp_path / "src", made.proteins(180, low=40, high=80))
    made.residues(lake, batch=2**16, options={"pause": 1.0})
    return lake


@pytest.fixture
def file(tmp_path):
    return made.job_file(tmp_path, resources={"workers": 2, "attempts": 1})


def receipts(lake):
    return len(list(lake.store.local.glob("runs/*/receipts/*")))


def wait_for_receipts(lake, count, driver, seconds=90.0):
    """Wait for so many more. How long it took."""
    begun, before = time.monotonic(), receipts(lake)
    while receipts(lake) < before + count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() - begun < seconds, "no receipt came"
        time.sleep(0.05)
    return time.monotonic() - begun


def with_a_worker(nodes):
    """Nodes on which an actor of ours is, in an order that the seed gives."""
    workers = set(nodes.workers())
    found = [node for node in nodes.nodes if workers & set(nodes.processes(node))]
    return nodes.chosen.sample(found, len(found))


def whole(lake, driver, planned=180):
    """A run came to its end, and each unit is there once, scored."""
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    assert (json.loads(out)["scored"], json.loads(out)["failed"]) == (planned, 0)
    made.assert_each_once(lake, planned)


def gone(processes, seconds):
    """Those that are still there after so long."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def ended_early(lake):
    """How the attempts that have no receipt ended."""
    return sorted(path.name.rsplit(".", 1)[1] for path in lake.store.local.glob("runs/*/attempts/*.*.*"))


@pytest.mark.slow
@pytest.mark.fault(7, 47)
def test_nodes_that_are_lost_or_hang_more_often_than_a_shard_may_fail_are_held_against_no_item(cohort, tmp_path):
    file = made.job_file(tmp_path, resources={"workers": 1, "attempts": 1})
    with Nodes(1, seed=7) as nodes:
        driver = nodes.drive("run", file, "--json")
        wait_for_receipts(cohort, 1, driver)
        hung = []
        for number in [signal.SIGSTOP, signal.SIGKILL, signal.SIGKILL]:
            nodes.nodes.append(nodes.add())
            [victim] = with_a_worker(nodes)
            processes = nodes.signal(victim, number)
            nodes.nodes.remove(victim)
            hung += processes if number == signal.SIGSTOP else []
            wait_for_receipts(cohort, 1, driver, RECOVERS)
        whole(cohort, driver)
        assert "died" not in ended_early(cohort)
        assert len(ended_early(cohort)) >= 3  # attempts = 1, and each of the nodes took one with it
        rows, files = made.table(cohort), sorted(cohort.store.local.glob("predictions/o/**/*"))
        for process in hung:
            process.send_signal(signal.SIGCONT)  # it wakes after its shard was redone
        assert gone(hung, 20) == []
    assert made.table(cohort) == rows
    assert {path for path in files if path.is_file()} <= set(cohort.store.local.glob("predictions/o/**/*"))
    assert made.cli(cohort, "check", "--deep").returncode == 0


@pytest.mark.slow
@pytest.mark.fault(9, 10)
def test_a_ray_without_room_and_one_without_its_head_end_the_run_in_time_and_it_resumes(cohort, file):
    with Nodes(0, DIASTOLE_HEAD_SECONDS="3") as nodes:
        _, err = (driver := nodes.drive("run", file, DIASTOLE_START_SECONDS="2")).communicate(timeout=60)
        assert driver.returncode == 3
        assert "no worker started within 2 s: each needs 1 CPU; free is nothing" in err
        assert "Traceback" not in err
        nodes.nodes.append(nodes.add())
        driver = nodes.drive("run", file)
        wait_for_receipts(cohort, 2, driver)
        workers = nodes.workers()
        assert len(workers) == 1
        begun = time.monotonic()
        nodes.kill_gcs()
        _, err = driver.communicate(timeout=40)
        assert driver.returncode == 3, err
        assert "the head of Ray has been gone for 3 s" in err
        assert "Traceback" not in err
        assert time.monotonic() - begun < 30
        assert gone(workers, 20) == []
        kept = receipts(cohort)
    assert 2 <= kept < 12
    assert made.table(cohort) == []
    again = made.run(cohort)
    assert (again.resumed, again.scored, again.failed) == (True, 180, 0)
    made.assert_each_once(cohort, 180)


@pytest.mark.slow
@pytest.mark.fault(8)
def test_a_node_that_is_drained_and_then_taken_away_costs_no_item_an_attempt(cohort, file):
    with Nodes(3, seed=8) as nodes:
        driver = nodes.drive("run", file, "--json")
        wait_for_receipts(cohort, 1, driver)
        victim = with_a_worker(nodes)[0]
        raylet = psutil.Process(victim["raylet"])
        assert nodes.drain(victim, 2.0)
        assert gone([raylet], 15) == []  # Ray itself ends it then
        whole(cohort, driver)
        assert "died" not in ended_early(cohort)


@pytest.mark.slow
@pytest.mark.fault(1, 11)
def test_on_a_ray_of_several_nodes_killed_workers_and_a_killed_driver_lose_nothing(cohort, tmp_path):
    file = made.job_file(tmp_path, resources={"workers": 2, "attempts": 3})
    with Nodes(2, seed=1) as nodes:
        driver = nodes.drive("run", file, "--json")
        wait_for_receipts(cohort, 1, driver)
        nodes.chosen.choice(nodes.workers()).kill()
        wait_for_receipts(cohort, 4, driver)
        paused = nodes.chosen.choice(nodes.workers())
        paused.suspend()
        wait_for_receipts(cohort, 2, driver)
        paused.resume()
        workers = nodes.workers()
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        assert gone(workers, 10) == []
        whole(cohort, nodes.drive("run", file, "--json"))


@pytest.mark.slow
@pytest.mark.fault(18)
def test_slow_rpcs_change_nothing_even_where_a_worker_dies(cohort, tmp_path):
    file = made.job_file(tmp_path, resources={"workers": 2, "attempts": 3})
    calls = [
        "CoreWorkerService.grpc_client.PushTask",
        "CoreWorkerService.grpc_server.PushTask",
        "NodeManagerService.grpc_server.RequestWorkerLease",
        "ActorInfoGcsService.grpc_server.RegisterActor",
        "ActorInfoGcsService.grpc_server.CreateActor",
        "ActorInfoGcsService.grpc_server.KillActorViaGcs",
        "ControlPlanePubSubGcsService.grpc_server.GcsSubscriberPoll",
    ]
    with Nodes(2, RAY_testing_asio_delay_us=",".join(f"{call}=20000:500000" for call in calls)) as nodes:
        driver = nodes.drive("run", file, "--json")
        wait_for_receipts(cohort, 2, driver)
        nodes.chosen.choice(nodes.workers()).kill()
        out, err = driver.communicate(timeout=120)
        assert driver.returncode == 0, err
        assert "RAY_testing_asio_delay_us is set to" in err
        assert json.loads(out)["scored"] == 180
    made.assert_each_once(cohort, 180)


@pytest.mark.slow
@pytest.mark.fault(19)
def test_calls_and_answers_that_are_dropped_lose_and_double_nothing(cohort, file):
    calls = [
        "CoreWorkerService.grpc_client.PushTask",
        "NodeManagerService.grpc_client.RequestWorkerLease",
        "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor",
        "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
        "ray::rpc::ActorInfoGcsService.grpc_client.KillActorViaGcs",
    ]
    some = {"num_failures": 6, "req_failure_prob": 10, "resp_failure_prob": 10, "num_lower_bound_resp_failures": 1}
    failures = json.dumps(dict.fromkeys(calls, some))
    with Nodes(2, RAY_testing_rpc_failure=failures) as nodes:
        whole(cohort, nodes.drive("run", file, "--json"))
        assert "died" not in ended_early(cohort)
        logs = Path(nodes.head["session"], "logs").glob("*.log")
        assert any("RpcFailureManager seed" in path.read_text(errors="replace") for path in logs)


@pytest.mark.slow
@pytest.mark.fault(12)
def test_two_drivers_of_one_run_leave_each_unit_once(cohort, file):
    with Nodes(3, seed=12) as nodes:
        both = [nodes.drive("run", file, "--json") for _ in range(2)]
        ends = [driver.communicate(timeout=120) for driver in both]
        assert 0 in [driver.returncode for driver in both], ends
        assert all("Traceback" not in err for _, err in ends)
    made.assert_each_once(cohort, 180)
    assert len(runs.list_runs(cohort)) == 1
