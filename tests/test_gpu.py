"""How busy a GPU is: what nvidia-smi says, and what becomes of it."""

import shutil
import time

import made
import numpy as np
import pytest
import torch

from diastole.jobs import runs
from diastole.workers.gpu import Utilisation, watch
from diastole.workers.tasks.device import staged


def said(*lines):
    return Utilisation(["sh", "-c", "; ".join(f"echo '{line}'" for line in lines) + "; sleep 30"])


def heard(utilisation, since, wanted=lambda share: share is not None, seconds=10.0):
    """What is known once it is as wanted, or at the end of the seconds."""
    end = time.monotonic() + seconds
    while not wanted(found := utilisation.since(since)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_the_mean_of_what_is_said_is_the_utilisation():
    begun = time.perf_counter()
    with said("50", "[N/A]", "100") as utilisation:
        assert heard(utilisation, begun, lambda share: share == 0.75) == 0.75
        assert utilisation.since(time.perf_counter()) is None


def test_a_gpu_of_which_nothing_is_said_has_no_utilisation():
    with said("[N/A]", "No devices were found") as utilisation:
        assert heard(utilisation, 0.0, seconds=0.5) is None
    with Utilisation(["no-such-program-as-nvidia-smi"]) as utilisation:
        assert utilisation.since(0.0) is None


def test_a_cpu_is_not_watched():
    with Utilisation.of(torch.device("cpu")) as utilisation:
        assert utilisation.since(0.0) is None


def test_who_listens_leaves_no_process_behind():
    with said("1") as utilisation:
        process = utilisation._process
    assert process.returncode is not None


def test_the_record_of_a_run_has_the_utilisation(lake, tmp_path, monkeypatch):
    busy = ["sh", "-c", "while echo 40; do sleep 0.001; done"]
    monkeypatch.setattr(Utilisation, "of", lambda device: Utilisation(busy))
    made.add_proteins(lake, tmp_path / "src", made.proteins(2000))
    made.residues(lake, batch=64)
    outcome = made.run(lake)
    record = runs.read_record(lake, outcome.run_id)
    assert record["gpu_utilisation"] == 0.4
    assert set(record["stages"]) == {"read", "compute", "write", "shard"}


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None or not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_real_gpu_says_how_busy_it_is():
    device = torch.device("cuda")
    with Utilisation.of(device) as utilisation:
        assert utilisation._command == watch(utilisation._command[1].removeprefix("--id="))
        x, begun = torch.rand(4096, 4096, device=device), time.perf_counter()
        while time.perf_counter() < begun + 5:
            x = (x @ x).sigmoid()
            torch.cuda.synchronize()
        assert utilisation.since(begun + 2) > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("shape", [(64, 1, 64, 64), (5, 3, 224, 224)])
def test_what_goes_through_pinned_memory_is_what_was_stored(shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for _ in range(20):  # the memory is used again while copies are on their way
        found = staged(values, torch.device("cuda"))
        assert torch.equal(found.cpu(), torch.from_numpy(values))
        values = values[::-1].copy()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_run_on_a_gpu_gives_the_numbers_of_a_cpu(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(200))
    made.residues(lake, tolerance=1e-4)
    for device in ("cpu", "cuda"):
        made.run(lake, name=device, output=device, resources={"device": device})
    cpu, cuda = (made.scores(lake, device) for device in ("cpu", "cuda"))
    assert cpu.keys() == cuda.keys()
    assert all(np.allclose(cpu[item], cuda[item], atol=1e-4) for item in cpu)


def test_on_a_cpu_nothing_is_copied():
    values = np.arange(6, dtype=np.int16)
    staged(values, torch.device("cpu"))[0] = 7
    assert values[0] == 7
