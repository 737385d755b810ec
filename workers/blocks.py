"""Blocks: items that lie side by side in packs, read and scored together, without an object for each of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..lake.errors import ItemError
from ..lake.integrity import how_to_heal
from ..lake.layout import Lake
from ..lake.packs import Pack, raw_digests

BLOCK_BYTES = 32 * 2**20
"""What is read in one go at about: chunks at its ends are read by two blocks, so few and large ones are better."""


@dataclass(frozen=True)
class Block:
    """Items of one pack, each of one window that is the whole item."""

    units: pa.Table
    """Their rows of the plan."""
    data: np.ndarray
    """(n, …) as stored."""
    meta: dict[str, Any]
    """What is known of each."""

    def __len__(self) -> int:
        return len(self.data)

    @property
    def nbytes(self) -> float:
        """Bytes of its items."""
        return float(self.data.nbytes)

    def cut(self, start: int, stop: int) -> "Block":
        """A part of it; nothing is copied."""
        return Block(self.units.slice(start, stop - start), self.data[start:stop], self.meta)


Lost = tuple[pa.Table, ItemError]
"""Rows of the plan that cannot be read, and why."""


def in_packs(units: pa.Table) -> np.ndarray:
    """(n,) bool: which units are one item of a pack of images, and not refused before any compute."""
    inputs = units["inputs"].combine_chunks()
    single = pc.equal(pc.list_value_length(inputs), 1)
    array, row = (pc.struct_field(pc.list_element(inputs, 0), name) for name in ("array", "row"))
    packed = pc.and_(pc.is_valid(row), pc.ends_with(array, ".zarr"))
    wanted = pc.and_(pc.and_(single, packed), pc.is_null(units["refused_code"].combine_chunks()))
    return np.asarray(wanted.fill_null(False))


def read_blocks(lake: Lake, units: pa.Table, batch: int) -> "Iterator[Block | Lost]":
    """The units that `in_packs` says, in their order, as blocks of whole batches. Raises EnvironmentFailure."""
    inputs = pc.list_element(units["inputs"].combine_chunks(), 0)
    paths = pc.struct_field(inputs, "array").dictionary_encode()
    rows = np.asarray(pc.struct_field(inputs, "row"))
    expected = raw_digests(pc.struct_field(inputs, "content_digest").to_pylist())
    codes = np.asarray(paths.indices)
    edges = np.flatnonzero(np.diff(codes)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(codes)], strict=True):
        path = paths.dictionary[int(codes[start])].as_py()
        try:
            pack = Pack.open(lake, path)
        except ItemError as error:
            yield units.slice(start, stop - start), error
            continue
        size = batch * max(1, BLOCK_BYTES // max(batch * pack.image_bytes, 1))
        for first in range(start, stop, size):
            last = min(first + size, stop)
            data, bad = pack.take(rows[first:last], expected[first:last])
            here = units.slice(first, last - first)
            if bad.any():
                why = f"it is missing or damaged in its pack, or not what was planned; {how_to_heal(path)}"
                yield here.filter(pa.array(bad)), ItemError("pack_unreadable", why)
                here, data = here.filter(pa.array(~bad)), data[~bad]
            if len(data):
                yield Block(here, data, pack.meta)
