"""Batches side by side, and the process that they run in."""

import subprocess
import sys

import made
import numpy as np
import pytest
from made import images

from diastole.cluster import driver
from diastole.jobs import runs
from diastole.jobs.ledger import Ledger
from diastole.lake import items
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


def test_nan_and_exceptions_of_the_network_cost_only_their_image_of_a_block(cohort):
    model(cohort)
    outcome = made.run(cohort)
    assert (outcome.scored, outcome.failed) == (38, 2)
    failed = {name: code for name, code in made.codes(cohort).items() if code}
    assert failed == {"a#3": "non_finite_output", "a#7": "model_error"}
    assert made.by_name(cohort)["a#3"]["probabilities"] is None
    made.assert_each_once(cohort, 40)


def test_a_block_that_does_not_fit_is_halved_until_it_does(cohort):
    model(cohort, most=3)
    assert made.run(cohort).scored == 38


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
import resource, sys, threading
if sys.argv[1] == "prepared":
    from diastole.workers.process import prepare
    prepare()
import torch
torch.set_num_threads(1)
net, x = torch.nn.Sequential(torch.nn.Conv2d(1, 24, 3), torch.nn.ReLU()), torch.zeros(8, 1, 256, 256)
def batches(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.inference_mode():
        for _ in range(count):
            net(x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count
def lane():
    batches(8)
    print(batches(4))
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
@pytest.mark.parametrize("what", ["run", "tune"])
def test_no_thread_of_a_run_in_this_process_has_an_arena_of_its_own(cohort, tmp_path, what):
    """One that a library's thread got at its import would be given to a lane, and ends at 64 MB."""
    model(cohort)
    arguments = ["run", made.job_file(tmp_path)] if what == "run" else ["tune", "m", "--items", "2", "--device", "cpu"]
    line, env = made.command(cohort, *arguments)
    done = subprocess.run(
        [sys.executable, "-c", ARENAS, *line[3:]], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("<heap nr=") == 1
