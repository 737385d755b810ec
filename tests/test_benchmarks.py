"""The benchmarks: that what they reckon is right, and that everyone whom they time does the same work."""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # its scripts import each other by name

import cohorts  # noqa: E402
import compare  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import variants  # noqa: E402
from memory import Watch  # noqa: E402

PEERS = {
    "dataloader": {"workers": 1, "threads": 1, "batch": 4096},
    "raydata": {"actors": 1, "batch": 5, "format": "default", "blocks": None, "threads": 1, "cpus": 2},
    "dask": {"scheduler": "threads", "workers": 2, "threads": 1, "batch": 4096},
    "daft": {"workers": 1, "processes": True, "threads": 1, "batch": 5},
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A few proteins, and what diastole makes of them."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "cohort" / "keys"))
        patch.setenv("DIASTOLE_LAKE", str(folder / "cohort" / "lake"))
        cohort = cohorts.make(folder / "cohort", "proteins", 0.03)
        here = variants.Variant("here", "diastole", {"workers": 0, "threads": 1})
        measured, found = run.one_run(folder / "cohort", here, "here-0", cohort["items"], 60)
        assert "error" not in measured
        yield folder / "cohort", cohort["items"], found


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_gives_the_numbers_of_diastole(scored, peer):
    folder, items, wanted = scored
    variant = variants.Variant(peer, peer, PEERS[peer])
    if reason := variant.missing():
        pytest.skip(reason)
    if peer == "raydata" and find_spec("pandas") is None:
        pytest.skip("Ray Data needs pandas")
    measured, found = run.one_run(folder, variant, f"{peer}-0", items, 60)
    assert "error" not in measured
    assert set(found) == {"number", "classes", "probabilities"}
    assert compare.check(found, wanted, items) is None
    assert 0 < measured["work_s"] <= measured["wall_s"]


def test_predictions_that_are_others_are_told(scored):
    _, items, wanted = scored
    assert compare.check(wanted, wanted, items) is None
    apart = wanted["probabilities"].copy()
    apart[-1] += 2e-4
    assert "apart" in compare.check({**wanted, "probabilities": apart}, wanted, items)
    apart[-1] = np.nan
    assert "apart" in compare.check({**wanted, "probabilities": apart}, wanted, items)
    twice = wanted["number"].copy()
    twice[1] = twice[0]
    assert "not each once" in compare.check({**wanted, "number": twice}, wanted, items)
    assert "values instead of" in compare.check({**wanted, "classes": wanted["classes"][1:]}, wanted, items)
    assert "no column" in compare.check({"number": wanted["number"]}, wanted, items)


def test_the_ceiling_computes_the_batches_that_were_recorded(scored):
    folder, items, _ = scored
    for one in variants.variants("proteins"):
        if one.is_ceiling and not (folder / one.batches).exists():
            run.record(folder, one.batches)
    for name in ("ceiling-lanes-raised", "ceiling-2x1", "ceiling-lanes-tuned"):
        variant = variants.Variant(name, name, {"raised": name != "ceiling-2x1"})
        measured, found = run.one_run(folder, variant, f"{name}-0", items, 60)
        assert "error" not in measured
        assert found is None
        assert measured["work_s"] > 0


def measured(*work, **more):
    return [{"work_s": w, "besides_s": 1.0, "wall_s": w + 1, "peak_mb": 100, "cpu_s": 1.0, **more} for w in work]


def summary():
    rounds = {
        "ceiling-1x2": measured(9.0, 8.0, 50.0),
        "ceiling-2x1-raised": measured(6.0, 6.0, 6.0),
        "ceiling-lanes-tuned": measured(5.0, 5.0),
        "here": measured(8.0, 7.5, 7.0),
        "here-tuned": measured(6.25),
        "raydata": measured(30.0, 15.0, 14.0),
        "raydata-tuned": [*measured(12.0, 10.0), {"error": "exit code 1", "wall_s": 1.0}],
        "dask": [{"error": "exit code 1", "wall_s": 1.0}] * 3,
    }
    return report.summarise([variants.Variant(name, f"what {name} is") for name in rounds], rounds)


def test_ratios_are_of_medians_and_to_the_best_ceiling():
    found = summary()
    assert found["ceiling-1x2"]["work_s"] == 9.0
    assert report.best_ceiling(found, "here") == 6.0
    assert report.best_ceiling(found, "here-tuned") == 5.0
    ratios = report.ratios(found)
    assert ratios["here"] == {"of_ceiling": 6.0 / 7.5, "x_ray": 15.0 / 7.5, "x_tuned": 11.0 / 7.5}
    assert ratios["here-tuned"] == {"of_ceiling": 0.8, "x_ray": 15.0 / 6.25, "x_tuned": 11.0 / 6.25}
    assert ratios["raydata"]["x_ray"] == 1.0
    assert ratios["dask"] == {"of_ceiling": None, "x_ray": None, "x_tuned": None}


def test_the_table_shows_ratios_failures_and_rates():
    lines = report.table(
        {"items": 3000, "variants": summary(), "absent": {"daft": "it is not here"}, "by_hand": ["dask"]}
    )
    assert "| what here is | 7.50 | 400 | 0.80 | 2.00 | 1.47 | 1.0 | 100 | 1 |" in lines
    assert any(line.startswith("| what dask is | failed: exit code 1") for line in lines)
    assert any("raydata-tuned" in line and "1 of 3 rounds failed" in line for line in lines)
    assert "daft took no part: it is not here." in lines
    assert "Set by hand, not tried out: dask." in lines


def test_memory_that_processes_share_is_counted_once():
    script = "import os, time; x = b'1' * (200 << 20); os.fork(); y = b'1' * (50 << 20); time.sleep(1.5)"
    process = subprocess.Popen([sys.executable, "-c", script])
    with Watch(process.pid) as watch:
        process.wait()
    assert 300 <= watch.peak_mb < 400  # 200 shared, twice 50, and two interpreters
    assert len(watch.seen) == 2


def test_what_a_library_prints_after_a_peers_answer_is_passed_over():
    assert run.said_in('note\n{"seconds": 2.5}\n(raylet) something\n') == {"seconds": 2.5}


def test_what_takes_too_much_memory_is_ended_with_its_children(monkeypatch):
    monkeypatch.setattr("memory.MOST", (150 << 20) / psutil.virtual_memory().total)
    script = "import os, time; os.fork(); x = b'1' * (100 << 20); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    with Watch(process.pid) as watch:
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert watch.too_large
    gone, alive = psutil.wait_procs(watch.seen, timeout=10)
    assert len(gone) == 2
    assert not alive


def test_the_time_of_children_counts():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'], timeout=1.0)"
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    with Watch(process.pid) as watch:
        process.wait()
    assert 0.1 < watch.cpu_s <= 2 * (time.perf_counter() - begun)


def test_every_workload_has_settings_for_every_peer():
    tuned = json.loads(variants.CHOSEN.read_text())
    assert set(tuned) == set(cohorts.workloads())
    for workload in tuned:
        assert [one.name for one in variants.variants(workload)][-len(variants.NAMES) :] == list(variants.NAMES)
