"""Genotypes and what is known of variants: a group of the VCF Zarr specification, immutable, at a path of its digest.

Zarr v3, sharded, every chunk with a checksum. Samples are named by keyed ids, never by the file's own names.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import integrity
from .arrays import READ, StoredArray, decoding, shards, with_pipeline, writing
from .errors import ItemError
from .ids import begun_digest
from .layout import Lake
from .shards import ZSTD_LEVEL, describe, join_chunks, write_sharded

VERSION = "0.4"
"""Of the VCF Zarr specification."""
SUFFIX = ".vcz"
_ROWS, _SAMPLES, _CELLS = 10_000, 10_000, 2**20
"""Variants and samples of a chunk at most, and the cells that it aims at."""
_TEXT_CHUNKS = 100
"""Chunks of a shard of texts."""
_PIECE = 2**24
_READERS = 8


@dataclass(frozen=True)
class Field:
    """One array. Of texts, `data` has the lengths of their UTF-8, and `letters` all of it, in C order."""

    dimensions: tuple[str, ...]
    data: np.ndarray
    letters: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers and letters."""
        return self.data.nbytes + (0 if self.letters is None else self.letters.nbytes)


def texts(dimension: str, values: Iterable[str]) -> Field:
    """A field of texts with one dimension."""
    encoded = [value.encode() for value in values]
    lengths = np.array([len(one) for one in encoded], np.uint32)
    return Field((dimension,), lengths, np.frombuffer(b"".join(encoded), np.uint8))


def write_variants(
    lake: Lake,
    prefix: str,
    fields: Mapping[str, Field],
    meta: Mapping[str, Any],
    recorded: integrity.Recorded | None = None,
) -> StoredArray:
    """Write fields by their names in VCF Zarr; `recorded` as in lake.arrays. They may be mapped: pieces of them are read."""
    digest = fields_digest(fields, meta)
    path = f"{prefix}/{digest}{SUFFIX}"
    with writing(path):
        healed = recorded is not None and _damaged(lake, path, recorded)
        if healed:
            lake.store.delete(f"{path}/zarr.json")  # first, so that a kill in between leaves no whole group
            for file, _ in lake.store.list(path):
                lake.store.delete(file)
        if lake.store.size(f"{path}/zarr.json") is None:  # written last: where it is, the group is whole
            for name, field in fields.items():
                _write(lake, f"{path}/{name}", field, _sample_count(fields))
            lake.store.sync(path)
            attributes = {"vcf_zarr_version": VERSION, "source": "diastole", "diastole": dict(meta)}
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            lake.store.put(f"{path}/zarr.json", json.dumps(group).encode())
    return StoredArray(path, digest, integrity.hashed(lake, path), healed)


def fields_digest(fields: Mapping[str, Field], meta: Mapping[str, Any]) -> str:
    """Digest over names, dimensions, shapes, dtypes and bytes of all fields, and `meta`."""
    described = {
        name: [list(field.dimensions), list(field.data.shape), _little(field.data).str, field.letters is not None]
        for name, field in fields.items()
    }
    running = begun_digest({"vcf_zarr": described, "meta": dict(meta)})
    for name in sorted(fields):
        for values in (fields[name].data, fields[name].letters):
            flat = np.empty(0, np.uint8) if values is None else values.reshape(-1).view(np.uint8)
            for at in range(0, flat.size, _PIECE):
                running.update(flat[at : at + _PIECE].data)
    return running.hexdigest()[:32]


def read_variants(lake: Lake, path: str, expected_digest: str) -> dict[str, np.ndarray]:
    """All fields by name, texts as strings, held to the digest of their content.

    Raises ItemError where one is missing, damaged or not what was planned; EnvironmentFailure where storage fails.
    """
    with decoding(lake, path):
        group = json.loads(lake.store.get(f"{path}/zarr.json"))["attributes"]["diastole"]
        found = {name: _read(lake, path, name) for name in lake.store.folders(path)}
        same = fields_digest({name: field for name, (field, _) in found.items()}, group) == expected_digest
    if not same:
        raise ItemError("digest_mismatch", f"its arrays are not what was planned; {integrity.how_to_heal(path)}")
    return {name: values for name, (_, values) in found.items()}


def samples_of(lake: Lake, paths: Iterable[str]) -> dict[str, frozenset[str] | None]:
    """Path of a group → the keyed ids of its samples; None where they cannot be read. Others than groups are left out."""
    groups = sorted({path for path in paths if path.endswith(SUFFIX)})
    with ThreadPoolExecutor(_READERS) as threads:
        return dict(zip(groups, threads.map(lambda path: _samples(lake, path), groups), strict=True))


def _samples(lake: Lake, path: str) -> frozenset[str] | None:
    try:
        return frozenset(sample_ids(lake, path))
    except ItemError:
        return None


def sample_ids(lake: Lake, path: str) -> list[str]:
    """The keyed ids of a group's samples. Raises ItemError where they cannot be read."""
    with decoding(lake, path):
        return [str(one) for one in _read(lake, path, "sample_id")[1]]


def _read(lake: Lake, path: str, name: str) -> tuple[Field, np.ndarray]:
    array = with_pipeline("open_array", READ, lake.store.zarr(path, read_only=True), path=name, mode="r")
    values = array[...]
    dimensions = tuple(array.metadata.dimension_names or ())
    if values.dtype.kind in "biuf":
        return Field(dimensions, np.ascontiguousarray(values)), values
    whole = texts("", values.reshape(-1))
    return Field(dimensions, whole.data.reshape(values.shape), whole.letters), values


def _write(lake: Lake, path: str, field: Field, samples: int) -> None:
    rows = min(_ROWS, max(1000, _CELLS // max(min(samples, _SAMPLES), 1)))
    most = {"variants": rows, "samples": _SAMPLES}
    sizes = zip(field.dimensions, field.data.shape, strict=True)
    chunks = tuple(max(min(size, most.get(name, size)), 1) for name, size in sizes)
    if field.letters is None:
        whole = shards(field.data.shape, chunks, field.data.itemsize)
        write_sharded(lake, path, field.data, chunks, whole, field.dimensions)
    else:
        _write_texts(lake, path, field, field.letters, chunks)


def _write_texts(lake: Lake, path: str, field: Field, letters: np.ndarray, chunks: tuple[int, ...]) -> None:
    """Texts as zarr's `string`, vlen-utf8 and zstd, of which each chunk has all but the first axis whole."""
    from numcodecs import Zstd

    zstd = Zstd(level=ZSTD_LEVEL, checksum=True)
    lengths = field.data.reshape(field.data.shape[0], -1)
    ends = np.cumsum(lengths.sum(axis=1, dtype=np.int64))
    count = -(-len(lengths) // chunks[0])
    per_shard = min(count, _TEXT_CHUNKS)
    for shard in range(-(-count // per_shard)):
        pieces: list[bytes | None] = []
        for chunk in range(shard * per_shard, (shard + 1) * per_shard):
            start, stop = chunk * chunks[0], min((chunk + 1) * chunks[0], len(lengths))
            if start >= len(lengths):
                pieces.append(None)
                continue
            first = int(ends[start - 1]) if start else 0
            text = letters[first : int(ends[stop - 1])].tobytes()
            padding = (start + chunks[0] - stop) * lengths.shape[1]
            pieces.append(zstd.encode(_vlen(lengths[start:stop].reshape(-1), text, padding)))
        place = "/".join([str(shard), *["0"] * (field.data.ndim - 1)])
        lake.store.put(f"{path}/c/{place}", join_chunks(pieces), durable=False)
    grid = (per_shard * chunks[0], *chunks[1:])
    described = describe(field.data.shape, np.dtype(np.uint8), chunks, grid, field.dimensions, plain=False)
    described |= {"data_type": "string", "fill_value": ""}
    described["codecs"][0]["configuration"]["codecs"][0] = {"name": "vlen-utf8", "configuration": {}}
    lake.store.put(f"{path}/zarr.json", json.dumps(described).encode(), durable=False)


def _vlen(lengths: np.ndarray, text: bytes, padding: int) -> bytes:
    """A chunk of texts: their number, then of each its length and its UTF-8; `padding` empty ones follow."""
    pieces, at = [struct.pack("<I", lengths.size + padding)], 0
    for length in lengths.tolist():
        pieces += [struct.pack("<I", length), text[at : at + length]]
        at += length
    return b"".join([*pieces, bytes(4 * padding)])


def _sample_count(fields: Mapping[str, Field]) -> int:
    return max((field.data.shape[1] for name, field in fields.items() if name.startswith("call_")), default=0)


def _damaged(lake: Lake, path: str, recorded: integrity.Recorded) -> bool:
    """Whether something is at a group's path that is not what was recorded of it."""
    files, expected = integrity.hashed(lake, path), recorded.below(path)
    return files != expected if expected else bool(files)


def _little(data: np.ndarray) -> np.dtype[Any]:
    return data.dtype.newbyteorder("<")
