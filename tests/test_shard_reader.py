"""Arrays that are read straight from their shards: what zarr would give, or an error."""

import json

import numpy as np
import pytest
import zarr

from diastole.lake import arrays, shard_reader
from diastole.lake.errors import ItemError
from diastole.lake.shard_reader import layout, read_sharded
from diastole.lake.shards import MISSING, write_sharded

META = {"spacing": [1.0, 1.0, 1.0], "affine": np.eye(4).ravel().tolist()}
LAYOUTS = [
    ((64, 64, 64), (64, 64, 64), (64, 64, 64)),
    ((70, 33, 5), (64, 32, 5), (128, 64, 5)),  # one shard that reaches beyond the array
    ((130, 40, 9), (32, 32, 9), (64, 32, 9)),  # several, of which some chunks lie outside
    ((2, 50, 20, 7), (1, 20, 20, 7), (1, 60, 20, 7)),
    ((3, 70000), (1, 65536), (3, 131072)),
]


def written(lake, shape, chunks, shards, dtype="<i2", plain=False):
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    data[: shape[0] // 2] = 0
    write_sharded(lake, "a", data, chunks, shards, [f"d{n}" for n in range(data.ndim)], plain=plain)
    return data


@pytest.mark.parametrize("decoders", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<u8"])
@pytest.mark.parametrize(("shape", "chunks", "shards"), LAYOUTS)
def test_what_was_written_is_read(lake, monkeypatch, shape, chunks, shards, dtype, plain, decoders):
    monkeypatch.setattr(shard_reader, "DECODERS", decoders)
    monkeypatch.setattr(shard_reader, "ALONE", 0)
    data = written(lake, shape, chunks, shards, dtype, plain)
    found = read_sharded(lake, "a", layout(lake.store.get("a/zarr.json")))
    assert (found.dtype, found.flags.c_contiguous) == (data.dtype, True)
    assert np.array_equal(found, data)


@pytest.mark.fault(25)
@pytest.mark.parametrize("plain", [False, True])
def test_every_flipped_bit_is_an_error(lake, plain):
    written(lake, (8, 64, 64), (4, 64, 64), (8, 64, 64), "u1", plain)
    path, of = lake.store.path("a/c/0/0/0"), layout(lake.store.get("a/zarr.json"))
    whole = path.read_bytes()
    for at in (100, len(whole) // 2, *range(len(whole) - 36, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises((RuntimeError, ValueError)):
            read_sharded(lake, "a", of)


@pytest.mark.fault(24)
@pytest.mark.parametrize("length", [0, 3, 20, 35, 36, -1])
def test_a_shard_that_is_cut_off_is_an_error(lake, length):
    written(lake, (8, 64, 64), (4, 64, 64), (8, 64, 64))
    path = lake.store.path("a/c/0/0/0")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises((RuntimeError, ValueError)):
        read_sharded(lake, "a", layout(lake.store.get("a/zarr.json")))


@pytest.mark.fault(26)
def test_a_chunk_that_is_marked_as_missing_is_an_error_not_fill_values(lake):
    import google_crc32c

    written(lake, (8, 64, 64), (4, 64, 64), (8, 64, 64))
    path = lake.store.path("a/c/0/0/0")
    whole = path.read_bytes()
    index = np.frombuffer(whole[-36:-4], "<u8").copy()
    index[2:] = MISSING
    path.write_bytes(whole[:-36] + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    assert zarr.open_array(str(lake.store.path("a")), mode="r")[4:].max() == 0  # zarr takes it for zeros
    with pytest.raises(ValueError, match="missing"):
        read_sharded(lake, "a", layout(lake.store.get("a/zarr.json")))


def change(lake, **changes):
    """Metadata with other values, at paths of keys that are joined by '/'."""
    found = json.loads(lake.store.get("a/zarr.json"))
    for path, value in changes.items():
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        place = found
        for key in way:
            place = place[key]
        place[last] = value
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("zarr_format", 2),
        ("node_type", "group"),
        ("shape", [8, 64]),
        ("shape", [0, 64, 64]),
        ("shape", "abc"),
        ("data_type", "complex64"),
        ("data_type", "no type"),
        ("chunk_grid/name", "rectilinear"),
        ("chunk_grid/configuration/chunk_shape", [6, 64, 64]),
        ("chunk_key_encoding/configuration/separator", "."),
        ("codecs", []),
        ("codecs/0/name", "bytes"),
        ("codecs/0/configuration/index_location", "start"),
        ("codecs/0/configuration/index_codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        ("codecs/0/configuration/codecs/0/configuration/endian", "big"),
        ("codecs/0/configuration/codecs/1/name", "gzip"),
        ("codecs/0/configuration/chunk_shape", [0, 64, 64]),
        ("storage_transformers", [{"name": "other"}]),
    ],
)
def test_any_other_layout_is_left_to_zarr(lake, path, value):
    written(lake, (8, 64, 64), (4, 64, 64), (8, 64, 64))
    assert layout(change(lake)) is not None
    assert layout(change(lake, **{path: value})) is None


def test_what_is_no_json_is_left_to_zarr():
    assert layout(b"{") is None
    assert layout(b"[]") is None


def test_a_volume_of_the_lake_is_read_without_zarr(lake, monkeypatch):
    data = np.random.default_rng(1).integers(-500, 500, (70, 80, 66)).astype(np.int16)
    stored = arrays.write_volume(lake, "datasets/d/arrays", data, META)
    monkeypatch.setattr(arrays, "with_pipeline", None)
    found, meta = arrays.read_whole(lake, stored.path, stored.content_digest)
    assert np.array_equal(found, data)
    assert meta == META


def test_a_volume_that_another_program_wrote_anew_in_another_layout_is_read(lake):
    data = np.random.default_rng(1).integers(-500, 500, (20, 30, 26)).astype(np.int16)
    stored = arrays.write_volume(lake, "datasets/d/arrays", data, META)
    group = zarr.open_group(str(lake.store.path(stored.path)), mode="r+")
    group.create_array("0", data=data, chunks=(7, 8, 9), overwrite=True)
    assert np.array_equal(arrays.read_whole(lake, stored.path, stored.content_digest)[0], data)


@pytest.mark.fault(23)
@pytest.mark.parametrize("gone", ["0/zarr.json", "0/c/0/0/0"])
def test_a_file_that_is_gone_fails_the_item(lake, gone):
    stored = arrays.write_volume(lake, "datasets/d/arrays", np.ones((8, 8, 8), np.int16), META)
    lake.store.delete(f"{stored.path}/{gone}")
    with pytest.raises(ItemError) as caught:
        arrays.read_whole(lake, stored.path, stored.content_digest)
    assert caught.value.code == "array_unreadable"
