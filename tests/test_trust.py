"""What a package may run, and what of it its digest holds."""

import sys

import made
import nibabel
import numpy as np
import pytest
import torch

from diastole.cluster.driver import Choice, plan_job
from diastole.lake import models
from diastole.lake.errors import EnvironmentFailure, ModelError
from diastole.workers.ingest import IngestOptions, ingest
from diastole.workers.models.runtime import Networks, OutOfMemory, device_errors
from diastole.workers.tasks import make_task

OWN = "diastole.workers.models.residue_lstm"
SIZES = {"letters": 20, "hidden": 4, "layers": 1, "classes": 3}


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


def packaged(lake, files=None, **fields):
    """A package of a network of residues."""
    said = {"task": "residues", "runtime": "python", "network": "code.py:Net", "classes": ["H", "E", "C"]}
    said |= {"inputs": {"input": {}}, "options": {"alphabet": made.LETTERS}} | fields
    return made.add_model(lake, files or {"net.pt": made.network(), "code.py": made.NET.encode()}, **said)


def opened(lake, manifest, *, allow=True, monkeypatch=None):
    if not allow:
        monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    return Networks(lake, manifest, make_task(manifest), "cpu", 1)


def test_a_network_of_diastoles_own_runs_unasked(lake, monkeypatch):
    from diastole.workers.models.residue_lstm import ResidueLSTM

    weights = made.saved(ResidueLSTM(**SIZES).state_dict())
    manifest = packaged(lake, {"net.pt": weights}, network=f"{OWN}:ResidueLSTM", network_options=SIZES)
    opened(lake, manifest, allow=False, monkeypatch=monkeypatch)


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "network",
    [
        "diastole.x.py:Net",
        "diastole.workers.models.py:Net",
        "diastole.lake.layout:Lake",
        "diastole.workers.models.runtime:Networks",
        "diastole.workers.models.runtime:_torchscript",
        f"{OWN}:pack_padded_sequence",
        f"{OWN}:torch",
    ],
)
def test_what_only_looks_like_diastoles_own_is_asked_about(lake, monkeypatch, tmp_path, network):
    told = tmp_path / "ran"
    code = f"open({str(told)!r}, 'w')\n{made.NET}"
    files = {"net.pt": made.network(), network.partition(":")[0]: code.encode()}
    manifest = packaged(lake, files if ".py:" in network else None, network=network)
    with pytest.raises(ModelError, match="brings code of its own"):
        opened(lake, manifest, allow=False, monkeypatch=monkeypatch)
    assert not told.exists()


@pytest.mark.parametrize("network", ["code.py:Nett", "json:Nett"])
def test_a_network_that_is_not_in_the_code_is_said(lake, network):
    with pytest.raises(ModelError, match="has no Nett"):
        opened(lake, packaged(lake, network=network))


def test_code_that_cannot_be_run_is_said(lake):
    files = {"net.pt": made.network(), "code.py": b"import no_such_module"}
    with pytest.raises(ModelError, match=r"code\.py cannot be run: ModuleNotFoundError"):
        opened(lake, packaged(lake, files))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of a user, that says when it is imported."""
    root = tmp_path / "site"
    (root / "theirs" / "nets").mkdir(parents=True)
    (root / "theirs" / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    (root / "theirs" / "nets" / "__init__.py").write_text("")
    (root / "theirs" / "layers.py").write_text("WIDTH = 3")
    (root / "theirs" / "nets" / "one.py").write_text(made.NET)
    monkeypatch.syspath_prepend(root)
    yield root / "theirs"
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def test_the_code_of_a_network_is_found_without_running_any_of_it(lake, installed, tmp_path, monkeypatch):
    manifest = packaged(lake, network="theirs.nets.one:Net")
    with pytest.raises(ModelError, match="brings code of its own"):
        opened(lake, manifest, allow=False, monkeypatch=monkeypatch)
    assert not (tmp_path / "imported").exists()
    assert not {"theirs", "theirs.nets"} & set(sys.modules)
    with pytest.raises(ModelError, match=r"theirs\.nets\.two is not installed"):
        packaged(lake, network="theirs.nets.two:Net", version="2")


def test_the_digest_holds_every_file_of_an_installed_package(lake, installed):
    manifest = packaged(lake, network="theirs.nets.one:Net")
    opened(lake, manifest)
    (installed / "layers.py").write_text("WIDTH = 4")
    with pytest.raises(ModelError, match=r"the code of theirs\.nets\.one changed"):
        opened(lake, manifest)
    assert packaged(lake, network="theirs.nets.one:Net", version="2").network_sha256 != manifest.network_sha256


def test_the_digest_of_one_of_diastoles_own_holds_its_own_file_only(lake):
    manifest = models.Manifest.model_validate(
        {"name": "m", "version": "1", "task": "residues", "runtime": "python", "files": {}, "inputs": {}}
        | {"network": f"{OWN}:ResidueLSTM"}
    )
    assert models.network_code(manifest).startswith(b'"""A bidirectional LSTM')


class Lost(RuntimeError):
    """As torch.AcceleratorError, which only torch can make."""


@pytest.mark.parametrize("text", ["CUDA error: an illegal memory access was encountered", "of another wording"])
def test_a_lost_device_is_never_held_against_an_item(monkeypatch, text):
    monkeypatch.setattr(torch, "AcceleratorError", Lost)
    with pytest.raises(EnvironmentFailure, match="the device failed"), device_errors():
        raise Lost(text)
    with pytest.raises(EnvironmentFailure), device_errors():
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with …")
    with pytest.raises(OutOfMemory), device_errors():
        raise torch.OutOfMemoryError
    with pytest.raises(RuntimeError, match="shapes"), device_errors():
        raise RuntimeError("shapes do not fit")


def test_a_float32_stays_one_on_a_gpu(lake):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    opened(lake, packaged(lake))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    for part in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        assert part.fp32_precision != "tf32"
    with torch.backends.cudnn.flags(enabled=False):
        pass


@pytest.fixture
def mixed(lake, tmp_path):
    """A protein, a volume and a recording in one dataset."""
    import edfio

    made.add_proteins(lake, tmp_path / "src", made.proteins(1))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "src" / "v.nii")
    edfio.Edf([edfio.EdfSignal(np.arange(500.0), 50, label="EEG a")]).write(tmp_path / "src" / "r.edf")
    ingest(lake, "d", [tmp_path / "src"], IngestOptions(public=True, alphabet="protein"))
    return lake


SEQUENCE = {"piece": 9, "threshold": 0.5, "stages": [{"net": "net", "k": 1, "classes": ["H", "E", "C"]}]}
EVENTS = {"rate": 50, "window_s": 2, "step_s": 1, "longest_s": 1}


@pytest.mark.parametrize(
    ("task", "options", "code"),
    [
        ("segment", {"passes": [{"net": "net"}]}, "not_a_volume"),
        ("events", EVENTS, "not_a_recording"),
        ("sequence", SEQUENCE, "not_a_sequence"),
        ("residues", {"alphabet": made.LETTERS}, "not_a_sequence"),
    ],
)
def test_items_of_another_kind_are_refused_where_no_contract_does(mixed, task, options, code):
    classes = ["H"] if task == "segment" else ["H", "E", "C"]
    manifest = packaged(mixed, task=task, options=options, classes=classes)
    plan, _, _ = plan_job(mixed, made.job(model=manifest.ref), Choice())
    assert plan.refusals == {code: 2}
    assert plan.units.num_rows == 3


def test_an_item_of_limited_use_is_refused_unless_the_job_names_its_purpose(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "free", made.proteins(2))
    (tmp_path / "limited").mkdir()
    (tmp_path / "limited" / "q.fasta").write_text(">q0\nACDEF\n")
    said = IngestOptions(public=True, alphabet="protein", permitted_use="research")
    ingest(lake, "d", [tmp_path / "limited"], said)
    made.residues(lake)
    for purpose, refused in ((None, 1), ("clinical", 1), ("research", 0)):
        plan, _, _ = plan_job(lake, made.job(purpose=purpose), Choice())
        assert plan.refusals.get("use_not_permitted", 0) == refused
    assert made.run(lake).failed == 1
    assert made.codes(lake) == {"p0": None, "p1": None, "q0": "use_not_permitted"}
    assert made.run(lake, Choice(retry=True), purpose="research").scored == 1
