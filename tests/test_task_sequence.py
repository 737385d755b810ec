"""Contigs by tiara's two networks, against the classes that tiara ships for them and its own probabilities."""

import shutil

import numpy as np
import pytest
import torch

from diastole.jobs.task import Unit
from diastole.lake.errors import ItemError, ModelError, SpecError
from diastole.workers.recipes import recipe
from diastole.workers.tasks import make_task
from diastole.workers.tasks.sequence import _CODES

from .published import data, drive, golden, new_lake, run, score

GOLDEN = golden("tiara")
CLASSES = ["organelle", "bacteria", "archaea", "eukarya"]
SECOND = ["plastid", "mitochondrion"]


def records(name):
    """Sequences of a FASTA file, by their ids, in their order."""
    entries = data.contigs(name).read_text().split(">")[1:]
    return {entry.split(maxsplit=1)[0]: "".join(entry.split("\n")[1:]) for entry in entries}


def edge_cases():
    sequences = {
        name: list(records(file).values()) for name, file in (("a", "archaea"), ("m", "mitochondria"), ("p", "plast"))
    }
    names = {"a": sequences["a"][31], "m": sequences["m"][16], "p": sequences["p"][9]}
    return {f"edge{n}": eval(case["id"], dict(names)) for n, case in enumerate(GOLDEN["edge_cases"])}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """All contigs, the edge cases, and one that is too short, in one job."""
    folder = tmp_path_factory.mktemp("contigs")
    (folder / "in").mkdir()
    for name in data.CONTIGS:
        shutil.copy(data.contigs(name), folder / "in" / f"{name}.fasta")
    edges = edge_cases()
    data.write_fasta(
        folder / "in" / "edges.fasta", {**edges, "short": "ACGT" * 700, "u": edges["edge0"].replace("T", "U")}
    )
    with new_lake(folder) as lake:
        yield lake, score(lake, folder / "in", "tiara", alphabet="dna")


def classes(row):
    return row["labels"][0], (row["labels"][1] if len(row["labels"]) > 1 else "n/a")


def probabilities(row):
    """As the golden file has them, None where there are none."""
    first, *later = [row["probabilities"], *row["stage_probabilities"]]
    second = later[0] if later else None
    return [first and dict(zip(CLASSES, first, strict=True)), second and dict(zip(SECOND, second, strict=True))]


def check_probabilities(row, known):
    for found, golden_stage in zip(probabilities(row), known["probs"], strict=True):
        stage = golden_stage and {k: v for k, v in golden_stage.items() if k != "unknown"}
        if stage is None or None in stage.values():
            assert found is None
        else:
            assert found == pytest.approx(stage, abs=1e-4)


@pytest.mark.parametrize("name", data.CONTIGS)
def test_every_contig_has_the_class_that_tiara_ships_for_it(scored, name):
    known = data.contig_classes(name)
    assert len(known) == GOLDEN["files"][name]["contigs"]
    assert {contig: classes(scored[1].items[contig]) for contig in known} == known


@pytest.mark.parametrize("name", data.CONTIGS)
def test_the_probabilities_of_golden_contigs_are_tiaras_to_1e_4(scored, name):
    golden_file = GOLDEN["files"][name]
    for known in [*golden_file["first_12"], *golden_file["hardest"]]:
        row = scored[1].items[known["id"].split()[0]]
        assert classes(row) == tuple(known["class"])
        assert row["length"] == known["length"]
        check_probabilities(row, known)


@pytest.mark.parametrize("number", range(len(GOLDEN["edge_cases"])), ids=[c["id"] for c in GOLDEN["edge_cases"]])
def test_short_pieces_masked_letters_and_gaps_are_taken_as_tiara_does(scored, number):
    known = GOLDEN["edge_cases"][number]
    row = scored[1].items[f"edge{number}"]
    assert row["status"] == "scored", row["error"]
    assert classes(row) == tuple(known["class"])
    assert row["label"] == [c for c in known["class"] if c != "n/a"][-1]
    check_probabilities(row, known)


def test_a_blank_piece_may_be_left_out_so_that_the_others_give_the_class(scored):
    lake, before = scored
    cases = {case["id"]: f"edge{n}" for n, case in enumerate(GOLDEN["edge_cases"])}
    blank, masked = cases["'N' * 5000 + a[5000:]"], cases["a.lower()"]
    found = run(lake, "tiara", {"blank_piece": "leave_out"}, only=[blank, masked, cases["a"]], output="left-out")
    assert before.items[blank]["n_pieces"] == 0
    assert found.items[blank]["n_pieces"] == 2
    whole, half = (
        np.array(found.items[cases[c]]["probabilities"])
        if c == "a"
        else np.array(before.items[cases[c]]["probabilities"])
        for c in ("a", "a[:5000]")
    )
    assert np.array(found.items[blank]["probabilities"]) == pytest.approx((3 * whole - half) / 2, abs=1e-5)
    assert (found.items[masked]["label"], found.items[masked]["probabilities"]) == ("unknown", None)
    assert found.items[masked]["status"] == "scored"


def test_a_contig_under_3000_bases_is_refused(scored):
    row = scored[1].items["short"]
    assert (row["status"], row["error_code"], row["label"]) == ("failed", "wrong_length", None)
    assert "2800 letters are outside of 3000" in row["error"]


def test_uracil_counts_as_thymine(scored):
    assert scored[1].items["u"]["probabilities"] == scored[1].items["edge0"]["probabilities"]


def test_another_batch_size_gives_the_same_to_1e_5(scored):
    lake, before = scored
    names = [*list(data.contig_classes("mitochondria")), *(f"edge{n}" for n in range(6))]
    alone = run(lake, "tiara", only=names, output="alone", batch=1)
    for name in names:
        assert alone.items[name]["labels"] == before.items[name]["labels"]
        for one, other in zip(probabilities(alone.items[name]), probabilities(before.items[name]), strict=True):
            assert one == (other and pytest.approx(other, abs=1e-5))


@pytest.mark.parametrize("k", [6, 7])
def test_profiles_are_counts_of_kmers_in_reading_order_of_length_1(k):
    task, step = make_task(recipe("tiara")), k - 6
    letters = "ACGTNacgtACGTTGCA" + "".join(np.random.default_rng(k).choice(list("ACGTN"), 200))
    codes = [_CODES[np.frombuffer(text.encode(), np.uint8)] for text in (letters, "ACGTACGT", "A" * k)]
    found = task.encode(step, codes, "cpu")["x"].numpy()
    for row, text in zip(found, (letters, "ACGTACGT", "A" * k), strict=True):
        counts = np.zeros(4**k)
        for at in range(len(text) - k + 1):
            if set(text[at : at + k]) <= set("ACGT"):
                counts[int("".join(str("ACGT".index(c)) for c in text[at : at + k]), 4)] += 1
        assert row == pytest.approx(counts / np.linalg.norm(counts), abs=1e-6)


def test_pieces_are_cut_from_the_start_and_a_short_rest_is_dropped():
    task = make_task(recipe("tiara"))
    for length, pieces in (
        (3000, [(0, 3000)]),
        (5000, [(0, 5000)]),
        (9999, [(0, 5000)]),
        (10000, [(0, 5000), (5000, 10000)]),
    ):
        state = task.begin(Unit({"input": np.frombuffer(b"ACGT" * 2500, np.uint8)[:length]}, {"input": {}}))
        found = [window.regions["input"][0] for window in task.windows(state, 0)]
        assert [(piece.start, piece.stop) for piece in found] == pieces


def test_classes_in_another_order_than_the_stages_are_refused():
    with pytest.raises(ModelError, match="in the same order"):
        make_task(recipe("tiara").model_copy(update={"classes": sorted(CLASSES)}))


def test_a_job_cannot_replace_the_stages_of_the_networks():
    stages = recipe("tiara").options["stages"]
    turned = [{**stages[0], "classes": stages[0]["classes"][::-1]}, stages[1]]
    with pytest.raises(SpecError, match=r"stages belong to the networks of tiara@1.0.2.*may set blank_piece"):
        make_task(recipe("tiara"), options={"stages": turned})


@pytest.mark.parametrize(("key", "name"), [("net", "third"), ("idf", "third_idf")])
def test_a_stage_that_names_no_file_of_the_package_is_said_before_anything_runs(key, name):
    manifest = recipe("tiara")
    stages = [{**manifest.options["stages"][0], key: name}]
    with pytest.raises(ModelError, match=f"its options name {name}"):
        make_task(manifest.model_copy(update={"options": {**manifest.options, "stages": stages}}))


def test_a_net_with_another_number_of_outputs_gives_no_class():
    unit = Unit({"input": np.frombuffer(b"ACGT" * 1000, np.uint8)}, {"input": {}})
    with pytest.raises(ItemError) as caught:
        drive(make_task(recipe("tiara")), unit, lambda step, inputs: {"output": torch.ones((1, 4))})
    assert caught.value.code == "wrong_outputs"
