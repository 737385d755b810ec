"""The audit record: each command leaves one, and nothing that a user typed or that a person is called by is in it."""

import json
import sys

import made
import pytest

from diastole.cluster import cli
from diastole.jobs import runs
from diastole.lake import audit, integrity
from diastole.lake.layout import Lake

PLANTED = ("SMITH", "smith", "MRN0042", "wJalrXUtnFEMI")
"""A name, a number and a secret: in paths, keys, conditions, wrong words and the environment."""


@pytest.fixture
def say(lake, monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, and what it has added to the record."""
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("LOGNAME", "MRN0042")
    monkeypatch.setenv("USER", "MRN0042")

    def said(*arguments, at=lake):
        before = {path: at.store.get(path) for path, _ in at.store.list("audit")}
        monkeypatch.setattr(sys, "argv", ["diastole", *map(str, arguments)])
        code = cli.answer()
        out, err = capsys.readouterr()
        after = {path: at.store.get(path) for path, _ in at.store.list("audit")}
        assert {path: data for path, data in after.items() if path in before} == before  # none is ever changed
        new = [json.loads(after[path]) for path in sorted(set(after) - set(before))]
        for path, data in after.items():
            assert not [word for word in PLANTED if word in path or word.encode() in data]
        return code, out + err, new

    return said


@pytest.fixture
def cohort(lake, tmp_path):
    folder = tmp_path / "SMITH_MRN0042"
    folder.mkdir()
    (folder / "SMITH.fasta").write_text(">x\nACDEFGHIKLMN\n>y\nACDEFG\n")
    (tmp_path / "m.csv").write_text("path,subject,key\nSMITH_MRN0042/SMITH.fasta,MRN0042,SMITH\n")
    made.residues(lake)
    return folder


def job(tmp_path, **fields):
    path = tmp_path / "SMITH.yaml"
    path.write_text(json.dumps(made.job(**fields).model_dump(mode="json")))
    return path


def only(said, **facts):
    """One record, with these facts, and who, when and where."""
    [entry] = said[2]
    common = {"at", "user", "uid", "host", "pid", "exit"}
    assert common <= set(entry)
    assert entry["exit"] == said[0]
    assert {k: v for k, v in entry.items() if k not in common} == facts
    return entry


def test_each_command_leaves_one_record_with_what_it_did(say, lake, cohort, tmp_path):
    taken = ("ingest", "d", cohort, "--alphabet", "protein", "--manifest", tmp_path / "m.csv")
    counts = {"files": 1, "added": 2, "changed": 0, "gone": 0, "withdrawn": 0, "quarantined": 0}
    only(say(*taken), command="ingest", dataset="d", **counts)
    only(say("plan", job(tmp_path, where="site is null or site <> 'SMITH'")), command="plan", job="j", model="m")
    said = say("run", job(tmp_path, where="site is null or site <> 'SMITH'"))
    [run_id] = runs.list_runs(lake)
    names = {"job": "j", "output": "o", "model": "m"}
    only(said, command="run", **names, run_id=run_id, scored=2, failed=0)
    only(say("items", "d"), command="items", dataset="d", rows=2)
    only(say("items"), command="items")
    only(say("predictions", "o"), command="predictions", output="o", rows=2)
    only(say("predictions", "o", "--csv", tmp_path / "SMITH.csv"), command="predictions", output="o", exported=2)
    only(say("show", run_id[:6]), command="show", run_id=run_id)
    only(say("runs"), command="runs")
    only(say("quarantine", "--source", cohort), command="quarantine", rows=0)
    only(say("check", "--deep"), command="check", deep=True, files=integrity.count(lake), wrong=0, unsound=0)
    only(say("models", "show", "m"), command="models show", model="m")
    only(say("models", "list"), command="models list")
    subject = lake.subject_id("MRN0042")
    facts = {"subjects": [subject], "items": 2, "rows": 2, "runs_ended": []}
    only(say("withdraw", "MRN0042", "--dry-run"), command="withdraw", dry_run=True, **facts)
    only(say("withdraw", "MRN0042"), command="withdraw", **facts)
    only(say(*taken), command="ingest", dataset="d", **{**counts, "added": 0, "withdrawn": 1})
    code, out, new = say("audit", "--json")
    assert (code, new[0]["command"], new[0]["records"]) == (0, "audit", 16)
    assert [entry["command"] for entry in json.loads(out)][:3] == ["ingest", "plan", "run"]
    assert "exported=2" in say("audit", "--since", "2026-01-01")[1]
    assert json.loads(say("audit", "--json", "--since", "2999-01-01")[1]) == []


def test_a_command_that_fails_is_recorded_without_what_was_typed_wrong(say, lake, cohort, tmp_path):
    only(say("items", "smith"), command="items")
    only(say("predictions", "smith"), command="predictions")
    only(say("models", "show", "smith@1"), command="models show")
    only(say("show", "SMITH"), command="show")
    only(say("ingest", "SMITH J", cohort), command="ingest")
    only(say("run", job(tmp_path, where="SMITH = 1", dataset="d")), command="run", job="j", model="m")
    only(say("withdraw", "--id", "SMITH"), command="withdraw")
    only(say("audit", "--since", "SMITH"), command="audit")
    assert say("items", "--lake", tmp_path / "none")[2] == []  # where there is no lake there is no record
    assert {entry["exit"] for entry in audit.read(lake)} == {2}


def test_the_first_record_of_a_lake_is_who_made_it(say, tmp_path):
    code, _, _ = say("init", tmp_path / "new")
    [entry] = audit.read(Lake.open(str(tmp_path / "new")))
    assert (code, entry["command"], entry["exit"]) == (0, "init", 0)


def test_a_reader_who_may_not_write_is_told_once_and_reads_all_the_same(say, lake, cohort, tmp_path):
    say("ingest", "d", cohort, "--alphabet", "protein")
    (lake.store.local / "audit").rename(tmp_path / "audit")
    (lake.store.local / "audit").write_text("")  # where no record can be added, whoever one is
    code, said, new = say("items", "d", "--json")
    assert (code, new, said.count("not in the audit record")) == (0, [], 1)


def test_a_record_that_is_damaged_is_shown_as_such(say, lake, cohort):
    lake.store.put("audit/2026-01-01/0-x.json", b"{")
    assert json.loads(say("audit", "--json")[1]) == [{"damaged": "audit/2026-01-01/0-x.json"}]
