"""Where a lake may lie, and what is found to be wrong with one."""

import os
import stat

import made
import pytest

from diastole.lake import integrity
from diastole.lake.errors import LakeError
from diastole.lake.layout import Lake


@pytest.fixture(autouse=True)
def keys(monkeypatch, tmp_path):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


def test_a_lake_may_lie_at_a_path_with_spaces_and_letters_of_any_language(tmp_path):
    lake = Lake.create(str(tmp_path / "Föhr 2 #ß?"))
    made.add_proteins(lake, tmp_path / "src", made.proteins(3))
    made.residues(lake)
    assert made.run(lake).scored == 3
    assert len(made.table(Lake.open(lake.store.root))) == 3
    assert integrity.check(lake, deep=True) == []


@pytest.mark.parametrize("name", ["a%20b", "100%", "a[b]"])
def test_a_path_that_delta_tables_cannot_have_is_refused(tmp_path, name):
    with pytest.raises(LakeError, match="choose another folder"):
        Lake.create(str(tmp_path / name))
    assert not (tmp_path / name).exists()
    with pytest.raises(LakeError, match="choose another folder"):
        Lake.open(str(tmp_path / name))


def test_others_cannot_look_into_a_lake_that_was_made_from_python(tmp_path):
    before = os.umask(0o022)
    try:
        lake = Lake.create(str(tmp_path / "new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(lake.store.local.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("path", "data", "deep", "what"),
    [
        ("models/m/1/net.pt", b"other", True, "bytes changed since they were written"),
        ("models/m/1/code.py", None, False, "missing"),
        ("models/m/1/model.yaml", b"name: 1", False, "m@1: "),
    ],
)
def test_check_holds_models_to_their_manifest(lake, path, data, deep, what):
    made.residues(lake)
    assert integrity.check(lake, deep=True) == []
    assert integrity.count(lake) == 3
    lake.store.delete(path) if data is None else lake.store.put(path, data)
    [(wrong, why)] = integrity.check(lake, deep=deep)
    assert wrong == path
    assert why.startswith(what)
