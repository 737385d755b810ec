"""Chunks read straight from their shard: what zarr reads is read, what is damaged fails alone, storage's faults are said."""

import json

import numpy as np
import pytest
import zarr

from diastole.lake import arrays, packs
from diastole.lake import store as stores
from diastole.lake.chunks import ForeignChunks, open_chunks
from diastole.lake.errors import EnvironmentFailure, ItemError
from diastole.lake.ids import content_digest
from diastole.lake.layout import Lake
from diastole.lake.shards import MISSING, write_sharded
from diastole.lake.store import Store

COUNT, ROWS, SHAPE = 22, 4, (1, 16, 16)
ARRAY, SHARD = "datasets/d/a", "datasets/d/a/c/0/0/0/0"
CODECS = pytest.mark.parametrize("plain", [True, False])


def written(lake, plain, dtype="uint8", shape=SHAPE, chunk=None, shard=None):
    """An array, of values that zstd makes smaller."""
    images = np.random.default_rng(0).integers(0, 100, (COUNT, *shape)).astype(dtype)
    dimensions = ["row", "c", "y", "x"]
    write_sharded(lake, ARRAY, images, chunk or (ROWS, *shape), shard or (24, *shape), dimensions, plain=plain)
    return images


def entries(lake):
    return np.frombuffer(lake.store.get(SHARD)[-(6 * 16 + 4) : -4], "<u8").reshape(6, 2).copy()


def change(lake, index=None, at=None):
    """Another index, or another byte in the middle of one chunk."""
    data = bytearray(lake.store.get(SHARD))
    if index is not None:
        data[-(6 * 16 + 4) : -4] = index.tobytes()
    if at is not None:
        offset, size = map(int, entries(lake)[at])
        data[offset + size // 2] ^= 0x55
    lake.store.put(SHARD, bytes(data))


def a_pack(lake, top):
    """A pack whose chunks are as they are (256), or zstd's (4)."""
    images = np.random.default_rng(0).integers(0, top, (COUNT, *SHAPE)).astype(np.uint8)
    found = [content_digest(arrays.header(SHAPE, images.dtype, {}), image) for image in images]
    path, _ = packs.write_pack(lake, "datasets/d/images", images, found, {})
    return path, images, packs.raw_digests(found)


@CODECS
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [SHAPE, (3, 7, 9)])
def test_what_zarr_reads_is_read_without_it(lake, plain, dtype, shape, monkeypatch):
    images = written(lake, plain, dtype, shape)
    assert np.array_equal(zarr.open_array(lake.store.path(ARRAY), mode="r")[...], images)
    monkeypatch.setattr(Store, "zarr", lambda *_, **__: pytest.fail("it was read with zarr"))
    chunks = open_chunks(lake, ARRAY, ROWS)
    assert (chunks.shape, chunks.dtype, chunks.plain) == (images.shape, images.dtype, plain)
    for first, last in [(0, 6), (0, 1), (5, 6), (2, 4)]:
        read, lost = chunks.read(first, last)
        assert read.dtype == images.dtype
        assert np.array_equal(read, images[first * ROWS : last * ROWS])
        assert lost.tolist() == [False] * (last - first)


@pytest.mark.fault(26)
@CODECS
@pytest.mark.parametrize(
    "entry",
    [(MISSING, MISSING), (0, 0), (2**63, 100), (100, 2**63), (MISSING - 50, 100), (10**6, 1028), (0, 10**6), (0, 7)],
)
def test_a_chunk_that_the_index_does_not_have_is_lost_alone(lake, plain, entry):
    images = written(lake, plain)
    index = entries(lake)
    index[2] = entry
    change(lake, index)
    read, lost = open_chunks(lake, ARRAY, ROWS).read(1, 6)
    assert lost.tolist() == [False, True, False, False, False]
    assert not read[4:8].any()
    assert np.array_equal(np.delete(read, range(4, 8), 0), np.delete(images[4:], range(4, 8), 0))


@pytest.mark.fault(25)
def test_a_chunk_that_zstd_cannot_decode_is_lost_alone(lake):
    images = written(lake, plain=False)
    change(lake, at=3)
    read, lost = open_chunks(lake, ARRAY, ROWS).read(0, 6)
    assert np.flatnonzero(lost).tolist() == [3]
    assert not read[12:16].any()
    assert np.array_equal(read[:12], images[:12])


@pytest.mark.fault(24)
@CODECS
@pytest.mark.parametrize("left", [0, 1, 60, 2000])
def test_of_a_shard_that_was_cut_off_everything_is_lost(lake, plain, left):
    images = written(lake, plain)
    lake.store.put(SHARD, lake.store.get(SHARD)[:left])
    read, lost = open_chunks(lake, ARRAY, ROWS).read(0, 6)
    assert (read.shape, read.any(), lost.all()) == (images.shape, False, True)


@CODECS
def test_a_shard_that_is_cut_off_or_goes_while_it_is_read_is_lost_from_there(lake, plain):
    images = written(lake, plain)
    chunks = open_chunks(lake, ARRAY, ROWS)
    lake.store.put(SHARD, lake.store.get(SHARD)[: int(entries(lake)[4, 0]) + 9])
    read, lost = chunks.read(0, 6)
    assert lost.tolist() == [False, False, False, False, True, True]
    assert np.array_equal(read[:16], images[:16])
    assert not read[16:].any()
    lake.store.delete(SHARD)
    assert chunks.read(0, 6)[1].all()
    assert open_chunks(lake, ARRAY, ROWS).read(0, 6)[1].all()


@pytest.mark.fault(21)
@CODECS
def test_storage_that_fails_is_no_lost_chunk(lake, plain, monkeypatch):
    written(lake, plain)
    chunks = open_chunks(lake, ARRAY, ROWS)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stores, "_filled", broken)
    with pytest.raises(EnvironmentFailure, match="Input/output error"):
        chunks.read(0, 6)
    with pytest.raises(EnvironmentFailure, match="Input/output error"):
        open_chunks(lake, ARRAY, ROWS)


@pytest.mark.parametrize(
    ("layout", "changed"),
    [
        ({"chunk": (ROWS, 1, 8, 16)}, {}),
        ({"shard": (ROWS * 2, *SHAPE)}, {}),
        ({}, {"fill_value": 1}),
        ({}, {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}}),
    ],
)
def test_another_layout_is_read_with_zarr(lake, layout, changed):
    images = written(lake, plain=False, **layout)
    found = json.loads(lake.store.get(f"{ARRAY}/zarr.json"))
    lake.store.put(f"{ARRAY}/zarr.json", json.dumps({**found, **changed}).encode())
    if "chunk_key_encoding" in changed:
        lake.store.put(f"{ARRAY}/c.0.0.0.0", lake.store.get(SHARD))
    chunks = open_chunks(lake, ARRAY, ROWS)
    assert isinstance(chunks, ForeignChunks)
    read, lost = chunks.read(1, 6)
    assert np.array_equal(read, images[4:])
    assert not lost.any()


def test_an_array_that_zarr_wrote_is_read_and_its_damaged_chunk_is_lost_alone(lake):
    images = np.random.default_rng(0).integers(0, 100, (COUNT, *SHAPE)).astype(np.uint8)
    zarr.create_array(lake.store.path(ARRAY), data=images, chunks=(ROWS, *SHAPE), shards=(24, *SHAPE))
    assert np.array_equal(open_chunks(lake, ARRAY, ROWS).read(0, 6)[0], images)
    offset = int(entries(lake)[3, 0])
    data = bytearray(lake.store.get(SHARD))
    data[offset : offset + 4] = b"what"
    lake.store.put(SHARD, bytes(data))
    chunks = open_chunks(lake, ARRAY, ROWS)
    assert isinstance(chunks, ForeignChunks)
    read, lost = chunks.read(0, 6)
    assert np.flatnonzero(lost).tolist() == [3]
    assert np.array_equal(read[:12], images[:12])


@pytest.mark.parametrize("described", [b"", b"[]", b"{}", b'{"shape": [0, 1], "data_type": "uint8"}', b"\xff"])
def test_metadata_that_mean_nothing_are_said(lake, described):
    written(lake, plain=True)
    lake.store.put(f"{ARRAY}/zarr.json", described)
    with pytest.raises(ItemError, match="cannot be read"):
        open_chunks(lake, ARRAY, ROWS)


@pytest.mark.parametrize("rows", [0, -4, 3, 10**12])
@pytest.mark.parametrize("changed", ["shape", "chunk", "both"])
def test_metadata_with_other_numbers_give_no_rows(lake, rows, changed):
    written(lake, plain=True)
    found = json.loads(lake.store.get(f"{ARRAY}/zarr.json"))
    if changed != "chunk":
        found["shape"][0] = rows
        found["chunk_grid"]["configuration"]["chunk_shape"][0] = -(-rows // ROWS) * ROWS
    if changed != "shape":
        found["codecs"][0]["configuration"]["chunk_shape"][0] = rows
    lake.store.put(f"{ARRAY}/zarr.json", json.dumps(found).encode())
    try:
        chunks = open_chunks(lake, ARRAY, ROWS)
    except ItemError:
        return
    assert chunks.shape[0] != COUNT or chunks.read(0, 1)[1].all()


@pytest.mark.parametrize("top", [256, 4])
def test_a_pack_is_read_straight_and_what_its_checksums_would_find_is_found(lake, top, monkeypatch):
    monkeypatch.setattr(packs, "CHUNK_BYTES", ROWS * 256)
    path, images, wanted = a_pack(lake, top)
    monkeypatch.setattr(Store, "zarr", lambda *_, **__: pytest.fail("it was read with zarr"))
    shard = f"{path}/images/c/0/0/0/0"
    whole = lake.store.get(shard)
    index = np.frombuffer(whole[-(6 * 16 + 4) : -4], "<u8").reshape(6, 2).astype(int)
    for chunk, (offset, size) in enumerate(index.tolist()):
        for at in (offset, offset + size // 2, offset + size - 5):
            data = bytearray(whole)
            data[at] ^= 1
            lake.store.put(shard, bytes(data))
            read, bad = packs.Pack.open(lake, path).read(0, COUNT, wanted)
            here = np.arange(COUNT) // ROWS == chunk
            assert not bad[~here].any()
            assert bad[here].all() or np.array_equal(read, images)
            assert np.array_equal(read[~bad], images[~bad])


def test_a_pack_in_an_object_store_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path))
    monkeypatch.setattr(packs, "CHUNK_BYTES", ROWS * 256)
    lake = Lake(Store("memory://"), "0")
    for top in (256, 4):
        path, images, wanted = a_pack(lake, top)
        pack = packs.Pack.open(lake, path)
        read, bad = pack.read(3, COUNT, wanted[3:])
        assert np.array_equal(read, images[3:])
        assert not bad.any()
        rows = np.array([20, 3, 3, 9])
        assert np.array_equal(pack.take(rows, wanted[rows])[0], images[rows])
        lake.store.delete(f"{path}/images/c/0/0/0/0")
        assert pack.read(0, COUNT, wanted)[1].all()
