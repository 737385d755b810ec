"""Damaged or missing data of a dataset, and `ingest --verify`, which makes them whole from their sources."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import made
import nibabel
import numpy as np
import pytest

from diastole.lake import arrays, integrity, items, sequences
from diastole.lake.errors import EnvironmentFailure, ItemError
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest

VERIFY = IngestOptions(verify=True)


@pytest.fixture
def volume(lake, tmp_path):
    """A lake with a volume in two shards, of which the second is all zeros."""
    data = np.zeros((80, 70, 60), np.int16)
    data[:20] = np.random.default_rng(0).integers(1, 1000, (20, 70, 60))
    (tmp_path / "src").mkdir()
    nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), tmp_path / "src" / "a.nii")
    with pytest.MonkeyPatch.context() as small:
        small.setattr(arrays, "SHARD_BYTES", 2 * 64**3)
        ingest(lake, "d", [tmp_path / "src"])
    [row] = items.read_items(lake, "d").to_pylist()
    return row


def shards(lake, row):
    return [path for path, _ in lake.store.list(row["array"]) if "/c/" in path]


def flip(lake, path):
    data = bytearray(lake.store.get(path))
    data[len(data) // 2] ^= 1
    lake.store.put(path, bytes(data))


DAMAGE = {
    "a flipped bit": lambda lake, row: flip(lake, shards(lake, row)[0]),
    "a missing shard of zeros": lambda lake, row: lake.store.delete(shards(lake, row)[-1]),
    "a shortened shard": lambda lake, row: lake.store.put(shards(lake, row)[0], b"short"),
    "its metadata are gone": lambda lake, row: lake.store.delete(f"{row['array']}/zarr.json"),
    "metadata that are no JSON": lambda lake, row: lake.store.put(f"{row['array']}/0/zarr.json", b"{"),
    "all is gone": lambda lake, row: shutil.rmtree(lake.store.path(row["array"])),
}


@pytest.mark.fault(23, 24, 25)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_array_is_written_anew_by_ingest_verify(lake, tmp_path, monkeypatch, volume, damage):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 2 * 64**3)
    assert len(shards(lake, volume)) > 1
    DAMAGE[damage](lake, volume)
    assert integrity.check(lake, deep=True)
    assert ingest(lake, "d", [tmp_path / "src"]).opened == 0  # it does not look
    report = ingest(lake, "d", [tmp_path / "src"], VERIFY)
    assert (report.opened, report.unchanged, report.healed) == (1, 1, 1)
    assert integrity.check(lake, deep=True) == []
    arrays.read_whole(lake, volume["array"], volume["content_digest"])
    assert items.read_items(lake, "d").to_pylist() == [volume]
    assert ingest(lake, "d", [tmp_path / "src"], VERIFY).healed == 0


def test_an_array_whose_writer_was_killed_is_written_whole_by_the_next(lake, monkeypatch):
    data, meta = np.arange(60).reshape(3, 4, 5), {"spacing": [1, 1, 1], "affine": [1.0] * 16}
    with monkeypatch.context() as patch:
        patch.setattr(type(lake.store), "sync", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            arrays.write_volume(lake, "datasets/d/arrays", data, meta)
    stored = arrays.write_volume(lake, "datasets/d/arrays", data, meta)
    assert np.array_equal(arrays.read_whole(lake, stored.path, stored.content_digest)[0], data)


def test_an_array_that_is_written_anew_with_other_bytes_is_recorded_with_them(lake, tmp_path, monkeypatch, volume):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 2 * 64**3)
    path = shards(lake, volume)[0]
    integrity.renew(lake, [integrity.FileRecord(path, 7, "0" * 64)], "ingest")  # as if an older library had written it
    lake.store.put(path, b"damaged")
    assert ingest(lake, "d", [tmp_path / "src"], VERIFY).healed == 1
    assert integrity.check(lake, deep=True) == []
    paths = integrity.read(lake)["path"].to_pylist()
    assert len(paths) == len(set(paths))


def test_the_error_of_a_damaged_array_names_the_command_that_heals_it(lake, volume):
    lake.store.put(shards(lake, volume)[0], b"short")
    with pytest.raises(ItemError, match="diastole ingest d SOURCES --verify"):
        arrays.read_whole(lake, volume["array"], volume["content_digest"])
    lake.store.delete(f"{volume['array']}/zarr.json")
    with pytest.raises(ItemError, match="diastole ingest d SOURCES --verify"):
        arrays.read_whole(lake, volume["array"], volume["content_digest"])


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_damaged_packs_are_put_again_also_if_they_were_made_one_by_one(lake, tmp_path, damage):
    for prefix in "abc":
        made.add_proteins(lake, tmp_path / "src", made.proteins(5, seed=ord(prefix)), prefix=prefix)
    before = items.read_items(lake, "d").sort_by("item_id").to_pylist()
    packs = sorted({row["array"] for row in before})
    assert len(packs) == 3
    for path in packs[:2]:
        flip(lake, path) if damage == "flipped" else lake.store.delete(path)
    options = IngestOptions(public=True, alphabet="protein", verify=True)
    assert ingest(lake, "d", [tmp_path / "src"], options).healed == 10
    assert integrity.check(lake, deep=True) == []
    assert items.read_items(lake, "d").sort_by("item_id").to_pylist() == before


def test_sequences_of_a_damaged_pack_get_a_new_one_where_others_of_it_have_no_source(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(5))
    [path] = {row["array"] for row in items.read_items(lake, "d").to_pylist()}
    made.add_proteins(lake, tmp_path / "src", made.proteins(4))
    lake.store.delete(path)
    options = IngestOptions(public=True, alphabet="protein", verify=True)
    assert ingest(lake, "d", [tmp_path / "src"], options).healed == 4
    for row in items.read_items(lake, "d").to_pylist():
        if row["state"] == "live":
            letters = sequences.read_rows(lake, row["array"], [row["row"]])[row["row"]]
            assert sequences.verified(row["content_digest"], letters) == "protein"


@pytest.fixture
def open_lake(monkeypatch):
    """A lake that any user may read."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
    lake = Lake.create(str(folder / "lake"))
    yield lake
    shutil.rmtree(folder)


def opened(lake):
    for path in [lake.store.local.parent, *lake.store.local.parent.rglob("*")]:
        path.chmod(0o755)


def read(lake, stored, path):
    if path.endswith(".parquet"):
        return sequences.read_rows(lake, path, [0])
    return arrays.read_whole(lake, stored.path, stored.content_digest)


@pytest.mark.fault(21)
def test_files_that_storage_does_not_give_are_the_environments_and_not_the_items(open_lake):
    lake = open_lake
    meta = {"spacing": [1, 1, 1], "affine": [1.0] * 16}
    stored = arrays.write_volume(lake, "datasets/d/arrays", np.arange(60).reshape(3, 4, 5), meta)
    pack, _ = sequences.write_pack(lake, "datasets/d/sequences", ["0" * 32], [b"MKV"])
    opened(lake)
    for path in [*(file.path for file in stored.files), pack]:
        lake.store.path(path).chmod(0)
        with made.nobody(), pytest.raises(EnvironmentFailure, match="Permission denied"):
            read(lake, stored, path)
        lake.store.path(path).chmod(0o644)
    with made.nobody():
        arrays.read_whole(lake, stored.path, stored.content_digest)
        assert sequences.read_rows(lake, pack, [0]) == {0: b"MKV"}


READS = """
import resource, sys
from diastole.lake import arrays, sequences
from diastole.lake.errors import ItemError
from diastole.lake.layout import Lake
from diastole.workers.process import capped

root, path, digest, pack = sys.argv[1:]
lake = Lake.open(root)
reads = (
    lambda: arrays.read_whole(lake, path, digest)[0].nbytes,
    lambda: len(sequences.read_rows(lake, pack, [0])[0]),
)
with capped(0.1):  # of what is not reserved by libraries already
    for read in reads:
        try:
            print(read())
        except ItemError as error:
            print(error.code)
for read in reads:
    print(read())
"""


@pytest.mark.fault(15)
def test_what_does_not_fit_the_memory_is_not_called_damaged(lake):
    rng = np.random.default_rng(0)
    meta = {"rate": 100.0, "channels": ["a"], "units": ["uV"], "gain": [1.0], "offset": [0.0]}
    stored = arrays.write_recording(
        lake, "datasets/d/arrays", rng.integers(0, 9, (1, 40_000_000)).astype(np.int32), meta
    )
    letters = rng.choice(list(b"ACGT"), 60_000_000).astype(np.uint8).tobytes()
    pack, _ = sequences.write_pack(lake, "datasets/d/sequences", ["0" * 32], [letters])
    said = subprocess.run(
        [sys.executable, "-c", READS, lake.store.root, stored.path, stored.content_digest, pack],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert said.stdout.split() == ["out_of_memory", "out_of_memory", "160000000", "60000000"]
