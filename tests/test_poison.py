"""An item that kills, hangs or fills its worker costs only itself, whatever the way; real kills, hangs and allocations."""

import ctypes
import gc
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import made
import psutil
import pytest

from diastole.cluster import driver, private_ray
from diastole.cluster.driver import Choice
from diastole.jobs import runs
from diastole.jobs.ledger import Ledger
from diastole.lake import delta, integrity
from diastole.lake.errors import ModelError
from diastole.lake.layout import Lake

NET = """
import ctypes, os, sys, time
import torch

def fill():
    kept = []
    while True:
        kept.append(torch.ones(2**24))

class Net(torch.nn.Module):
    ENDS = {
        1: lambda: sys.exit(3),                      # C
        2: lambda: os._exit(0),                      # D
        3: lambda: ctypes.string_at(0),              # E: a segmentation fault
        4: lambda: time.sleep(10**6),                # F
        5: lambda: ctypes.PyDLL(None).sleep(10**6),  # G: as F, and nobody else gets Python's lock
        6: fill,                                     # H
    }
    def __init__(self, **options):
        super().__init__()
        self.options, self.fc = options, torch.nn.Linear(20, 3)
        self.options.get("load") and sys.exit(1)
    def forward(self, x, lengths):
        for first in x[:, 0].argmax(-1).tolist():
            once = self.options.get("once")
            if once and first in self.ENDS:
                if os.path.exists(once):
                    continue
                open(once, "w").close()
            self.ENDS.get(first, lambda: None)()
        return self.fc(x)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (5000, 10**9))


def poisoned(lake, folder, poisons, count=10, **fields):
    """Proteins of which some, by their place, begin with a letter that the network does not survive; and the network."""
    sequences = made.proteins(count, low=20, high=20)
    for place, letter in poisons.items():
        sequences[place] = letter + sequences[place][1:]
    made.add_proteins(lake, folder / "src", sequences)
    files = {"net.pt": made.network(), "code.py": NET.encode()}
    said = {"task": "residues", "runtime": "python", "network": "code.py:Net", "classes": ["H", "E", "C"]}
    said |= {"inputs": {"input": {"modality": ["protein"], "alphabet": made.LETTERS}}}
    made.add_model(lake, files, **said | {"options": {"alphabet": made.LETTERS}, "batch": 4096} | fields)


def failed(lake):
    return {name: code for name, code in made.codes(lake).items() if code}


def used_gb():
    """By this process, of its own, without what its allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


ENDS = {
    "C": {"model_error"},
    "D": {"worker_died"},
    "E": {"worker_died"},
    "F": {"worker_hung"},
    "G": {"worker_hung"},
    "H": {
        "out_of_memory",
        "worker_died",
    },  # the worker may die of it: memory is missing to whoever wants some just then
}


@pytest.mark.fault(1, 4, 5, 15, 17)
@pytest.mark.parametrize(
    ("letters", "units"), [("EFH", 1), pytest.param("CDEFGH", 3, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_items_that_end_fill_or_hang_their_workers_fail_alone_and_all_others_are_scored(
    lake, tmp_path, monkeypatch, letters, units
):
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (1700 * units, 10**9))
    poisoned(lake, tmp_path, {3 * n + 1: letter for n, letter in enumerate(letters)}, count=20)
    resources = {"workers": 2, "attempts": 1, "deadline_s": 3.0, "worker_memory_gb": 1.5}
    with private_ray.private_ray(2):
        outcome = made.run(lake, resources=resources)
    found = failed(lake)
    assert set(found) == {f"p{3 * n + 1}" for n in range(len(letters))}
    assert all(found[f"p{3 * n + 1}"] in ENDS[letter] for n, letter in enumerate(letters)), found
    assert (outcome.scored, outcome.failed) == (20 - len(letters), len(letters))
    made.assert_each_once(lake, 20)
    row = made.by_name(lake)[f"p{3 * letters.index('F') + 1}"]
    assert f"diastole run JOB --only {row['item_id']} --retry --workers 0" in row["error"]


@pytest.mark.fault(4)
def test_sys_exit_in_a_network_ends_neither_this_process_nor_the_run(lake, tmp_path):
    poisoned(lake, tmp_path, {3: "C"})
    outcome = made.run(lake)
    assert (outcome.scored, failed(lake)) == (9, {"p3": "model_error"})


@pytest.mark.fault(4)
def test_sys_exit_once_costs_nothing(lake, tmp_path):
    poisoned(lake, tmp_path, {3: "C"}, network_options={"once": str(tmp_path / "flag")})
    assert made.run(lake).scored == 10
    assert (tmp_path / "flag").exists()


@pytest.mark.fault(6)
def test_sys_exit_as_a_network_is_built_stops_the_run_with_the_reason(lake, tmp_path):
    poisoned(lake, tmp_path, {}, network_options={"load": 1})
    with pytest.raises(ModelError, match=r"cannot be built with its network_options: SystemExit"):
        made.run(lake)
    assert made.table(lake) == []


@pytest.mark.fault(15)
@pytest.mark.parametrize("threads", [1, 3])
def test_an_item_that_takes_all_memory_is_out_of_memory_alone_and_none_of_it_stays_taken(lake, tmp_path, threads):
    poisoned(lake, tmp_path, {5: "H", 12: "H"}, count=60)
    # In a process of its own: others' libraries may end one that gets no memory
    said = [str(Path(__file__).parent), lake.store.root, str(threads)]
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_poison; test_poison.memory_is_taken(*sys.argv[2:])"
    done = subprocess.run([sys.executable, "-c", code, *said], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def memory_is_taken(root, threads):
    lake = Lake.open(root)
    made.run(lake, Choice(limit=1), name="before", output="before")  # what is loaded at first use is loaded
    before, limits = used_gb(), resource.getrlimit(resource.RLIMIT_DATA)
    outcome = made.run(lake, resources={"worker_memory_gb": before + 0.5, "threads": int(threads)})
    assert (outcome.scored, failed(lake)) == (58, {"p5": "out_of_memory", "p12": "out_of_memory"})
    assert used_gb() < before + 0.3
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits


@pytest.mark.slow
@pytest.mark.fault(17)
def test_a_hang_without_workers_ends_the_process_and_the_same_command_finds_the_item(lake, tmp_path):
    poisoned(lake, tmp_path, {1: "F"}, count=2)
    file = made.job_file(tmp_path, resources={"attempts": 1, "deadline_s": 2.0})
    hangs = 0
    while (done := made.cli(lake, "run", file, "--json")).returncode == 3:
        assert "for 2 s (deadline_s), so this process ends; the same command goes on" in done.stderr
        assert made.table(lake) == []
        hangs += 1
        assert hangs < 5
    assert done.returncode == 0, done.stderr
    assert failed(lake) == {"p1": "worker_hung"}
    assert hangs == 3  # beside another, alone with it, and alone
    made.assert_each_once(lake, 2)


@pytest.mark.slow
@pytest.mark.fault(4, 5, 17)
@pytest.mark.parametrize(("letter", "code"), [("D", 0), ("E", -signal.SIGSEGV), ("G", 1)])
def test_without_workers_what_ends_the_process_at_once_or_holds_pythons_lock_is_found_too(lake, tmp_path, letter, code):
    poisoned(lake, tmp_path, {1: letter}, count=2)
    file = made.job_file(tmp_path, resources={"attempts": 1, "deadline_s": 2.0})
    ends = 0
    while not (done := made.cli(lake, "run", file, "--json")).stdout:
        assert done.returncode == code
        ends += 1
        assert ends < 5
    assert failed(lake) == {"p1": "worker_died"}
    made.assert_each_once(lake, 2)


WORKER = """
import pickle, sys
from diastole.workers.worker import open_engine
with open(sys.argv[3], "rb") as file:
    shard = pickle.load(file)
for receipt in open_engine(sys.argv[1], sys.argv[2], 1).work(iter([shard])):
    print(receipt.attempt)
"""


@pytest.mark.fault(3, 47)
def test_a_worker_that_wakes_after_the_commit_changes_nothing(lake, tmp_path):
    """It slept between its part file and its receipt; nobody could end it."""
    poisoned(lake, tmp_path, {})
    plan, _, _ = driver.plan_job(lake, made.job(), Choice())
    runs.start(lake, plan)
    (tmp_path / "shard").write_bytes(pickle.dumps(Ledger(lake, plan, in_process=False).take()))
    line = [sys.executable, "-c", WORKER, lake.store.root, plan.run_id, str(tmp_path / "shard")]
    env = {**os.environ, "DIASTOLE_CRASH": f"pause@after-part:{tmp_path / 'flag'}"}
    sleeper = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED)
        outcome = made.run(lake)
        assert (outcome.run_id, outcome.scored) == (plan.run_id, 10)
        committed = sorted(map(str, made.table(lake)))
        os.kill(sleeper.pid, signal.SIGCONT)
        said, _ = sleeper.communicate(timeout=60)
    finally:
        sleeper.kill()
    assert (sleeper.returncode, said.split()) == (0, ["2"])  # the receipt of the second attempt is the one that counts
    assert sorted(map(str, made.table(lake))) == committed
    parts = {path.name for path in lake.store.path("predictions/o").rglob(f"{plan.run_id}-00000-*.parquet")}
    assert parts == {f"{plan.run_id}-00000-{number}.parquet" for number in (1, 2)}
    assert not any(uri.endswith("-00000-1.parquet") for uri in delta.open_table(lake, "predictions/o").file_uris())
    assert integrity.check(lake, deep=True) == []


@pytest.mark.slow
@pytest.mark.fault(47)
def test_a_worker_on_ray_that_wakes_after_its_shard_was_redone_leaves_an_orphan(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(120, low=40, high=80))
    made.residues(lake, options={"pause": 0.7}, batch=2**16)
    line, env = made.command(lake, "run", made.job_file(tmp_path, resources={"workers": 2}), "--json")
    env |= {"DIASTOLE_CRASH": f"pause@after-part:{tmp_path / 'flag'}", "DIASTOLE_LATE_SECONDS": "0.5"}
    running = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for((tmp_path / "flag").exists)
        family = psutil.Process(running.pid).children(recursive=True)
        [sleeper] = wait_for(lambda: [p for p in family if p.is_running() and p.status() == psutil.STATUS_STOPPED])
        written, done = lake.store.path("predictions/o"), lake.store.path("runs")
        # Its shard is the one that has a part, and a second one once another has redone it.
        twice = wait_for(lambda: [s for s, parts in parts_of(written).items() if len(parts) == 2])
        wait_for(lambda: list(done.glob(f"*/receipts/{twice[0]}.json")))
        sleeper.resume()
        wait_for(lambda: sleeper.is_running() and sleeper.status() != psutil.STATUS_STOPPED)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0, err
    assert (json.loads(out)["scored"], json.loads(out)["failed"]) == (120, 0)
    made.assert_each_once(lake, 120)
    assert len(parts_of(written)[twice[0]]) == 2
    assert integrity.check(lake, deep=True) == []


def parts_of(folder):
    """Item parts on the disk, by shard."""
    found = {}
    for path in folder.rglob("level=item/*/*-*-*.parquet"):
        found.setdefault(path.stem.split("-")[1], []).append(path)
    return found


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that point"
        time.sleep(0.02)
    return found
