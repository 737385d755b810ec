"""Packs of images: what is read is what was written, and what is damaged fails its own rows alone."""

import json
import shutil
import tempfile
from pathlib import Path

import made
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from diastole.lake import arrays, integrity, packs
from diastole.lake.errors import EnvironmentFailure, ItemError
from diastole.lake.ids import content_digest
from diastole.lake.layout import Lake

META = {"channels": "grey", "spacing": None}
SHAPE = (1, 16, 16)
COUNT, ROWS = 22, 4
"""Images in the pack, and in each of its chunks: the last is not full."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(packs, "CHUNK_BYTES", ROWS * 256)


def noise(count=COUNT, shape=SHAPE, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 120, (count, *shape)).astype(dtype)


def digests(images, meta=META):
    return [content_digest(arrays.header(image.shape, image.dtype, meta), image) for image in images]


def stored(lake, images, meta=META):
    path, files = packs.write_pack(lake, "datasets/d/images", images, digests(images, meta), meta)
    assert {file.path for file in files} == {file for file, _ in lake.store.list(path)}
    return path


def expected(images, meta=META):
    return packs.raw_digests(digests(images, meta)).copy()


def shard(path):
    return f"{path}/images/c/0/0/0/0"


def rewrite(lake, path, images, **config):
    """The shard as zarr writes other images."""
    compressors = zarr.open_array(lake.store.path(f"{path}/images")).metadata.to_dict()["codecs"][0]["configuration"]
    array = arrays.with_pipeline(
        "create_array",
        arrays.WRITE,
        lake.store.zarr(f"{path}/images", read_only=False),
        shape=images.shape,
        dtype=images.dtype,
        chunks=(ROWS, *SHAPE),
        shards=(-(-len(images) // ROWS) * ROWS, *SHAPE),
        compressors=[Crc32cCodec()] if "crc32c" in json.dumps(compressors["codecs"]) else "auto",
        overwrite=True,
        config=config or {"write_empty_chunks": True},
    )
    array[...] = images


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 7, 9), (1, 64, 64)])
def test_what_is_read_is_what_was_written(lake, dtype, shape):
    images = noise(shape=shape, dtype=dtype)
    pack = packs.Pack.open(lake, stored(lake, images))
    assert (len(pack), pack.shape, pack.meta, pack.image_bytes) == (COUNT, shape, META, images[0].nbytes)
    for start, stop in [(0, COUNT), (0, 1), (COUNT - 1, COUNT), (3, 9), (4, 8)]:
        read, bad = pack.read(start, stop, expected(images)[start:stop])
        assert read.dtype == images.dtype
        assert np.array_equal(read, images[start:stop])
        assert not bad.any()


@pytest.mark.parametrize("rows", [[5], [21, 0, 7, 7, 3], [4, 5, 6], [], list(range(COUNT))[::-1]])
def test_rows_in_any_order_are_read(lake, rows):
    images = noise()
    read, bad = packs.Pack.open(lake, stored(lake, images)).take(np.array(rows, int), expected(images)[rows])
    assert np.array_equal(read, images[rows])
    assert bad.tolist() == [False] * len(rows)


def codec(lake, path):
    return json.dumps(json.loads(lake.store.get(f"{path}/images/zarr.json"))["codecs"])


@pytest.mark.parametrize(("values", "packed"), [(256, False), (128, False), (32, True), (4, True)])
def test_what_zstd_makes_little_smaller_is_stored_as_it_is_with_a_checksum(lake, values, packed):
    images = np.random.default_rng(0).integers(0, values, (COUNT, *SHAPE)).astype(np.uint8)
    path = stored(lake, images)
    assert ("zstd" in codec(lake, path)) == packed
    assert ("crc32c" in codec(lake, path).split("index_codecs")[0]) == (not packed)
    size = lake.store.size(shard(path))
    assert size < 0.8 * images.nbytes if packed else size == 6 * (ROWS * 256 + 4 + 16) + 4


def test_every_chunk_is_written_also_an_empty_one(lake):
    images = noise()
    images[8:12] = 0
    array = zarr.open_array(lake.store.path(f"{stored(lake, images)}/images"))
    assert array.shards == (24, *SHAPE)  # one object
    index = np.frombuffer(lake.store.path(shard(stored(lake, images))).read_bytes()[-(6 * 16 + 4) : -4], "<u8")
    assert not (index == 2**64 - 1).any()


def flipped(lake, path, at):
    data = bytearray(lake.store.get(path))
    data[at] ^= 1
    lake.store.put(path, bytes(data))


@pytest.mark.fault(25)
@pytest.mark.parametrize("hard", [True, False])
def test_a_flipped_bit_fails_the_rows_of_its_chunk_alone(lake, hard):
    images = np.random.default_rng(0).integers(0, 256 if hard else 4, (COUNT, *SHAPE)).astype(np.uint8)
    path = stored(lake, images)
    size = lake.store.size(shard(path))
    for at in [0, size // 5, size // 2]:
        flipped(lake, shard(path), at)
        read, bad = packs.Pack.open(lake, path).read(0, COUNT, expected(images))
        assert len(set(np.flatnonzero(bad) // ROWS)) == 1
        assert bad.sum() == ROWS
        assert np.array_equal(read[~bad], images[~bad])
        flipped(lake, shard(path), at)
    assert not packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].any()


@pytest.mark.fault(26)
def test_a_chunk_that_is_missing_in_its_shard_is_never_read_as_zeros(lake):
    images = noise()
    path = stored(lake, images)
    holed = images.copy()
    holed[8:12] = 0
    rewrite(lake, path, holed, write_empty_chunks=False)
    _, bad = packs.Pack.open(lake, path).read(0, COUNT, expected(images))
    assert np.flatnonzero(bad).tolist() == [8, 9, 10, 11]
    _, bad = packs.Pack.open(lake, path).take(np.array([1, 20, 9]), expected(images)[[1, 20, 9]])
    assert bad.tolist() == [False, False, True]


def test_rows_of_another_pack_or_in_another_order_are_found(lake):
    images = noise()
    path = stored(lake, images)
    for other in (noise(seed=1), np.roll(images, ROWS, 0)):
        rewrite(lake, path, other)
        assert packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].all()
    swapped = images.copy()
    swapped[[0, 1]] = images[[1, 0]]
    rewrite(lake, path, swapped)
    assert np.flatnonzero(packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1]).tolist() == [0, 1, 2, 3]


def test_digests_or_meta_that_were_changed_are_found(lake):
    images = noise()
    path = stored(lake, images)
    array = zarr.open_array(lake.store.path(f"{path}/digests"), mode="r+")
    array[5] = 7
    wanted = expected(images)
    assert np.flatnonzero(packs.Pack.open(lake, path).read(0, COUNT, wanted)[1]).tolist() == [4, 5, 6, 7]
    wanted[5] = 7  # also where it is the changed one that is asked for
    assert np.flatnonzero(packs.Pack.open(lake, path).read(0, COUNT, wanted)[1]).tolist() == [4, 5, 6, 7]
    group = json.loads(lake.store.get(f"{path}/zarr.json"))
    group["attributes"]["diastole"]["meta"]["spacing"] = [1.0, 1.0]
    lake.store.put(f"{path}/zarr.json", json.dumps(group).encode())
    assert packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].all()


@pytest.mark.fault(45)
def test_a_row_that_holds_another_content_than_was_planned_is_bad_alone(lake):
    images = noise()
    wanted = expected(images)
    wanted[6] = 0
    assert np.flatnonzero(packs.Pack.open(lake, stored(lake, images)).read(0, COUNT, wanted)[1]).tolist() == [6]


@pytest.mark.fault(23)
def test_a_lost_shard_or_a_row_outside_is_bad_and_a_lost_pack_is_said(lake):
    images = noise()
    path = stored(lake, images)
    assert packs.Pack.open(lake, path).read(COUNT - 1, COUNT + 1, expected(images)[:2])[1].all()
    assert packs.Pack.open(lake, path).take(np.array([COUNT, 0, -1]), expected(images)[[0, 0, 0]])[1].tolist() == [
        True,
        False,
        True,
    ]
    lake.store.delete(shard(path))
    assert packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].all()
    for lost in ("digests/zarr.json", "images/zarr.json", "zarr.json"):
        lake.store.delete(f"{path}/{lost}")
        with pytest.raises(ItemError, match="diastole ingest d SOURCES --verify"):
            packs.Pack.open(lake, path)


@pytest.mark.parametrize("rows", [0, -4, 3, 10**12])
def test_a_pack_that_says_other_rows_of_a_chunk_is_damaged(lake, rows):
    images = noise()
    path = stored(lake, images)
    group = json.loads(lake.store.get(f"{path}/zarr.json"))
    group["attributes"]["diastole"]["rows"] = rows
    lake.store.put(f"{path}/zarr.json", json.dumps(group).encode())
    with pytest.raises(ItemError, match="its pack of images is missing or damaged"):
        packs.Pack.open(lake, path)


def test_a_pack_that_was_half_written_is_written_again_and_a_whole_one_is_left(lake, monkeypatch):
    images = noise()
    with monkeypatch.context() as patch:
        patch.setattr(packs, "_check", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stored(lake, images)
    path = stored(lake, images)
    assert not packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].any()
    flipped(lake, shard(path), 0)
    assert stored(lake, images) == path
    assert packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].any()
    packs.write_pack(lake, "datasets/d/images", images, digests(images), META, anew=True)
    assert not packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].any()


def test_a_shard_that_storage_does_not_give_is_no_images_fault(monkeypatch):
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
    lake = Lake.create(str(folder / "lake"))
    images = noise()
    path = stored(lake, images)
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o755)
    for file in integrity.hashed(lake, path):
        lake.store.path(file.path).chmod(0)
        with made.nobody(), pytest.raises(EnvironmentFailure, match="Permission denied"):
            packs.Pack.open(lake, path).read(0, COUNT, expected(images))
        lake.store.path(file.path).chmod(0o644)
    with made.nobody():
        assert not packs.Pack.open(lake, path).read(0, COUNT, expected(images))[1].any()
    shutil.rmtree(folder)
