"""From the arrays of a VCF that a reader wrote to a group in the lake, in the process that holds the lake's key."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from diastole.lake import integrity, suppressed, variants
from diastole.lake.arrays import StoredArray
from diastole.lake.errors import ItemError
from diastole.lake.layout import Lake

from .decode import Decoded

_CELLS = 2**24


def store_variants(
    lake: Lake,
    prefix: str,
    decoded: Decoded,
    entry: Mapping[str, Any],
    subject: str | None,
    gone: frozenset[str] = frozenset(),
    recorded: integrity.Recorded | None = None,
) -> tuple[StoredArray, list[int], int]:
    """Write an entry of kind `variants`; its stored group, (variants, samples), and its bytes.

    Samples become keyed ids of subjects; a file of one sample is of `subject`, if one is said. The columns of samples
    whose subject is among the `gone` (ids of withdrawn subjects) are left out. Raises KeyError, TypeError or ValueError
    where the reader broke its contract.
    """
    with decoded.file(entry["samples"]).open(encoding="utf-8") as lines:
        names = [str(json.loads(line)) for line in lines]
    if len(names) == 1 and subject:
        names = [subject]
    ids = [lake.subject_id(name) for name in names]
    keep = np.array([one not in gone for one in ids], bool)
    if ids and not keep.any():
        raise ItemError(suppressed.WITHDRAWN, "consent was withdrawn for all of its samples")
    fields = {}
    for name, described in entry["arrays"].items():
        field = _field(decoded, described)
        if len(field.dimensions) != field.data.ndim:
            raise ValueError("dimensions")
        if "samples" in field.dimensions:
            if field.dimensions[1] != "samples" or field.data.shape[1] != len(ids):
                raise ValueError("samples")
            if not keep.all():
                field = _kept(decoded, described, field, keep)
        fields[name] = field
    fields["sample_id"] = variants.texts("samples", [one for one, kept in zip(ids, keep, strict=True) if kept])
    stored = variants.write_variants(lake, prefix, fields, dict(entry["meta"]), recorded)
    shape = [len(fields["variant_position"].data), int(keep.sum())]
    return stored, shape, sum(field.nbytes for field in fields.values())


def _field(decoded: Decoded, described: Mapping[str, Any]) -> variants.Field:
    data = np.load(decoded.file(described["file"]), mmap_mode="r", allow_pickle=False)
    if data.dtype.kind not in "biuf" or not data.flags.c_contiguous:
        raise ValueError("dtype")
    dimensions = tuple(str(one) for one in described["dimensions"])
    if "text" not in described:
        return variants.Field(dimensions, data)
    file = decoded.file(described["text"])
    letters = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
    if int(data.sum(dtype=np.int64)) != letters.size:
        raise ValueError("letters")
    return variants.Field(dimensions, data, letters)


def _kept(decoded: Decoded, described: Mapping[str, Any], field: variants.Field, keep: np.ndarray) -> variants.Field:
    """A field without the columns of some samples, in a file beside it: it need not fit the memory."""
    path = decoded.folder / f"kept-{described['file']}"
    shape = (field.data.shape[0], int(keep.sum()), *field.data.shape[2:])
    whole = np.lib.format.open_memmap(path, "w+", field.data.dtype, shape)
    step = max(1, _CELLS // max(int(np.prod(field.data.shape[1:])), 1))
    for at in range(0, len(whole), step):
        whole[at : at + step] = field.data[at : at + step][:, keep]
    return variants.Field(field.dimensions, whole)
