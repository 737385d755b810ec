"""What a user types, also wrongly: one line, no traceback, the exit code, and what to do."""

import csv
import json
import os
import re
import sys
from pathlib import Path

import jsonschema
import made
import pytest
import yaml
from deltalake.exceptions import DeltaError

from diastole.cluster import cli, run
from diastole.jobs import runs
from diastole.jobs.spec import job_schema
from diastole.lake import models, predictions
from diastole.lake.errors import CommitError, EnvironmentFailure, ItemError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def quiet(monkeypatch, lake):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)


@pytest.fixture
def say(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["diastole", *map(str, arguments)])
        code = cli.answer()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return said


@pytest.fixture
def cohort(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(6))
    made.residues(lake)
    return lake


def mistake(said, *parts, code=2):
    """One line, in which each part stands."""
    assert said[0] == code, said
    [line] = said[2].strip().splitlines()
    assert line.startswith("diastole: ")
    for part in parts:
        assert part in line, line


def job(folder, **fields):
    path = folder / "j.yaml"
    base = {"name": "j", "dataset": "d", "model": "m", "output": "o", "resources": {"workers": 0, "device": "cpu"}}
    path.write_text(yaml.safe_dump({k: v for k, v in (base | fields).items() if v is not None}))
    return path


def test_a_job_that_cannot_be_meant(say, cohort, tmp_path):
    mistake(say("run", job(tmp_path, colour="red")), "colour: extra inputs are not permitted", "known keys: dataset")
    mistake(say("run", job(tmp_path, resources={"wokers": 2})), "resources.wokers", "not permitted")
    mistake(say("run", job(tmp_path, model=None)), "model: field required")
    mistake(say("run", job(tmp_path, dataset="elsewhere")), "there is no dataset 'elsewhere'", "there is: d")
    mistake(say("run", job(tmp_path, model="unheard")), "there is no model 'unheard'", "m@1", "diastole models")
    mistake(say("run", job(tmp_path, options={"sharpness": 1})), "sharpness", "known options: alphabet, activation")
    mistake(say("run", job(tmp_path, task="guess")), "there is no task 'guess'", "segment")
    mistake(say("run", job(tmp_path, where="modality = 'CT'")), "selects no item of d", "`where`")
    mistake(say("run", job(tmp_path, where="modality ==== 1")), "is not a condition over items")
    mistake(say("run", job(tmp_path, name="Bad Name")), "name")
    (tmp_path / "broken.yaml").write_text("a: [1")
    mistake(say("run", tmp_path / "broken.yaml"), "not YAML")
    mistake(say("run", tmp_path / "nowhere.yaml"), "there is no job file")
    mistake(say("run", tmp_path), "cannot be read")
    (tmp_path / "list.yaml").write_text("- 1")
    mistake(say("run", tmp_path / "list.yaml"), "a job file is a mapping")
    assert made.table(cohort) == []


def test_a_file_that_lies_is_quarantined_with_its_reason_and_the_rest_goes_on(say, lake, tmp_path):
    source = tmp_path / "mixed"
    source.mkdir()
    (source / "good.fasta").write_text(">a\nACDEFGHIKLMNPQRSTVWYACDEFGHIKL\n")
    (source / "lies.nii.gz").write_bytes(b"\x1f\x8b junk")
    code, out, _ = say("ingest", "d", source, "--json")
    assert code == 1
    assert json.loads(out)["added"] == 1
    code, out, _ = say("quarantine", "--json", "--source", source)
    [row] = json.loads(out)
    assert row["file"].endswith("lies.nii.gz")
    assert row["code"]
    assert "ingest again" in row["retry"]
    mistake(say("ingest", "d", tmp_path / "nowhere"), "path 1 of 1 does not exist")
    mistake(say("ingest", "Bad Name", source), "cannot name a dataset")


def test_a_model_whose_bytes_differ_is_refused(say, cohort, tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    manifest = yaml.safe_load(cohort.store.get("models/m/1/model.yaml"))
    (folder / "net.pt").write_bytes(made.network(seed=9))
    (folder / "code.py").write_text(made.NET)
    (folder / "model.yaml").write_text(yaml.safe_dump({**manifest, "version": "2"}))
    mistake(say("models", "add", folder), "net.pt has sha256", "under a new version")
    (folder / "net.pt").write_bytes(made.network())
    (folder / "model.yaml").write_text(yaml.safe_dump({**manifest, "classes": ["x"]}))
    mistake(say("models", "add", folder), "a version is immutable: raise the version")
    mistake(say("models", "add", tmp_path / "nowhere"), "is not there")
    mistake(say("models", "show", "unheard"), "there is no model 'unheard'")
    mistake(say("models", "fetch", "unheard"), "there is no recipe 'unheard'", "predictdssp")


def test_an_output_of_another_task_is_refused(say, cohort, tmp_path):
    assert say("run", job(tmp_path))[0] == 0
    made.residues(cohort, version="2", classes=["A", "B", "C"])
    mistake(say("run", job(tmp_path, model="m@2")), "belongs to classes H, E, C", "name another output")


def test_lakes_that_are_not_there_or_newer_or_without_their_key(say, cohort, tmp_path, monkeypatch):
    mistake(say("plan", job(tmp_path), "--lake", tmp_path / "none"), "there is no lake at", "diastole init")
    mistake(say("plan", job(tmp_path), "--lake", "http://169.254.169.254/x"), "cannot be at http://")
    mistake(say("init", cohort.store.root), "is a lake already")
    mistake(say("init", tmp_path), "is not empty")
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "other"))
    mistake(say("ingest", "e", tmp_path / "src"), "is not in", "DIASTOLE_KEYS")
    header = json.loads(cohort.store.get("lake.json"))
    cohort.store.put("lake.json", json.dumps({**header, "min_reader": 99}).encode())
    mistake(say("plan", job(tmp_path)), "has format 99", "pip install --upgrade")
    cohort.store.put("lake.json", b"{")
    mistake(say("plan", job(tmp_path)), "is damaged")
    monkeypatch.delenv("DIASTOLE_LAKE")
    code, _, err = say("plan", job(tmp_path))
    assert (code, "--lake" in err) == (2, True)


def test_a_second_run_scores_nothing_and_says_why(say, cohort, tmp_path):
    code, out, _ = say("run", job(tmp_path), "--json")
    assert (code, json.loads(out)["scored"]) == (0, 6)
    code, out, _ = say("run", job(tmp_path), "--json")
    assert (code, json.loads(out)["run_id"], json.loads(out)["skipped"]) == (0, None, {"already scored": 6})
    code, out, _ = say("run", job(tmp_path))
    assert "nothing to score for o" in out
    assert "already scored" in out


def unfinished(lake):
    from diastole.cluster.driver import Choice, plan_job

    plan = plan_job(lake, made.job(), Choice())[0]
    runs.start(lake, plan)
    return plan.run_id


def test_an_unfinished_run_of_a_changed_job_is_told_and_can_be_given_up(say, cohort, tmp_path):
    run_id = unfinished(cohort)
    changed = job(tmp_path, options={"activation": "none"})
    mistake(say("run", changed), f"unfinished run {run_id[:8]} of another job", "--replan", "diastole runs abandon")
    code, out, _ = say("runs", "--json")
    assert (code, [r["state"] for r in json.loads(out)]) == (0, ["unfinished"])
    code, out, _ = say("runs", "abandon", run_id[:8])
    assert (code, out.strip()) == (0, f"gave up run {run_id[:8]}")
    mistake(say("runs", "abandon", run_id[:8]), "has ended already (abandoned)")
    mistake(say("runs", "abandon", "zzz"), "0 runs begin with")
    assert say("run", changed)[0] == 0


def test_replan_gives_up_the_unfinished_run(say, cohort, tmp_path):
    run_id = unfinished(cohort)
    code, out, _ = say("run", job(tmp_path, options={"activation": "none"}), "--replan", "--json")
    assert (code, json.loads(out)["scored"]) == (0, 6)
    assert runs.read_record(cohort, run_id)["state"] == "abandoned"
    made.assert_each_once(cohort, 6)


def test_every_command_answers_in_json(say, cohort, tmp_path):
    say("run", job(tmp_path))
    [run_id] = runs.list_runs(cohort)
    commands = [
        ("items",),
        ("items", "d"),
        ("models", "list"),
        ("plan", job(tmp_path)),
        ("run", job(tmp_path)),
        ("runs",),
        ("show", run_id[:8]),
        ("predictions", "o"),
        ("quarantine",),
        ("check",),
        ("check", "--deep"),
        ("ingest", "d", tmp_path / "src", "--public", "--alphabet", "protein"),
    ]
    for command in commands:
        code, out, _ = say(*command, "--json")
        assert code == 0, command
        json.loads(out)
    code, out, _ = say("schema")
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_a_command_ends_with_its_own_exit_code_every_time(cohort):
    """Threads of Arrow that outlived their command aborted every third check."""
    assert [made.cli(cohort, "check").returncode for _ in range(8)] == [0] * 8


def test_what_goes_wrong_has_the_exit_code_that_the_readme_says(say, cohort, tmp_path, monkeypatch):
    def failing(error):
        def fail(*_, **__):
            raise error

        return fail

    absent = tmp_path / "SMITH" / "a.nii"
    for error, code, told in (
        (CommitError("nothing is published"), 3, "nothing is published"),
        (EnvironmentFailure("the disk is gone"), 3, "the disk is gone"),
        (FileNotFoundError(2, "No such file or directory", str(absent)), 3, "No such file"),
        (OSError("Object at /lake/x not found\n  drawn below"), 3, "Object at /lake/x not found; run again"),
        (DeltaError("a log that cannot be read\n  drawn below"), 3, "a log that cannot be read; run again"),
        (ItemError("digest_mismatch", "its array is not what was planned"), 1, "its array"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):
        monkeypatch.setattr("diastole.cluster.driver.run_job", failing(error))
        said = say("run", job(tmp_path))
        mistake(said, told, code=code)
        assert "SMITH" not in said[2]
    codes = [
        int(line.split("|")[1]) for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\| \d", line)
    ]
    assert codes == [0, 1, 2, 3, cli.INTERRUPTED]


def test_a_run_of_which_units_failed_says_so(say, lake, tmp_path, monkeypatch):
    made.add_proteins(lake, tmp_path / "src", [*made.proteins(2), "W" * 9])
    manifest = made.residues(lake)
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", f"{manifest.ref}:{manifest.model_digest}")
    code, out, _ = say("run", job(tmp_path))
    assert (code, "2 scored, 1 failed" in out, "1 units failed" in out) == (0, True, True)


def test_json_and_csv_have_all_rows_and_all_columns(say, lake, tmp_path, monkeypatch):
    made.add_proteins(lake, tmp_path / "src", made.proteins(25))
    manifest = made.residues(lake)
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", f"{manifest.ref}:{manifest.model_digest}")
    say("run", job(tmp_path))
    columns = set(predictions.read_current(lake, "o").schema.names)
    for command in (("items", "d"), ("predictions", "o")):
        rows = json.loads(say(*command, "--json")[1])
        assert len(rows) == 25
        assert len(json.loads(say(*command, "--json", "--limit", "3")[1])) == 3
    assert set(rows[0]) == columns  # also those that are empty today, as error_code is
    path = tmp_path / "o.csv"
    assert say("predictions", "o", "--csv", path)[0] == 0
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert (len(found), set(found[0])) == (25, columns)
    mistake(say("predictions", "o", "--csv", tmp_path / "none" / "o.csv"), "cannot be written", "name another file")


def test_quarantine_finds_its_files_by_any_way_of_writing_the_folder(say, lake, tmp_path, monkeypatch):
    (tmp_path / "in" / "x").mkdir(parents=True)
    (tmp_path / "in" / "bad.fa").write_text(">a\nMK1\n")
    monkeypatch.chdir(tmp_path / "in" / "x")
    assert say("ingest", "d", "..")[0] == 1
    for way in ("..", "../../in/x/..", tmp_path / "in", "../bad.fa"):
        [row] = json.loads(say("quarantine", "--json", "--source", way)[1])
        assert row["file"].endswith("bad.fa"), way


def test_ingest_verify_heals_what_check_finds(say, cohort, tmp_path):
    [pack] = cohort.store.local.glob("datasets/d/sequences/*.parquet")
    pack.unlink()
    assert say("check")[0] == 1
    again = ("ingest", "d", tmp_path / "src", "--public", "--alphabet", "protein")
    assert say(*again)[0] == 0
    assert say("check")[0] == 1
    code, out, _ = say(*again, "--verify")
    assert (code, "healed: 6 items" in out) == (0, True)
    assert say("check", "--deep")[0] == 0


def test_runs_from_python_make_files_for_their_owner_only(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", f"m@1:{models.load(cohort, 'm').model_digest}")
    before = os.umask(0o022)
    try:
        run(str(job(tmp_path)), cohort.store.root)
        assert os.umask(0o022) == 0o022  # as it was
    finally:
        os.umask(before)
    written = [path for part in ("runs", "predictions") for path in cohort.store.local.glob(f"{part}/**/*")]
    assert written
    assert [path for path in written if path.stat().st_mode & 0o077] == []


@pytest.mark.fault(27)
def test_check_finds_a_flipped_byte_and_exits_with_1(say, cohort, tmp_path):
    say("run", job(tmp_path))
    [part] = cohort.store.local.glob("predictions/o/level=item/**/*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert say("check")[0] == 0  # sizes only
    code, out, _ = say("check", "--deep", "--json")
    assert code == 1
    wrong = {one["path"]: one["what"] for one in json.loads(out)["wrong"]}
    name = part.relative_to(cohort.store.local / "predictions")
    changed = "bytes changed since they were written"
    assert wrong == {f"{room}/{name}": changed for room in ("predictions", "current")}  # one file, linked


def test_the_schema_takes_what_the_examples_say_and_no_unknown_key():
    validator = jsonschema.Draft202012Validator(job_schema())
    examples = sorted((ROOT / "examples" / "jobs").glob("*.yaml"))
    assert examples
    for path in examples:
        validator.validate(yaml.safe_load(path.read_text()))
    value = yaml.safe_load(examples[0].read_text())
    for wrong in ({"colour": 1}, {"resources": {"wokers": 1}}, {"dataset": 7}):
        assert not validator.is_valid(value | wrong)
    assert not validator.is_valid({k: v for k, v in value.items() if k != "model"})
