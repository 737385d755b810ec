"""A lake on an S3 that fails: the real obstore, deltalake and Arrow, against a server that injects faults of HTTP."""

import json
import os
import signal
import subprocess

import made
import pytest
import spots
from flaky_s3 import BUCKET, Flaky

from diastole.lake import arrays, delta
from diastole.lake import store as stores
from diastole.lake.layout import Lake
from diastole.lake.store import Store

SEED = int(os.environ.get("DIASTOLE_SEED", "1"))


@pytest.fixture(scope="module")
def server():
    flaky = Flaky()
    yield flaky
    flaky.stop()


@pytest.fixture
def s3(server, monkeypatch, tmp_path, request):
    """The server, whole, with a bucket's folder for this test; what fails is given up after three seconds."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for name, value in (("RETRY", 3), ("SILENT", 1)):
        monkeypatch.setenv(f"DIASTOLE_{name}_SECONDS", str(value))
        monkeypatch.setattr(stores, f"{name}_SECONDS", float(value))
    monkeypatch.setattr(delta, "ATTEMPTS", 4)
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    server.heal()
    server.root = f"s3://{BUCKET}/{tmp_path.name}"
    spots.install(tmp_path, monkeypatch)
    yield server
    server.heal()


@pytest.fixture
def lake(s3):
    return Lake.create(s3.root)


def said(lake, *arguments, **environment):
    """What a command answers, as JSON."""
    done = made.cli(lake, *arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_lake_on_s3_is_used_through_the_command_line(s3, tmp_path):
    store = Store(s3.root)
    made_ = subprocess.run(
        made.command(Lake(store, ""), "init", s3.root)[0], capture_output=True, text=True, timeout=60, check=False
    )
    assert made_.returncode == 0, made_.stderr
    lake = Lake.open(s3.root)
    source = spots.volumes(tmp_path / "src", 6)
    assert said(lake, "ingest", "d", str(source), "--public")["added"] == 6
    spots.model(lake)
    file = made.job_file(tmp_path)
    killed = made.cli(lake, "run", file, DIASTOLE_CRASH=f"before-commit:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    outcome = said(lake, "run", file)
    assert (outcome["scored"], outcome["resumed"]) == (6, True)
    made.assert_each_once(lake, 6)
    assert made.table(lake, "row")
    checked = said(lake, "check", "--deep")
    assert checked["wrong"] == []
    shown = said(lake, "predictions", "o")
    assert len(shown) == 6
    path = next(row["maps"][0] for row in shown)
    arrays.read_whole(lake, path["path"], path["digest"])
    assert said(lake, "run", file)["scored"] == 0
