"""Runtime settings, and how they are chosen."""

import json
from dataclasses import replace

import made
import pytest
import torch

from diastole.cluster import driver
from diastole.cluster.tune import tune
from diastole.jobs import runs, tuned
from diastole.jobs.plan import spec_digest
from diastole.lake.errors import LakeError, ModelError, SpecError
from diastole.workers.aside import aside
from diastole.workers.models.fast import NotAsSet, frozen
from diastole.workers.models.runtime import Networks
from diastole.workers.models.settings import Settings
from diastole.workers.record import Replay, deviation, record
from diastole.workers.tasks import make_task
from diastole.workers.worker import engine_of


@pytest.fixture
def proteins(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(40))
    return lake


def tuned_to(lake, manifest, runtime):
    tuned.keep(lake, manifest, "cpu", {"runtime": runtime})


def planned(lake, notes=None, **fields):
    return driver.plan_job(lake, made.job(**fields), driver.Choice(), None if notes is None else notes.append)[0]


def test_settings_that_are_not_known_are_refused():
    with pytest.raises(SpecError, match="known are: precision"):
        Settings.of({"precison": "bf16"})
    with pytest.raises(SpecError):
        Settings.of({"precision": "int4"})


def test_bf16_gives_float32_back_and_other_numbers(proteins):
    manifest = made.residues(proteins)
    x, lengths = torch.randn(3, 7, 20), torch.tensor([7, 7, 7])
    task = make_task(manifest)
    plain = Networks(proteins, manifest, task, "cpu", 1).forward(0, {"x": x, "lengths": lengths})["output"]
    networks = Networks(proteins, manifest, task, "cpu", 1, {"precision": "bf16"})
    found = networks.forward(0, {"x": x, "lengths": lengths})["output"]
    assert found.dtype == torch.float32
    assert not torch.equal(found, plain)
    assert torch.allclose(found, plain, atol=0.05)
    assert networks.versions().endswith("; bf16")


class Convolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 1, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.two(torch.relu(self.one(x))))


@pytest.mark.parametrize(
    "runtime", [{"freeze": True}, {"channels_last": True}, {"freeze": True, "channels_last": True}]
)
def test_frozen_and_channels_last_networks_give_the_same(lake, tmp_path, runtime):
    torch.manual_seed(0)
    torch.jit.trace(Convolution().eval(), torch.zeros(1, 1, 8, 8, 8)).save(tmp_path / "net.pt")
    manifest = made.add_model(
        lake,
        {"net.pt": (tmp_path / "net.pt").read_bytes()},
        task="segment",
        runtime="torchscript",
        inputs={"input": {}},
        classes=["object"],
        options={"passes": [{"net": "net"}]},
    )
    x = torch.randn(2, 1, 6, 7, 8)
    task = make_task(manifest)
    plain = Networks(lake, manifest, task, "cpu", 1).forward(0, {"x": x})["output"]
    found = Networks(lake, manifest, task, "cpu", 1, runtime).forward(0, {"x": x})["output"]
    assert torch.allclose(found, plain, atol=1e-5)


def test_a_network_that_cannot_be_frozen_runs_as_it_is():
    network = torch.jit.script(Convolution().train())  # freezing wants a network in eval mode
    with pytest.warns(NotAsSet, match="cannot be frozen here"):
        run = frozen(network, "m@1")
    assert run(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 1, 4, 4, 4)


def test_compiling_without_a_compiler_is_said_and_scores_nothing(proteins, monkeypatch):
    manifest = made.residues(proteins)
    monkeypatch.setattr("diastole.workers.models.fast._no_compiler", lambda device: "C++ compiler")
    with pytest.raises(ModelError, match="no C\\+\\+ compiler here"):
        Networks(proteins, manifest, make_task(manifest), "cpu", 1, {"compile": True})


def test_a_plan_runs_as_it_was_tuned_and_its_rows_say_so(proteins):
    manifest = made.residues(proteins)
    tuned_to(proteins, manifest, {"precision": "bf16", "batch": 64})
    plan = planned(proteins)
    assert (plan.runtime, plan.batch) == ({"precision": "bf16", "batch": 64}, 64)
    assert plan.spec_digest == spec_digest(make_task(manifest), "bf16") != spec_digest(make_task(manifest))
    assert planned(proteins, resources={"batch": 8}).batch == 8
    made.run(proteins)
    assert {row["versions"].partition("; ")[2] for row in made.table(proteins)} == {"bf16, batch 64"}
    [run_id] = runs.list_runs(proteins)
    assert runs.read_record(proteins, run_id)["runtime"] == plan.runtime


@pytest.mark.parametrize("field", ["model_digest", "device", "versions"])
def test_what_was_tuned_for_another_model_device_or_torch_is_not_used_and_said(proteins, field):
    manifest = made.residues(proteins)
    tuned_to(proteins, manifest, {"batch": 64})
    path = proteins.tuned("m", "1", "cpu")
    kept = json.loads(proteins.store.get(path))
    other = {"versions": {"torch": "1.0"}}.get(field, "other")
    proteins.store.put(path, json.dumps({**kept, field: other}).encode())
    notes = []
    assert planned(proteins, notes).runtime == {}
    assert "is not used" in notes[0]
    tuned.forget(proteins, manifest, "cpu")
    assert planned(proteins, notes).runtime == {}
    assert len(notes) == 1


def test_a_resumed_run_keeps_the_settings_of_its_plan(proteins):
    manifest = made.residues(proteins)
    tuned_to(proteins, manifest, {"precision": "bf16"})
    plan = planned(proteins)
    runs.start(proteins, plan)
    tuned.forget(proteins, manifest, "cpu")
    outcome = made.run(proteins)
    assert outcome.resumed
    rows = made.table(proteins)
    assert {row["versions"].endswith("; bf16") for row in rows if row["run_id"] == plan.run_id} == {True}
    assert outcome.scored == 80  # what was begun, and then the same in fp32, as the job means now


def test_recorded_windows_are_the_same_in_batches_of_any_size(proteins, tmp_path):
    made.residues(proteins)
    plan = replace(planned(proteins), runtime={"lanes": 1})
    engine = engine_of(aside(proteins, tmp_path), plan, 1)
    large, small = (record(engine, plan.units, limit) for limit in (4096, 64))
    assert len(large.batches) == 1 < len(small.batches)
    replay = Replay(engine.networks)
    reference, found = ({k: v for rows in replay.outputs(one) for k, v in rows.items()} for one in (large, small))
    assert reference.keys() == found.keys()
    assert len(found) == 40
    assert deviation(reference, found) < 1e-6
    moved = {key: {name: value + 0.5 for name, value in out.items()} for key, out in found.items()}
    assert deviation(reference, moved) == pytest.approx(0.5, rel=0.5)
    assert not list(proteins.store.list("predictions"))


def test_tune_measures_on_real_items_and_keeps_a_choice_within_the_tolerance(proteins):
    manifest = made.residues(proteins)
    made.run(proteins)
    found = tune(proteins, "m", None, None, 20, "cpu", lambda text: None)
    rows = {row["settings"]: row for row in found["table"]}
    assert rows["as it is"]["deviation"] == 0.0
    assert rows["bf16"]["deviation"] > manifest.tolerance
    assert not rows["bf16"]["within"]
    assert rows["as it is"]["items_per_second"] > 0
    assert next(row for row in found["table"] if row["runtime"] == found["runtime"])["within"]
    assert tuned.read(proteins, manifest, "cpu")["runtime"] == found["runtime"]
    assert runs.list_runs(proteins) == [made.table(proteins)[0]["run_id"]]


def test_without_an_item_that_meets_the_contract_nothing_is_tuned(lake, tmp_path):
    made.residues(lake)
    with pytest.raises(ModelError, match="no item of this lake"):
        tune(lake, "m", None, None, None, "cpu", lambda text: None)
    with pytest.raises(LakeError):
        tune(lake, "m", "nowhere", None, None, "cpu", lambda text: None)
