"""A lake after some nights, with what killed writers left in it; and processes that are paused at a point of the code."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import made
import numpy as np
import pytest

from diastole.jobs import runs
from diastole.lake import arrays, delta, integrity
from diastole.lake.layout import Lake

OLD = 30 * 86400
"""Seconds that what was left behind is made to look old."""


@contextlib.contextmanager
def new(folder):
    """An empty lake for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        patch.setenv("DIASTOLE_ALLOW_CODE", "")
        yield Lake.create(str(folder / "lake"))


class Template:
    """A lake that is copied for each test, which is faster than to make it."""

    def __init__(self, lake):
        self._folder, self._allowed = lake.store.local.parent, os.environ["DIASTOLE_ALLOW_CODE"]

    def copy(self, folder, patch):
        """The lake once more; links stay links, and files as old as they were."""
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        patch.setenv("DIASTOLE_ALLOW_CODE", self._allowed)
        shutil.copytree(self._folder / "keys", folder / "keys")
        subprocess.run(["cp", "-a", self._folder / "lake", folder / "lake"], check=True)
        return Lake.open(str(folder / "lake"))


def nights(lake, folder, count=3, each=4):
    """Some nights that each brought new proteins: one small run after the other."""
    for night in range(count):
        made.add_proteins(lake, folder, made.proteins(each, seed=night, low=150, high=300), prefix=f"n{night}-")
        made.run(lake)


def litter(lake, folder):
    """What each kind of dead writer leaves: files that nothing refers to. Their paths, by kind."""
    found = {}
    before = files(lake)
    made.cli(lake, "run", made.job_file(folder, output="o", model="m@2"), DIASTOLE_CRASH="before-commit")
    [run] = [r for r in runs.list_runs(lake) if runs.read_record(lake, r) is None]
    runs.write_record(lake, run, {"state": "abandoned"})
    found["predictions"] = {p for p in files(lake) - before if p.startswith("predictions/")}
    meta = {"spacing": [1.0] * 3, "affine": [float(n) for n in np.eye(4).ravel()]}
    volume = arrays.write_volume(lake, "datasets/d/arrays", np.zeros((2, 2, 2), np.int16), meta)
    dense = arrays.write_volume(lake, f"maps/o/{run}/00000.1/item/mask", np.ones((2, 2, 2), np.uint8), meta)
    integrity.record(lake, [*volume.files, *dense.files], run)
    found["arrays"] = {f.path for f in volume.files}
    found["maps"] = {f.path for f in dense.files}
    before = files(lake)
    made.cli(lake, "ingest", "d", made_source(folder), "--alphabet", "protein", DIASTOLE_CRASH="ingest-integrity")
    found["packs"] = {p for p in files(lake) - before if "/sequences/" in p}
    lake.store.path("predictions/o/.part-0123").write_bytes(b"half")
    found["unfinished"] = {"predictions/o/.part-0123"}
    age(lake, set().union(*found.values()))
    assert all(found.values())
    return found


def made_source(folder):
    """A file of proteins that no item has."""
    (folder / "late").mkdir()
    (folder / "late" / "z.fasta").write_text(">z\nACDEFGHIKL\n")
    return str(folder / "late")


def files(lake):
    """Paths of all files of the lake but those of leases and of Delta's log."""
    found = (p.relative_to(lake.store.local).as_posix() for p in lake.store.local.rglob("*") if p.is_file())
    return {p for p in found if not p.startswith("leases/") and "/_delta_log/" not in p}


def age(lake, paths, seconds=OLD):
    """Let files look old."""
    for path in paths:
        os.utime(lake.store.path(path), (time.time() - seconds,) * 2)


def rows(lake, path):
    """All rows of a table, in an order of their own."""
    found = delta.read(lake, path).to_pylist()
    return sorted(found, key=repr)


@contextlib.contextmanager
def paused(lake, flag, point, *arguments, **environment):
    """A process of the command line that has stopped at a point; `wake` lets it go on and gives (exit code, what it said)."""
    line, env = made.command(lake, *arguments, **environment)
    process = subprocess.Popen(
        line,
        env=env | {"DIASTOLE_CRASH": f"pause@{point}:{flag}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wake():
        os.kill(process.pid, signal.SIGCONT)
        said = process.communicate(timeout=60)
        return process.returncode, "".join(said)

    try:
        end = time.monotonic() + 60
        while not (flag.exists() and stopped(process.pid)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "it did not come to that point"
            time.sleep(0.02)
        process.wake = wake
        yield process
    finally:
        process.kill()
        process.wait()


def stopped(pid):
    """Whether a process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
