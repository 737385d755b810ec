"""Images of units one by one, for tasks that take no blocks: units that follow each other in a pack are read together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..lake.errors import ItemError
from ..lake.integrity import how_to_heal
from ..lake.layout import Lake
from ..lake.packs import Pack, raw_digests
from .blocks import BLOCK_BYTES


class ImageReader:
    """Reads images in about the order of `entries`, inputs of one role: array, row and content_digest of each."""

    def __init__(self, lake: Lake, entries: Sequence[Mapping[str, Any]]) -> None:
        self._lake, self._entries = lake, entries
        self._places = {_key(entry): place for place, entry in enumerate(entries)}
        self._path = ""
        self._pack: Pack | ItemError | None = None
        self._run = range(0)
        self._images, self._bad = np.empty(0), np.empty(0, bool)

    def read(self, entry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """An image (C, H, W) and its meta. Raises ItemError where it is missing, damaged or changed."""
        pack, place = self._opened(entry["array"]), self._places[_key(entry)]
        if place not in self._run:
            self._read_from(place, pack)
        if self._bad[place - self._run.start]:
            why = f"it is missing or damaged in its pack, or not what was planned; {how_to_heal(entry['array'])}"
            raise ItemError("pack_unreadable", why)
        return self._images[place - self._run.start], dict(pack.meta)

    def _opened(self, path: str) -> Pack:
        if path != self._path or self._pack is None:
            self._path, self._run = path, range(0)
            try:
                self._pack = Pack.open(self._lake, path)
            except ItemError as error:
                self._pack = error
        if isinstance(self._pack, ItemError):
            raise self._pack
        return self._pack

    def _read_from(self, place: int, pack: Pack) -> None:
        """This image and those after it that are in the same pack, up to BLOCK_BYTES."""
        stop, most = place + 1, max(BLOCK_BYTES // max(pack.image_bytes, 1), 1)
        while stop < min(len(self._entries), place + most) and self._entries[stop]["array"] == pack.path:
            stop += 1
        run = self._entries[place:stop]
        digests = raw_digests([entry["content_digest"] for entry in run])
        self._images, self._bad = pack.take(np.array([entry["row"] for entry in run]), digests)
        self._run = range(place, stop)


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["array"], entry["row"], entry["content_digest"]
