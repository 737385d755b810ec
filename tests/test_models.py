import pickle
from pathlib import Path

import made
import pytest
import torch

from diastole.lake import models
from diastole.lake.errors import ModelError
from diastole.lake.ids import sha256_bytes


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


def test_adding_the_same_package_again_changes_nothing_and_other_bytes_are_refused(lake):
    first = made.residues(lake)
    assert made.residues(lake).model_digest == first.model_digest
    with pytest.raises(ModelError, match="a version is immutable"):
        made.residues(lake, seed=1)
    assert models.load(lake, "m").model_digest == first.model_digest


def test_the_digest_covers_weights_code_and_contract_but_no_prose(lake):
    base = made.residues(lake, version="1")
    same = base.model_copy(update={"description": "x", "licence": "MIT", "citation": "y"})
    assert models.Manifest.model_validate(same.model_dump()).model_digest == base.model_digest
    for change in ({"classes": ["a", "b", "c"]}, {"options": {"alphabet": "ACD"}}, {"network_sha256": "0" * 64}):
        other = models.Manifest.model_validate({**base.model_dump(), **change})
        assert other.model_digest != base.model_digest


@pytest.mark.fault(41)
@pytest.mark.parametrize("path", ["../net.pt", "/etc/passwd", "a/b.pt", ".hidden"])
def test_a_file_outside_of_its_package_is_refused(lake, path):
    with pytest.raises(ModelError, match="a file lies directly in the package's folder"):
        models.parse_manifest(
            f"{{name: x, version: '1', task: t, runtime: onnx, inputs: {{}}, "
            f"files: {{main: {{path: {path}, sha256: {'0' * 64}}}}}}}".encode(),
            "x",
        )


class Planted:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('/tmp/diastole-planted').touch()",))


@pytest.mark.fault(40)
def test_a_checkpoint_that_wants_to_run_code_is_refused_and_not_run(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(2))
    data = pickle.dumps(Planted())
    made.add_model(
        lake,
        {"net.pt": data, "code.py": made.NET.encode()},
        task="residues",
        runtime="python",
        network="code.py:Net",
        inputs={"input": {}},
        classes=["H", "E", "C"],
        options={"alphabet": made.LETTERS},
    )
    with pytest.raises(ModelError, match="not a plain state dict; nothing of it was run"):
        made.run(lake)
    assert not Path("/tmp/diastole-planted").exists()


def test_weights_that_do_not_fit_and_networks_that_cannot_be_built_are_told(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(2))
    made.residues(lake, options={"wings": 2})
    with pytest.raises(ModelError, match=r"code.py:Net cannot be built with its network_options: TypeError"):
        made.run(lake)
    made.add_model(
        lake,
        {"net.pt": made.saved({"other": torch.zeros(1)}), "code.py": made.NET.encode()},
        version="2",
        task="residues",
        runtime="python",
        network="code.py:Net",
        inputs={"input": {}},
        classes=["H", "E", "C"],
        options={"alphabet": made.LETTERS},
    )
    with pytest.raises(ModelError, match="does not fit the network"):
        made.run(lake, model="m@2", name="second")


def test_names_and_versions_are_told(lake):
    with pytest.raises(ModelError, match="there is no model 'm' in this lake; there is: none yet"):
        models.load(lake, "m")
    made.residues(lake, version="1")
    made.residues(lake, version="2", seed=1)
    with pytest.raises(ModelError, match="m has versions 1, 2; name one"):
        models.load(lake, "m")
    assert models.load(lake, "m@2").version == "2"


def test_a_file_whose_sha256_is_not_the_pinned_one_is_not_taken_in(lake):
    manifest = models.Manifest.model_validate(
        {"name": "x", "version": "1", "task": "t", "runtime": "onnx", "inputs": {}}
        | {"files": {"main": {"path": "a.onnx", "sha256": sha256_bytes(b"right")}}}
    )
    with pytest.raises(ModelError, match="has sha256"):
        models.add(lake, manifest, {"a.onnx": b"wrong"})
    with pytest.raises(ModelError, match="is missing"):
        models.add(lake, manifest, {})
    assert models.list_models(lake) == []
