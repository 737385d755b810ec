"""Processes that die, in this process's place: kill -9 through the real command line, then the same command again."""

import json
import os
import resource
import signal
import subprocess
import time

import made
import pytest
import spots

from diastole.cluster.driver import Choice
from diastole.lake import delta, integrity, items
from diastole.lake.errors import EnvironmentFailure, LakeError
from diastole.lake.layout import Lake

POINTS = [
    "after-plan",
    "mid-shard",
    "after-part",
    "after-receipt",
    "before-wave",
    "before-commit",
    "after-commit",
    "before-current",
    "before-record",
]


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


@pytest.fixture
def cohort(lake, tmp_path):
    """240 proteins in 16 shards."""
    made.add_proteins(lake, tmp_path / "src", made.proteins(240, low=40, high=80))
    made.residues(lake, batch=2**16)
    return lake


@pytest.mark.fault(11)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_run_ends_with_each_unit_once(cohort, tmp_path, point):
    file = made.job_file(tmp_path)
    killed = made.cli(cohort, "run", file, DIASTOLE_CRASH=f"{point}:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    published = len(made.table(cohort))
    assert published in (0, 240)  # a reader sees none of a wave, or all
    assert (published == 240) == (point in ("after-commit", "before-current", "before-record"))
    again = made.run(cohort)  # the same job, here: what counts is in storage
    assert again.resumed
    made.assert_each_once(cohort, 240)
    assert made.run(cohort).run_id is None
    if point in ("mid-shard", "after-commit"):
        checked = made.cli(cohort, "check", "--deep", "--json")
        assert checked.returncode == 0, checked.stdout
        assert json.loads(checked.stdout)["wrong"] == []


def test_what_has_a_receipt_is_not_computed_again(cohort, tmp_path):
    made.cli(cohort, "run", made.job_file(tmp_path), DIASTOLE_CRASH=f"before-wave:{tmp_path / 'flag'}")
    attempts = sorted(cohort.store.local.glob("runs/*/attempts/*"))
    assert len(attempts) > 5
    assert made.run(cohort).scored == 240
    assert sorted(cohort.store.local.glob("runs/*/attempts/*")) == attempts


@pytest.mark.fault(5)
def test_an_item_that_kills_its_process_costs_only_itself(lake, tmp_path):
    sequences = made.proteins(8)
    sequences[5] = "M" + sequences[5]
    made.add_proteins(lake, tmp_path / "src", sequences)
    made.residues(lake)
    file = made.job_file(tmp_path, resources={"attempts": 1})
    deaths = 0
    while (done := made.cli(lake, "run", file, "--json")).returncode == -signal.SIGKILL:
        assert made.table(lake) == []
        deaths += 1
        assert deaths < 10
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["scored"], outcome["failed"]) == (7, 1)
    assert {n: c for n, c in made.codes(lake).items() if c} == {"p5": "worker_died"}
    assert deaths == 5  # of 8 among others, of 8 alone, of 4, of 2, and of 1
    made.assert_each_once(lake, 8)


def test_an_interrupt_is_no_death(cohort, tmp_path):
    made.residues(cohort, version="2", options={"pause": 0.2}, batch=2**16)
    line, env = made.command(cohort, "run", made.job_file(tmp_path, model="m@2", resources={"attempts": 1}))
    running = subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(cohort.store.local.glob("runs/*/attempts/[0-9]*")))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on where it stopped" in said
    assert "Traceback" not in said
    begun = len([p for p in cohort.store.local.glob("runs/*/attempts/[0-9]*") if p.name.count(".") == 1])
    ended = len(list(cohort.store.local.glob("runs/*/attempts/[0-9]*.returned")))
    assert ended + len(list(cohort.store.local.glob("runs/*/receipts/*"))) >= begun
    assert ended >= 1
    assert made.run(cohort, model="m@2", resources={"attempts": 1}).failed == 0
    assert not list(cohort.store.local.glob("runs/*/receipts/*-*.json"))  # nothing was split


def test_readers_during_a_run_see_the_old_or_the_new(cohort, tmp_path):
    line, env = made.command(cohort, "run", made.job_file(tmp_path))
    running = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL)
    seen = set()
    while running.poll() is None:
        seen.add(len(made.table(cohort)))
        current = delta.open_table(cohort, cohort.current("o"))
        seen.add(current.to_pyarrow_dataset().count_rows() if current else 0)
    assert running.returncode == 0
    assert seen <= {0, 240}
    assert 0 in seen


@pytest.mark.fault(23, 24, 25)
@pytest.mark.parametrize("how", ["missing", "empty", "flipped"])
def test_a_damaged_recording_fails_alone(lake, tmp_path, how):
    """Faults 23 to 26: never scored on fill values."""
    import numpy as np

    from diastole.lake import arrays
    from diastole.lake.errors import ItemError

    rng = np.random.default_rng(0)
    meta = {"rate": 100.0, "channels": ["a", "b"], "units": ["uV", "uV"], "gain": [1, 1], "offset": [0, 0]}
    made_of = [rng.normal(size=(2, 70000)).astype(np.float32) for _ in range(2)]
    hurt, whole = (arrays.write_recording(lake, "datasets/d/arrays", data, meta) for data in made_of)
    chunk = max((lake.store.local / hurt.path).rglob("c/*/*"), key=lambda p: p.stat().st_size)
    if how == "missing":
        chunk.unlink()
    elif how == "empty":
        chunk.write_bytes(b"")
    else:
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    with pytest.raises(ItemError) as caught:
        arrays.read_whole(lake, hurt.path, hurt.content_digest)
    assert caught.value.code in ("digest_mismatch", "array_unreadable", "array_missing")
    assert np.array_equal(arrays.read_whole(lake, whole.path, whole.content_digest)[0], made_of[1])


@pytest.mark.fault(20)
def test_a_full_disk_is_an_error_of_the_environment_and_leaves_nothing_that_counts(cohort, monkeypatch):
    """Files may only grow to 8 kB, which a part exceeds, as on a full disk."""
    monkeypatch.setattr("diastole.jobs.ledger.PAUSE", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    made.run(cohort, Choice(limit=1), name="before", output="before")  # what is loaded at first use is loaded
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(EnvironmentFailure, match="cannot write to"):
            made.run(cohort)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made.table(cohort) == []
    assert made.run(cohort, resources={"attempts": 1}).failed == 0
    made.assert_each_once(cohort, 240)


@pytest.mark.fault(30, 31)
def test_an_ingest_between_plan_and_commit_does_not_disturb_the_run(cohort, tmp_path):
    made.cli(cohort, "run", made.job_file(tmp_path), DIASTOLE_CRASH="after-plan")
    made.add_proteins(cohort, tmp_path / "src", made.proteins(3, seed=4), prefix="q")
    outcome = made.run(cohort)  # the run as it was planned, then what came meanwhile
    assert (outcome.scored, outcome.resumed) == (243, True)
    assert items.read_items(cohort, "d").num_rows == 243
    made.assert_each_once(cohort, 243)
    with pytest.raises(LakeError):
        items.read_items(cohort, "nothing")


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that point"
        time.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system of its own of two megabytes, and how to make it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=4k", "tmpfs", str(disk)]
    said = subprocess.run(mount, capture_output=True, text=True, check=False)
    if said.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {said.stderr.strip()}; RLIMIT_FSIZE stands for it above")
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.slow
@pytest.mark.fault(20)
def test_on_a_disk_that_is_full_a_run_stops_with_the_reason_and_goes_on_when_there_is_room(small_disk, tmp_path):
    disk, grow = small_disk
    lake = Lake.create(str(disk / "lake"))
    made.add_proteins(lake, tmp_path / "src", made.proteins(240, low=40, high=80))
    made.residues(lake, batch=2**16)
    stat = os.statvfs(disk)
    (disk / "other").write_bytes(bytes(max(stat.f_bavail * stat.f_frsize - 100_000, 0)))
    file = made.job_file(tmp_path)
    full = made.cli(lake, "run", file)
    assert full.returncode == 3, full.stderr
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert made.table(lake) == []
    assert not list(lake.store.local.rglob(".part-*"))
    grow()
    assert made.run(lake).failed == 0
    made.assert_each_once(lake, 240)
    assert integrity.check(lake, deep=True) == []


@pytest.mark.fault(23, 24, 25)
@pytest.mark.parametrize("how", ["missing", "empty", "flipped"])
def test_sequences_of_a_damaged_pack_fail_alone_and_are_scored_once_it_is_healed(lake, tmp_path, how):
    for prefix in "pq":
        made.add_proteins(lake, tmp_path / "src", made.proteins(5, seed=ord(prefix)), prefix=prefix)
    made.residues(lake)
    hurt = next(item["array"] for item in items.read_items(lake, "d").to_pylist() if item["name"] == "p0")
    data = bytearray(lake.store.get(hurt))
    data[len(data) // 3] ^= 1
    lake.store.delete(hurt)
    if how != "missing":
        lake.store.put(hurt, b"" if how == "empty" else bytes(data))
    assert made.run(lake).failed == 5
    assert {name: code for name, code in made.codes(lake).items() if code} == {
        f"p{number}": "pack_unreadable" for number in range(5)
    }
    made.ingest(lake, "d", [tmp_path / "src"], made.IngestOptions(public=True, alphabet="protein", verify=True))
    assert made.run(lake, Choice(retry=True)).scored == 5


@pytest.mark.fault(45)
def test_an_input_that_changes_while_a_run_reads_it_fails_as_changed_and_no_other(lake, tmp_path, monkeypatch):
    spots.install(tmp_path, monkeypatch)
    spots.cohort(lake, tmp_path / "src", 3)
    made.cli(lake, "run", made.job_file(tmp_path), DIASTOLE_CRASH=f"after-plan:{tmp_path / 'flag'}")
    first, second, third = (item["array"] for item in items.read_items(lake, "d").sort_by("name").to_pylist())
    for path, _ in list(lake.store.list(second)):  # a whole array, of another content
        lake.store.put(path, lake.store.get(path.replace(second, third)))
    spots.volumes(tmp_path / "src", 1, seed=5)  # the source of the first: an ingest makes a new array of it
    made.ingest(lake, "d", [tmp_path / "src"], made.IngestOptions(public=True))
    assert lake.store.size(f"{first}/zarr.json")
    outcome = made.run(lake)  # the run as it was planned, then the first as it is now
    assert (outcome.resumed, outcome.scored, outcome.failed) == (True, 3, 1)
    codes = sorted((row["error_code"] or "", row["status"]) for row in made.table(lake))
    assert codes == [("", "scored")] * 3 + [("digest_mismatch", "failed")]
