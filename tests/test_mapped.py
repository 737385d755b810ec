"""Arrays that are mapped from files are the same as those in memory, and are not in memory all at once."""

import numpy as np
import psutil

from diastole.lake import mapped
from diastole.lake.arrays import write_volume

META = {"spacing": [1.0, 1.0, 1.0], "affine": np.eye(4).ravel().tolist()}


def resident():
    return psutil.Process().memory_info().rss


def test_a_mapped_volume_is_stored_as_one_in_memory_with_a_fraction_of_it_resident(lake, tmp_path, monkeypatch):
    data = np.random.default_rng(0).integers(0, 4, (512, 256, 256)).astype("<i2")
    kept = write_volume(lake, "datasets/a/arrays", data, META)
    np.save(tmp_path / "volume.npy", data)
    opened = np.load(tmp_path / "volume.npy", mmap_mode="r")
    before, most, real = resident(), [0], mapped.let_go

    def watched(array):
        most.append(resident())
        real(array)

    monkeypatch.setattr(mapped, "let_go", watched)
    stored = write_volume(lake, "datasets/b/arrays", opened, META)
    assert stored.content_digest == kept.content_digest
    assert [file.sha256 for file in stored.files] == [file.sha256 for file in kept.files]
    assert len(most) > 10
    assert max(most) - before < data.nbytes / 2


def test_bands_are_all_of_an_array_in_order():
    for shape in ((3, 5), (1,), (0, 4), (2**12, 2**11 + 1)):
        data = np.arange(np.prod(shape), dtype="<i8").reshape(shape)
        assert b"".join(band.tobytes() for band in mapped.bands(data)) == data.tobytes()


def test_an_array_that_can_be_written_to_is_not_let_go(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(2**16))
    changed = np.load(tmp_path / "a.npy", mmap_mode="c")
    changed[:] = 1
    mapped.let_go(changed)
    assert (changed == 1).all()
