"""The reading stage: what a unit needs, from storage to arrays, each held to the digest that was planned."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..jobs.task import Unit
from ..lake import arrays, sequences
from ..lake.errors import ItemError
from ..lake.integrity import how_to_heal
from ..lake.layout import Lake
from .images import ImageReader

PACK = ".zarr"
"""How the path of a pack of images ends; sequences lie in Parquet."""


class Reader:
    """Reads the units of a shard, in their order. What lies in packs is fetched together, pack by pack."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._packs: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._images: dict[str, ImageReader] = {}

    def ahead(self, units: Sequence[dict[str, Any]]) -> None:
        """Fetch what is read in one go for all units of a shard."""
        self._packs.clear()
        wanted: dict[str, list[int]] = {}
        images: dict[str, list[dict[str, Any]]] = {}
        for unit in units:
            for entry in unit["inputs"]:
                if unit["refused_code"] or entry["row"] is None:
                    continue
                if entry["array"].endswith(PACK):
                    images.setdefault(entry["role"], []).append(entry)
                else:
                    wanted.setdefault(entry["array"], []).append(entry["row"])
        self._images = {role: ImageReader(self._lake, entries) for role, entries in images.items()}
        for path, rows in wanted.items():
            try:
                found = sequences.read_rows(self._lake, path, rows)
            except ItemError:
                continue  # each of its units says so when it is read
            self._packs.update({(path, row): letters for row, letters in found.items()})

    def read(self, unit: dict[str, Any]) -> Unit:
        """The data of a unit by role. Raises ItemError where something is missing, damaged or changed."""
        data: dict[str, np.ndarray] = {}
        meta: dict[str, dict[str, Any]] = {}
        for entry in unit["inputs"]:
            role = entry["role"]
            if entry["row"] is None:
                data[role], meta[role] = arrays.read_whole(self._lake, entry["array"], entry["content_digest"])
                continue
            if entry["array"].endswith(PACK):
                data[role], meta[role] = self._images[role].read(entry)
                continue
            letters = self._packs.get((entry["array"], entry["row"]))
            if letters is None:
                raise ItemError("pack_unreadable", f"its pack is missing or damaged; {how_to_heal(entry['array'])}")
            alphabet = sequences.verified(entry["content_digest"], letters)
            data[role], meta[role] = np.frombuffer(letters, np.uint8), {"alphabet": alphabet}
        return Unit(data, meta)
