"""What README, docs and examples say is so."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

import diastole.cluster
from diastole.cluster.cli import app
from diastole.jobs.spec import job_schema, load_job
from diastole.workers.recipes import names, recipe
from diastole.workers.tasks import make_task

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted((ROOT / "examples" / "jobs").glob("*.yaml"))


def test_the_public_names_are_these():
    assert sorted(diastole.cluster.__all__) == ["OpenLake", "open_lake", "run"]


def test_the_committed_json_schema_is_the_one_that_the_code_gives():
    assert json.loads((ROOT / "docs" / "job.schema.json").read_text()) == job_schema()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_example_jobs_load_and_fit_the_schema(path):
    load_job(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), job_schema())


def test_the_schema_refuses_an_unknown_key():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "a", "dataset": "b", "model": "c", "output": "d", "moddel": "e"}, job_schema())


@pytest.mark.parametrize("name", names())
def test_each_recipe_is_whole_and_its_task_takes_its_options(name):
    manifest = recipe(name)
    assert manifest.source is not None
    assert set(manifest.source.members) == set(manifest.files)
    assert manifest.licence != "unknown"
    assert manifest.citation
    task = make_task(manifest)
    assert set(task.steps) <= set(manifest.files)


def test_each_command_that_the_readme_shows_exists():
    text = (ROOT / "README.md").read_text()
    known = get_command(app).commands
    blocks = "".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    shown = set(re.findall(r"^diastole (\w+)", blocks, re.MULTILINE)) | set(re.findall(r"`diastole (\w+)", text))
    assert shown
    assert shown <= set(known)


def test_each_link_of_the_docs_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
