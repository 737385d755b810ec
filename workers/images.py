"""Images of a shard out of their packs: units that follow each other are read together, and each pack is opened once."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..lake.errors import ItemError
from ..lake.integrity import how_to_heal
from ..lake.layout import Lake
from ..lake.packs import Pack, raw_digests

BLOCK_BYTES = 32 * 2**20
"""Images that are read in one go at most, unless one is larger."""
OPEN = 4
"""Packs that stay open."""


@dataclass(frozen=True)
class Block:
    """Images of units that follow each other, all of one pack."""

    first: int
    """Place of the first among those that were asked for."""
    images: np.ndarray
    """(n, C, H, W); the values of bad ones mean nothing."""
    bad: np.ndarray
    """(n,) bool: missing, damaged, or not what was planned."""
    meta: Mapping[str, Any]


def read_blocks(
    lake: Lake, paths: Sequence[str], rows: Sequence[int], digests: Sequence[str]
) -> Iterator[Block | tuple[int, int, ItemError]]:
    """Blocks of images (`paths`, `rows`, content `digests` by unit), in their order, each read when it is asked for.

    A pack that cannot be read at all gives (first, count, error) instead. Raises EnvironmentFailure where storage fails.
    """
    packs: OrderedDict[str, Pack | ItemError] = OrderedDict()
    numbers, expected = np.asarray(rows, np.int64), raw_digests(digests)
    start = 0
    while start < len(paths):
        path = paths[start]
        if path not in packs:
            packs[path] = _opened(lake, path)
            while len(packs) > OPEN:
                packs.popitem(last=False)
        pack = packs[path]
        most = len(paths) if isinstance(pack, ItemError) else max(BLOCK_BYTES // max(pack.image_bytes, 1), 1)
        stop = start + 1
        while stop < len(paths) and paths[stop] == path and stop - start < most:
            stop += 1
        if isinstance(pack, ItemError):
            yield start, stop - start, pack
        else:
            images, bad = pack.take(numbers[start:stop], expected[start:stop])
            yield Block(start, images, bad, pack.meta)
        start = stop


def damaged(path: str) -> ItemError:
    """What a unit whose image is bad fails with."""
    return ItemError(
        "image_damaged", f"its image is missing or damaged in its pack, or not what was planned; {how_to_heal(path)}"
    )


class ImageReader:
    """The images of units one by one, in about the order in which they were asked for; read block by block."""

    def __init__(self, lake: Lake, entries: Sequence[Mapping[str, Any]]) -> None:
        columns = ([entry[name] for entry in entries] for name in ("array", "row", "content_digest"))
        self._lake, self._blocks = lake, read_blocks(lake, *columns)
        self._places = {_key(entry): place for place, entry in enumerate(entries)}
        self._first, self._stop = 0, 0
        self._found: Block | ItemError | None = None

    def read(self, entry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """An image (C, H, W) and its meta. Raises ItemError where it is missing, damaged or changed."""
        place = self._places[_key(entry)]
        if place < self._first:  # it is in several units, and was passed
            return ImageReader(self._lake, [entry]).read(entry)
        while place >= self._stop:
            found = next(self._blocks)
            if isinstance(found, Block):
                self._first, self._stop, self._found = found.first, found.first + len(found.images), found
            else:
                self._first, self._stop, self._found = found[0], found[0] + found[1], found[2]
        if not isinstance(self._found, Block):
            raise self._found or damaged(entry["array"])
        if self._found.bad[place - self._first]:
            raise damaged(entry["array"])
        return self._found.images[place - self._first], dict(self._found.meta)


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["array"], entry["row"], entry["content_digest"]


def _opened(lake: Lake, path: str) -> Pack | ItemError:
    try:
        return Pack.open(lake, path)
    except ItemError as error:
        return error
