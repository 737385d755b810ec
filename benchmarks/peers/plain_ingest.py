"""What a careful person would write instead of `diastole ingest`: pydicom or nibabel, and zarr-python.

    python plain_ingest.py FOLDER OUT WORKERS

FOLDER has a folder of slices for each series, or NIfTI files. Each becomes an array OUT/NAME.zarr with the chunks, the codec
and the checksums of diastole's; of each source no more is in memory than its pixels as pydicom has them, and the volume.
Nothing is hashed, no header is doubted, no place of a slice is checked, nothing is de-identified, no table is written.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

SHARD_BYTES = 2**28


def of_series(folder: Path) -> np.ndarray:
    """(z, y, x), sorted by the slices' places along their normal."""
    import pydicom

    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    turned = np.array(slices[0].ImageOrientationPatient, float)
    normal = np.cross(turned[:3], turned[3:])
    slices.sort(key=lambda one: -np.dot(np.array(one.ImagePositionPatient, float), normal))
    volume = np.empty((len(slices), slices[0].Rows, slices[0].Columns), slices[0].pixel_array.dtype)
    for place in range(len(volume)):
        volume[place] = slices.pop().pixel_array
    return volume


def of_nifti(path: Path) -> np.ndarray:
    """(z, y, x), as stored."""
    import nibabel

    return np.ascontiguousarray(nibabel.load(path).dataobj.get_unscaled().T)


def convert(source: Path, out: Path) -> None:
    """Write one volume."""
    volume = of_series(source) if source.is_dir() else of_nifti(source)
    chunks = tuple(min(size, 64) for size in volume.shape)
    shards = [-(-size // chunk) * chunk for size, chunk in zip(volume.shape, chunks, strict=True)]
    while np.prod(shards) * volume.itemsize > SHARD_BYTES:
        shards[0] = -(-shards[0] // (2 * chunks[0])) * chunks[0]
    zarr.config.set({"array.write_empty_chunks": True})
    array = zarr.create_array(
        out / f"{source.name.partition('.')[0]}.zarr",
        shape=volume.shape,
        dtype=volume.dtype,
        chunks=chunks,
        shards=tuple(shards),
        compressors=ZstdCodec(level=3, checksum=True),
        dimension_names="zyx",
    )
    array[...] = volume


def main(folder: Path, out: Path, workers: int) -> None:
    """Convert all, in this process or in several."""
    sources = sorted(folder.iterdir())
    if workers == 1:
        for source in sources:
            convert(source, out)
        return
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(convert, out=out), sources))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
