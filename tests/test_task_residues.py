"""Secondary structure by PredictDSSP for chains of the PDB, against PredictDSSP's own and the HELIX and SHEET records."""

import io

import numpy as np
import pytest
import torch

from diastole.jobs.task import Unit
from diastole.lake.errors import ItemError, SpecError
from diastole.workers.models.residue_lstm import ResidueLSTM
from diastole.workers.recipes import recipe
from diastole.workers.tasks import make_task

from .published import data, drive, golden, new_lake, run, score, weights

CHAINS = golden("predictdssp")["chains"]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def protein(length, seed=0):
    return "".join(np.random.default_rng([seed, length]).choice(list(LETTERS), length))


MIXED = {f"length_{n}": protein(n) for n in (1, 2, 15, 16, 17, 64, 100, 127, 128, 129, 333, 1000, 5000)}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Chains of the PDB, proteins of many lengths and some that cannot be scored, in one job."""
    folder = tmp_path_factory.mktemp("proteins")
    (folder / "in").mkdir()
    chains = {f"{name}-{c}": s for name in data.STRUCTURES for c, (s, _) in data.chains(name).items()}
    strange = {"with_x": protein(50) + "X" + protein(9), "with_u": "U" + protein(50)}
    lower = {"small_letters": CHAINS["1A8O-A"]["sequence"].lower() + "*"}
    data.write_fasta(folder / "in" / "all.fasta", {**chains, **MIXED, **strange, **lower})
    with new_lake(folder) as lake:
        yield lake, score(lake, folder / "in", "predictdssp", alphabet="protein")


@pytest.mark.parametrize("name", CHAINS)
def test_the_pdb_file_gives_the_golden_sequence_and_reference(name):
    entry, chain = name.split("-")
    assert data.chains(entry)[chain] == (CHAINS[name]["sequence"], CHAINS[name]["reference"])


@pytest.mark.parametrize("name", CHAINS)
def test_each_residue_has_predictdssps_class_and_q3_is_its_own(scored, name):
    row, known = scored[1].items[name], CHAINS[name]
    q3 = np.mean([a == b for a, b in zip(row["classes"], known["reference"], strict=True)])
    assert q3 == pytest.approx(known["q3"], abs=0.005)
    assert row["classes"] == known["predicted"]
    assert row["length"] == known["length"]
    assert row["fractions"] == pytest.approx([known["predicted"].count(c) / known["length"] for c in "HEC"])


def test_q3_of_1a8o_is_at_least_086(scored):
    agree = [a == b for a, b in zip(scored[1].items["1A8O-A"]["classes"], CHAINS["1A8O-A"]["reference"], strict=True)]
    assert np.mean(agree) >= 0.86


def test_the_probabilities_of_1a8o_are_predictdssps_to_their_four_digits(scored):
    found = np.array(scored[1].items["1A8O-A"]["probabilities"])
    assert found == pytest.approx(np.array(CHAINS["1A8O-A"]["probabilities"]), abs=1e-4)
    assert found.sum(axis=1) == pytest.approx(np.ones(70), abs=1e-6)


def plain(sequence):
    """Probabilities of one protein alone, in plain PyTorch: no batch, no padding, no packing."""
    state = torch.load(io.BytesIO(weights("predictdssp", "main")), weights_only=True)
    lstm, linear = torch.nn.LSTM(20, 20, 2, batch_first=True, bidirectional=True), torch.nn.Linear(40, 3)
    for module, prefix in ((lstm, "module.lstm."), (linear, "module.fc.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    x = torch.eye(20)[[LETTERS.index(letter) for letter in sequence]][None]
    with torch.inference_mode():
        return linear(lstm(x)[0])[0].softmax(-1).numpy()


@pytest.mark.parametrize("name", MIXED)
def test_a_protein_in_a_mixed_batch_is_what_it_is_alone(scored, name):
    row = scored[1].items[name]
    assert np.array(row["probabilities"]) == pytest.approx(plain(MIXED[name]), abs=1e-5)
    assert row["length"] == len(row["classes"]) == len(MIXED[name])


def test_another_batch_size_gives_the_same_to_1e_5(scored):
    lake, before = scored
    names = [*MIXED, *CHAINS]
    alone = run(lake, "predictdssp", only=names, output="alone", batch=1)
    for name in names:
        one, other = (np.array(found.items[name]["probabilities"]) for found in (before, alone))
        assert one == pytest.approx(other, abs=1e-5)


def test_small_letters_and_a_stop_are_the_same_protein(scored):
    assert scored[1].items["small_letters"]["probabilities"] == scored[1].items["1A8O-A"]["probabilities"]


@pytest.mark.parametrize(("name", "letter"), [("with_x", "X"), ("with_u", "U")])
def test_a_protein_with_a_letter_that_the_net_does_not_know_is_refused(scored, name, letter):
    row = scored[1].items[name]
    assert (row["status"], row["error_code"], row["probabilities"]) == ("failed", "wrong_alphabet", None)
    assert f"letters {letter} are outside of {LETTERS}" in row["error"]


def test_padding_never_reaches_the_network():
    torch.manual_seed(0)
    net, task = ResidueLSTM(20, 20, 2, 3).eval(), make_task(recipe("predictdssp"))
    states = [task.begin(Unit({"input": np.frombuffer(protein(n).encode(), np.uint8)}, {"input": {}})) for n in (9, 40)]
    inputs = task.encode(0, [task.prepare(s, task.windows(s, 0)[0], {}) for s in states], "cpu")
    noisy = {**inputs, "x": inputs["x"].clone()}
    noisy["x"][0, 9:] = 7.0
    with torch.inference_mode():
        assert torch.equal(net(*inputs.values())[0, :9], net(*noisy.values())[0, :9])


def test_classes_of_more_than_a_letter_are_said_at_once():
    with pytest.raises(SpecError, match="one letter each"):
        make_task(recipe("predictdssp").model_copy(update={"classes": ["helix", "strand", "coil"]}))


@pytest.mark.parametrize("shape", [(9, 2), (9, 4), (8, 3)])
def test_a_net_that_gives_another_number_of_classes_or_residues_gives_no_result(shape):
    task = make_task(recipe("predictdssp"))
    unit = Unit({"input": np.frombuffer(protein(9).encode(), np.uint8)}, {"input": {}})
    with pytest.raises(ItemError) as caught:
        drive(task, unit, lambda step, inputs: {"output": torch.zeros((1, *shape))})
    assert caught.value.code == "wrong_outputs"


@pytest.mark.parametrize("options", [{"activation": "sigmoid"}, {"alphabet": LETTERS[::-1]}])
def test_a_job_can_name_no_other_activation_and_no_other_letters(options):
    with pytest.raises(SpecError, match=next(iter(options))):
        make_task(recipe("predictdssp"), options=options)
    make_task(recipe("predictdssp"), options={"alphabet": LETTERS})  # what the package says may be repeated
