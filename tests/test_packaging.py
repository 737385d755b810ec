import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["lake", "jobs", "workers", "cluster"]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules(layer):
    return sorted((ROOT / layer).rglob("*.py"))


def imports(path):
    """Full names of all that a module imports, also inside of functions."""
    here = ["diastole", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def test_every_folder_with_code_is_installed_and_no_other():
    listed = set(CONFIGURATION["tool"]["setuptools"]["packages"])
    found = {p.parent.relative_to(ROOT) for layer in LAYERS for p in (ROOT / layer).rglob("__init__.py")}
    assert listed == {".".join(["diastole", *folder.parts]) for folder in found}
    mapped = CONFIGURATION["tool"]["setuptools"]["package-dir"]
    assert mapped == {f"diastole.{layer}": layer for layer in LAYERS}


def test_no_folder_is_called_diastole():
    assert not (ROOT / "diastole").exists()


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    wrong = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in modules(layer)
        for name in imports(path)
        if name.split(".")[0] == "diastole" and len(name.split(".")) > 1 and name.split(".")[1] in above
    ]
    assert wrong == []


@pytest.mark.parametrize(("library", "only"), [("ray", "cluster"), ("torch", "workers")])
def test_a_library_is_imported_in_its_room_only(library, only):
    users = {
        layer for layer in LAYERS for path in modules(layer) for name in imports(path) if name.split(".")[0] == library
    }
    allowed = {only} | ({"cluster"} if (library, only) == ("torch", "workers") else set())
    assert users <= allowed
    if library == "torch":  # the doctor says what torch sees
        assert {p.name for p in modules("cluster") if "torch" in {n.split(".")[0] for n in imports(p)}} <= {"doctor.py"}


@pytest.mark.parametrize(
    "module",
    [
        "diastole.jobs.plan",
        "diastole.jobs.commit",
        "diastole.workers.tasks.classify",
        "diastole.workers.tasks.segment",
        "diastole.workers.tasks.events",
        "diastole.workers.tasks.sequence",
        "diastole.workers.tasks.residues",
        "diastole.cluster.driver",
        "diastole.cluster.cli",
    ],
)
def test_planning_and_asking_load_neither_torch_nor_ray(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_module_and_public_function_has_a_docstring_or_a_name_that_says_it_all():
    bare = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for layer in ("lake", "jobs")
        for path in modules(layer)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert bare == []
