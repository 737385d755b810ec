"""Arrays that diastole writes are what zarr, and zarrs, read."""

import numpy as np
import pytest
import zarr

from diastole.lake.arrays import READ, WRITE, with_pipeline
from diastole.lake.shards import write_sharded


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("pipeline", [WRITE, READ])
@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<u8"])
@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((64, 64, 64), (64, 64, 64), (64, 64, 64)),
        ((70, 33, 5), (64, 32, 5), (128, 64, 5)),  # one shard that reaches beyond the array
        ((130, 40, 9), (32, 32, 9), (64, 32, 9)),  # several, of which some chunks lie outside
        ((2, 50, 20, 7), (1, 20, 20, 7), (1, 60, 20, 7)),
    ],
)
def test_both_readers_give_back_what_was_written(lake, pipeline, dtype, shape, chunks, shards, plain):
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    data[: shape[0] // 2] = 0  # chunks that hold only zeros
    write_sharded(lake, "a", data, chunks, shards, [f"d{n}" for n in range(data.ndim)], plain=plain)
    array = with_pipeline("open_array", pipeline, lake.store.zarr("a", read_only=True), mode="r")
    assert np.array_equal(array[...], data)
    assert (array.dtype, array.chunks, array.shards) == (data.dtype, chunks, shards)
    assert array.metadata.dimension_names == tuple(f"d{n}" for n in range(data.ndim))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("pipeline", [WRITE, READ])
def test_a_flipped_bit_in_a_chunk_or_in_the_index_is_an_error_in_both_readers(lake, pipeline, plain):
    data = np.random.default_rng(0).integers(0, 200, (8, 64, 64)).astype("u1")
    write_sharded(lake, "a", data, (4, 64, 64), (8, 64, 64), ["z", "y", "x"], plain=plain)
    path = lake.store.path("a/c/0/0/0")
    whole = path.read_bytes()
    for at in (100, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        array = with_pipeline("open_array", pipeline, lake.store.zarr("a", read_only=True), mode="r")
        with pytest.raises((RuntimeError, ValueError, OSError)):
            array[...]


def test_a_chunk_of_zeros_is_there(lake):
    write_sharded(lake, "a", np.zeros((8, 8), "u1"), (4, 8), (8, 8), ["y", "x"])
    data = lake.store.get("a/c/0/0")
    index = np.frombuffer(data[-36:-4], "<u8").reshape(2, 2)
    assert (index < len(data)).all()
    assert zarr.open_array(str(lake.store.path("a")), mode="r")[...].sum() == 0
