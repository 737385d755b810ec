"""A broken model stops its run instead of quarantining the cohort; what failed is tried again after a fix."""

import json

import made
import pytest

from diastole.cluster.driver import Choice
from diastole.jobs import runs
from diastole.lake.errors import ModelError

NET = """
import os
import torch
class Net(torch.nn.Module):
    '''It is broken for proteins that begin with Y until a file is there.'''
    def __init__(self, fixed=""):
        super().__init__()
        self.fixed, self.fc = fixed, torch.nn.Linear(20, 3)
    def forward(self, x, lengths):
        if (x[:, 0].argmax(-1) == 19).any() and not os.path.exists(self.fixed):
            raise IndexError("it knows no Y")
        return self.fc(x)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (5000, 10**9))


def cohort(lake, folder, broken, count=80, **fields):
    """Proteins of which so many fail, and the model that they fail with."""
    sequences = [("Y" if n < broken else "A") + s[1:] for n, s in enumerate(made.proteins(count, low=20, high=20))]
    made.add_proteins(lake, folder / "src", sequences)
    model(lake, folder / "fixed", **fields)


def model(lake, fixed, **fields):
    files = {"net.pt": made.network(), "code.py": NET.encode()}
    said = {"task": "residues", "runtime": "python", "network": "code.py:Net", "classes": ["H", "E", "C"]}
    said |= {"inputs": {"input": {"modality": ["protein"]}}, "options": {"alphabet": made.LETTERS}, "batch": 4096}
    made.add_model(lake, files, **said | {"network_options": {"fixed": str(fixed)}} | fields)


def attempts(lake):
    return sorted(path.name for path in lake.store.local.glob("runs/*/attempts/*"))


def stopped(lake, choice=None, **fields):
    with pytest.raises(ModelError) as said:
        made.run(lake, choice, **fields)
    assert made.table(lake) == []
    return str(said.value)


def test_a_run_of_which_most_units_fail_stops_says_why_and_publishes_nothing(lake, tmp_path):
    cohort(lake, tmp_path, broken=70)
    said = stopped(lake)
    assert "units failed (" in said
    assert "model_error), so run" in said
    item = said.split("--only ")[1].split()[0]
    [run] = runs.list_runs(lake)
    done = len(list(lake.store.list(f"runs/{run}/receipts")))
    assert done > 0
    tried = attempts(lake)
    assert f"so run {run[:8]} stopped" in stopped(lake)  # at once: what has a receipt stays, and nothing is computed
    assert attempts(lake) == tried
    looked = made.run(lake, Choice(only=[item]))  # as the message says; the stopped run does not stand in the way
    assert (looked.scored, looked.failed) == (0, 1)
    assert made.by_name(lake).popitem()[1]["error"].endswith("IndexError in code.py, line 11")


def test_after_a_stop_the_same_command_plans_anew_with_a_mended_model(lake, tmp_path):
    cohort(lake, tmp_path, broken=70)
    stopped(lake)
    model(lake, tmp_path, version="2")
    outcome = made.run(lake, model="m@2")
    assert (outcome.resumed, outcome.scored, outcome.failed) == (False, 80, 0)
    assert sorted((runs.read_record(lake, run) or {})["state"] for run in runs.list_runs(lake)) == ["abandoned", "done"]


def test_errors_can_be_ignored_and_what_was_done_before_the_stop_is_not_done_again(lake, tmp_path):
    cohort(lake, tmp_path, broken=70)
    stopped(lake)
    before = attempts(lake)
    done = {path.stem for path in lake.store.local.glob("runs/*/receipts/*")}
    outcome = made.run(lake, Choice(ignore_errors=True))
    assert (outcome.resumed, outcome.scored, outcome.failed) == (True, 10, 70)
    assert done
    assert not done.intersection(name.split(".")[0] for name in set(attempts(lake)).difference(before))
    made.assert_each_once(lake, 80)


@pytest.mark.parametrize(("resources", "broken"), [({}, 39), ({"max_failed": 1.0}, 80), ({"max_failed_after": 81}, 80)])
def test_within_the_budget_what_fails_is_quarantined(lake, tmp_path, resources, broken):
    cohort(lake, tmp_path, broken=broken)
    resources = {"max_failed_after": 80} | resources
    assert made.run(lake, resources=resources).failed == broken


def test_what_the_plan_refused_does_not_count(lake, tmp_path):
    cohort(lake, tmp_path, broken=0, inputs={"input": {"modality": ["protein"], "length": {"max": 5}}})
    assert made.run(lake, resources={"max_failed_after": 1}).failed == 80


@pytest.mark.fault(5)
def test_after_a_fix_the_quarantine_is_tried_again_by_one_command(lake, tmp_path):
    cohort(lake, tmp_path, broken=60, count=70)
    made.run(lake, Choice(ignore_errors=True))
    made.add_proteins(lake, tmp_path / "src", made.proteins(3, seed=9), prefix="new")
    item = made.by_name(lake)["p0"]["item_id"]
    shown = json.loads(made.cli(lake, "quarantine", "--json").stdout)
    assert len(shown) == 60
    assert f"diastole run JOB --only {item} --retry --workers 0" in {row["retry"] for row in shown}
    (tmp_path / "fixed").touch()
    (tmp_path / "src" / "bad.fasta").write_bytes(b">a\n\x00\x01\n")
    made.cli(lake, "ingest", "d", str(tmp_path / "src"), "--public", "--alphabet", "protein")
    done = made.cli(lake, "quarantine", "--retry")
    assert done.returncode == 0, done.stderr
    assert "60 scored, 0 failed" in done.stdout
    assert "try them with: diastole ingest d PATHS --retry" in done.stdout
    left = json.loads(made.cli(lake, "quarantine", "--json").stdout)
    assert [row["stage"] for row in left] == ["ingest"]
    assert len(made.table(lake)) == 130  # new items were not asked for
    again = made.cli(lake, "quarantine", "--retry", "--json")
    assert json.loads(again.stdout) == {"runs": [], "sources": {"d": 1}}


def test_what_a_model_raised_is_shown_whole_where_one_item_is_looked_at_and_is_kept_nowhere(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", ["Y" + made.proteins(1)[0]])
    made.residues(lake)
    file = made.job_file(tmp_path)
    assert "it knows no Y" not in made.cli(lake, "run", file).stderr
    [row] = made.table(lake)
    looked = made.cli(lake, "run", file, "--only", row["item_id"], "--retry", "--workers", "0")
    assert "IndexError: it knows no Y" in looked.stderr
    assert all(
        b"knows no Y" not in path.read_bytes()
        for path in lake.store.local.rglob("*.*")
        if path.is_file() and path.suffix != ".py"
    )
