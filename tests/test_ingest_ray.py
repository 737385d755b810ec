"""Ingest on Ray: the same items as without it, whoever dies."""

import os
import signal
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diastole.cluster.private_ray import private_ray
from diastole.lake import items
from diastole.lake.errors import EnvironmentFailure, LakeError
from diastole.workers.ingest import IngestOptions, ingest, refresh


@pytest.fixture
def ray(lake):
    """A Ray with two slots, which knows where the lake's key is."""
    with private_ray(2):
        yield


@pytest.fixture
def source(tmp_path):
    """Volumes, stacks of images, sequences, a copy, and what cannot be read."""
    random, folder = np.random.default_rng(0), tmp_path / "src"
    folder.mkdir()
    for number in range(3):
        voxels = random.integers(0, 99, (20, 21, 22)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"v{number}.nii.gz")
        np.save(folder / f"i{number}.npy", random.integers(0, 255, (40, 20, 24)).astype(np.uint8))
    for number in range(40):
        (folder / f"s{number}.fa").write_text(f">r\nMKVW{'A' * number}\n")
    (folder / "t0.fa").write_bytes((folder / "s0.fa").read_bytes())
    (folder / "bad.fa").write_text(">r\nMK1\n")
    return folder


def crew(reader):
    from diastole.cluster.ingest_crew import Crew

    return Crew(reader)


def known(lake, dataset):
    columns = ("name", "content_digest", "shape", "dtype", "modality", "attributes", "geometry", "sequence", "state")
    rows = items.read_items(lake, dataset).to_pylist()
    return sorted([[str(row[column]) for column in columns] for row in rows])


def readers():
    """Process ids of actors that read sources."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cmdline").read_bytes().startswith(b"ray::Reading"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_what_is_read_on_ray_is_what_is_read_here(lake, source, ray):
    options = IngestOptions(public=True)
    here, there = ingest(lake, "here", [source], options), ingest(lake, "there", [source], options, hire=crew)
    assert (there.added, there.copies, there.quarantined) == (here.added, here.copies, here.quarantined)
    assert (there.added, there.copies, there.quarantined) == (163, 1, {"unreadable": 1})
    assert known(lake, "there") == known(lake, "here")
    again = ingest(lake, "there", [source], options)
    assert (again.opened, again.unchanged) == (0, 163)
    (source / "s7.fa").rename(source / "moved.fa")
    report = refresh(lake, "there", [source], options, hire=crew)
    assert (report.added, report.gone, report.copies) == (0, 0, 1)


@pytest.mark.slow
def test_readers_that_are_killed_cost_nothing(lake, source, ray):
    over, killed = threading.Event(), []

    def kill():
        while not over.is_set() and len(killed) < 2:
            for pid in readers():
                if pid not in killed and len(killed) < 2:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        report = ingest(lake, "d", [source], IngestOptions(public=True), hire=crew)
    except EnvironmentFailure:  # two in a row: said, and the next goes on
        report = None
    finally:
        over.set()
        thread.join()
    assert len(killed) == 2
    again = ingest(lake, "d", [source], IngestOptions(public=True), hire=crew)
    assert (report.added if report else 0) + again.added == 163
    assert len(known(lake, "d")) == 163


def test_what_is_stored_is_verified_by_this_process_alone(lake, source):
    with pytest.raises(LakeError, match="leave out --on ray"):
        ingest(lake, "d", [source], IngestOptions(verify=True), hire=crew)
