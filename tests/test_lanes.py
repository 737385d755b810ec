"""Batches side by side, and the process that they run in."""

import ast
import subprocess
import sys
from concurrent.futures import Future

import made
import numpy as np
import pytest
from made import images

from diastole.cluster import driver
from diastole.jobs import runs
from diastole.jobs.ledger import Ledger
from diastole.jobs.task import Window
from diastole.lake import items
from diastole.workers import batches, engine
from diastole.workers.lanes import Ran
from diastole.workers.models.runtime import Networks
from diastole.workers.worker import open_engine

NET = """
import torch
class Net(torch.nn.Module):
    '''It meets its ends on images that begin with 201 (NaN), 202 (raises) or, in batches of more than `most`, on all.'''
    def __init__(self, most=0):
        super().__init__()
        self.most, self.fc = most, torch.nn.Linear(480, 3)
    def forward(self, x):
        if self.most and len(x) > self.most:
            raise torch.OutOfMemoryError(f"a batch of {len(x)}")
        first = x[:, 0, 0, 0]
        if (first == 202).any():
            raise IndexError("it knows no 202")
        return torch.where((first == 201)[:, None], torch.nan, self.fc(x.flatten(1) / 255))
"""


@pytest.fixture
def cohort(lake, tmp_path, monkeypatch):
    """Forty images in a pack, of which the fourth makes NaN and the eighth an exception."""
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    data = np.random.default_rng(0).integers(0, 200, (40, 20, 24)).astype(np.uint8)
    data[3, 0, 0], data[7, 0, 0] = 201, 202
    images(lake, tmp_path, data)
    return lake


def model(lake, **options):
    import torch

    torch.manual_seed(0)
    weights = made.saved(torch.nn.Linear(480, 3).state_dict(), "fc.")
    said = {"task": "classify", "runtime": "python", "network": "code.py:Net", "classes": ["a", "b", "c"], "batch": 8}
    said |= {"inputs": {"input": {"axes": "cyx"}}, "network_options": options}
    made.add_model(lake, {"net.pt": weights, "code.py": NET.encode()}, **said)


@pytest.mark.fault(39)
def test_nan_and_exceptions_of_the_network_cost_only_their_image_of_a_block(cohort):
    model(cohort)
    outcome = made.run(cohort)
    assert (outcome.scored, outcome.failed) == (38, 2)
    failed = {name: code for name, code in made.codes(cohort).items() if code}
    assert failed == {"a#3": "non_finite_output", "a#7": "model_error"}
    assert made.by_name(cohort)["a#3"]["probabilities"] is None
    made.assert_each_once(cohort, 40)


@pytest.mark.fault(16)
def test_a_block_that_does_not_fit_is_halved_until_it_does(cohort):
    model(cohort, most=3)
    assert made.run(cohort).scored == 38


@pytest.mark.fault(16)
def test_a_size_that_did_not_fit_is_not_tried_again(cohort, monkeypatch):
    model(cohort, most=3)
    tried, forward = [], Networks.forward
    monkeypatch.setattr(Networks, "forward", lambda self, step, x: tried.append(len(x["x"])) or forward(self, step, x))
    made.run(cohort)
    assert [tried.count(8), tried.count(4)] == [1, 1]
    assert sum(size > 3 for size in tried) == 2


@pytest.mark.fault(16)
def test_an_image_that_does_not_fit_alone_is_out_of_memory(cohort):
    model(cohort, most=-1)
    assert made.run(cohort).failed == 40
    assert set(made.codes(cohort).values()) == {"out_of_memory"}


@pytest.mark.parametrize("of", ["windows", "blocks"])
def test_results_are_bit_identical_whatever_the_number_of_lanes(cohort, tmp_path, of):
    if of == "windows":
        made.add_proteins(cohort, tmp_path / "src", made.proteins(200), dataset="p")
        made.residues(cohort, batch=300, name="r")
    else:
        model(cohort)
    found = []
    for threads in (1, 3):
        fields = {"dataset": "p", "model": "r"} if of == "windows" else {}
        made.run(cohort, output=f"o{threads}", name=f"j{threads}", resources={"threads": threads}, **fields)
        rows = made.table(cohort, output=f"o{threads}")
        found.append({row["item_id"]: str(row["probabilities"]) for row in rows})
    assert len(found[0]) == (200 if of == "windows" else 40)
    assert found[0] == found[1]


def test_more_threads_are_more_lanes_of_one_thread_each(cohort):
    model(cohort)
    plan, _, _ = driver.plan_job(cohort, made.job(), driver.Choice())
    runs.start(cohort, plan)
    engine = open_engine(cohort.store.root, plan.run_id, 3)
    assert engine.networks.lanes == 3
    shards = iter(Ledger(cohort, plan, in_process=True).take, None)
    assert sum(receipt.scored for receipt in engine.work(shards)) == 38
    assert items.read_items(cohort, "d").num_rows == 40


FAULTS = """
import resource, statistics, sys, threading
if sys.argv[1] == "prepared":
    from diastole.workers.process import prepare
    prepare()
import torch
torch.set_num_threads(1)
net, x = torch.nn.Sequential(torch.nn.Conv2d(1, 24, 3), torch.nn.ReLU()), torch.zeros(8, 1, 256, 256)
def batch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.inference_mode():
        net(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def lane():
    print(statistics.median([batch() for _ in range(13)]))  # the heap grows with the first few, and may once more
thread = threading.Thread(target=lane)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is what it is about")
def test_a_lane_does_not_fault_its_memory_in_anew_for_each_batch():
    faults = {
        how: float(
            subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout
        )
        for how in ("prepared", "plain")
    }
    assert faults["prepared"] < 100
    assert faults["plain"] > 10 * max(faults["prepared"], 100)  # 48 MB a layer, in pages of 4 kB


@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_never_taken_where_it_would_wait_for_a_lane(seed):
    """So the results of one shard do not wait for the lanes of another."""
    random, lanes = np.random.default_rng(seed), Slow()
    batcher = batches.Batcher(Counting(), lanes, limit=3, prepare=None)
    units, settled = [engine.OpenUnit({}, state=[]) for _ in range(40)], []
    waiting = list(units)
    while len(settled) < len(units):
        below = float(random.integers(1, 200)) if waiting else 0.0
        while not batcher.waits(below) and batcher.step(below):
            settled += batcher.settled()
        if batcher.waits(below) or random.random() < 0.5:
            lanes.end(int(random.integers(4)))
        elif waiting:
            batcher.place(waiting[0], Window(0, {}), np.zeros(8))
            batcher.whole(waiting.pop(0))
    assert settled == units


class Counting:
    def collect(self, state, step, window, outputs):
        state.append(outputs)


class Slow:
    """Lanes whose batches end when the test says so; to wait for one that has not ended is an error."""

    def __init__(self):
        self.pending = []

    def windows(self, step, ready):
        self.pending.append(Strict())
        self.pending[-1].count = len(ready)
        return self.pending[-1]

    def end(self, place):
        if self.pending:
            ended = self.pending.pop(min(place, len(self.pending) - 1))
            ended.set_result(Ran([{}] * ended.count, 0.0))


class Strict(Future):
    def result(self, timeout=None):
        assert self.done(), "it would have waited"
        return super().result(timeout)


def test_python_seldom_looks_for_cycles_where_batches_are_computed():
    script = "import gc; from diastole.workers.process import prepare; prepare(); import torch; print(gc.get_stats())"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    whole = ast.literal_eval(said)[2]["collections"]
    assert whole == 0, f"it walked {whole} times over all that torch's import left"


ARENAS = """
import ctypes, os, sys
from diastole.cluster import cli
assert cli.answer() == 0
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(2, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is what it is about")
@pytest.mark.parametrize("what", ["run", pytest.param("tune", marks=pytest.mark.slow)])
def test_no_thread_of_a_run_in_this_process_has_an_arena_of_its_own(cohort, tmp_path, what):
    """One that a library's thread got at its import would be given to a lane, and ends at 64 MB."""
    model(cohort)
    arguments = ["run", made.job_file(tmp_path)] if what == "run" else ["tune", "m", "--items", "2", "--device", "cpu"]
    line, env = made.command(cohort, *arguments)
    done = subprocess.run(
        [sys.executable, "-c", ARENAS, *line[3:]], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("<heap nr=") == 1
