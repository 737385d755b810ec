"""Sources in an object store: the real obstore against an S3 that counts and fails."""

import made
import nibabel
import numpy as np
import pytest
from flaky_s3 import BUCKET, Flaky
from test_series import recording, write

from diastole.lake import items, remote
from diastole.lake.errors import EnvironmentFailure, SpecError
from diastole.lake.store import Store
from diastole.workers.ingest import ingest, refresh


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A server, with a volume, two sequences and a series of three slices in it."""
    server = Flaky()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for name, value in (("RETRY", 2), ("SILENT", 5)):
        monkeypatch.setattr(remote, f"{name}_SECONDS", float(value))
    folder = tmp_path / "made"
    folder.mkdir()
    random = np.random.default_rng(0)
    image = nibabel.Nifti1Image(random.integers(0, 9, (40, 50, 60)).astype(np.int16), np.eye(4))
    nibabel.save(image, folder / "volume.nii.gz")
    for number in range(2):
        (folder / f"s{number}.fa").write_text(f">r\nMKV{'A' * number}\n")
    for place in range(3):
        write(folder / "ct" / f"{place}", place)
    server.url = f"s3://{BUCKET}/{tmp_path.name}"  # stores are kept by their URL
    server.store = Store(server.url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    server.folder = folder
    yield server
    server.stop()


def known(lake, dataset):
    return sorted((row["content_digest"], str(row["shape"])) for row in items.read_items(lake, dataset).to_pylist())


def did(report):
    return report.added, report.changed, report.unchanged, report.gone, report.quarantined


def test_a_bucket_is_read_as_a_folder_is_and_refreshed(lake, bucket):
    assert did(ingest(lake, "d", [bucket.url])) == (4, 0, 0, 0, {})
    ingest(lake, "here", [bucket.folder])
    assert known(lake, "d") == known(lake, "here")
    report = refresh(lake, "d", [bucket.url])
    assert (did(report), report.opened) == ((0, 0, 4, 0, {}), 0)
    bucket.store.put("s0.fa", b">r\nMKVWW\n")
    bucket.store.put("new.fa", b">r\nMKVWWW\n")
    bucket.store.delete("s1.fa")
    report = refresh(lake, "d", [bucket.url])
    assert (did(report), report.opened, report.missing) == ((1, 1, 2, 1, {}), 2, 1)
    assert did(ingest(lake, "one", [f"{bucket.url}/new.fa"])) == (1, 0, 0, 0, {})


def test_a_header_and_its_data_in_a_bucket_are_read_together_whichever_changes(lake, bucket, tmp_path):
    recording(tmp_path / "eeg", "rec")
    for path in (tmp_path / "eeg").iterdir():
        bucket.store.put(f"eeg/{path.name}", path.read_bytes())
    assert did(ingest(lake, "d", [bucket.url])) == (5, 0, 0, 0, {})
    header = (tmp_path / "eeg" / "rec.vhdr").read_bytes()
    bucket.store.put("eeg/rec.vhdr", header.replace(b"SamplingInterval=4000", b"SamplingInterval=2000"))
    report = refresh(lake, "d", [bucket.url])
    assert did(report) == (0, 1, 4, 0, {})
    assert did(ingest(lake, "one", [f"{bucket.url}/eeg/rec.vhdr"])) == (1, 0, 0, 0, {})


def test_names_of_objects_may_hold_any_letters(lake, bucket):
    for number, name in enumerate(("a b/c d.fa", "x#y/1.fa", "p%20q/2.fa", "ü/é?.fa", "l" * 300 + ".fa")):
        bucket.store.put(f"odd/{name}", f">r\nMKVW{'A' * number}\n".encode())
    report = ingest(lake, "odd", [f"{bucket.url}/odd"])
    assert did(report) == (4, 0, 0, 0, {"unreadable": 1})


def test_an_outage_quarantines_nothing_and_calls_nothing_gone(lake, bucket):
    ingest(lake, "d", [bucket.url])
    bucket.store.put("new.fa", b">r\nMKVWWW\n")
    bucket.fail("slow_down", method="GET", path=".*new.fa.*", times=1000)
    with pytest.raises(EnvironmentFailure):
        refresh(lake, "d", [bucket.url])
    bucket.heal()
    bucket.fail("slow_down", method="GET", path=".*list-type.*", times=1000)
    with pytest.raises(EnvironmentFailure):
        refresh(lake, "d", [bucket.url])
    bucket.heal()
    assert did(refresh(lake, "d", [bucket.url])) == (1, 0, 4, 0, {})


def test_only_object_stores_are_read_by_url(lake, tmp_path):
    for url in ("http://169.254.169.254/latest", "file:///etc", "ftp://x/y"):
        with pytest.raises(SpecError, match="sources cannot be read from"):
            ingest(lake, "d", [url])
    refused = made.cli(lake, "ingest", "d", "http://169.254.169.254/latest")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    with pytest.raises(SpecError, match="no keys"):
        ingest(lake, "d", ["s3://key:secret@bucket/x"])
