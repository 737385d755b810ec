"""One task: read a batch of items, one after the other, and count. What comes back is small."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from diastole.lake import variants
from diastole.lake.errors import ItemError
from diastole.lake.layout import Lake

from ..read import Reader
from .alleles import Alleles
from .intensity import Intensity
from .letters import BASES, Letters
from .spectrum import Spectrum

Key = tuple[tuple[str, Any], ...]
"""What the items of a group share, by name; sorted as it is stored."""
Counts = Intensity | Spectrum | Letters | Alleles


@dataclass
class Partial:
    """What some items gave."""

    items: int = 0
    groups: dict[Key, Counts] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Items that could not be read, by error code."""
    not_counted: dict[str, int] = field(default_factory=dict)
    """Items of kinds of which there are no statistics, by kind."""

    def merge(self, other: "Partial") -> "Partial":
        """Take in what came after this."""
        self.items += other.items
        for key, counts in other.groups.items():
            if key in self.groups:
                self.groups[key].merge(counts)  # type: ignore[arg-type]  # of one key, all are of one kind
            else:
                self.groups[key] = counts
        for own, others in ((self.left_out, other.left_out), (self.not_counted, other.not_counted)):
            for name, count in others.items():
                own[name] = own.get(name, 0) + count
        return self

    def told(self) -> list[dict[str, Any]]:
        """Groups as they are stored, in the order of what they are of."""
        order = sorted(self.groups, key=lambda key: [(name, value is not None, str(value)) for name, value in key])
        return [{**dict(key), **self.groups[key].told()} for key in order]


def count(lake_root: str, items: pa.Table) -> Partial:
    """Statistics of a batch of `jobs.covered.COVERED`. Raises EnvironmentFailure where storage fails."""
    lake, partial = _opened(lake_root), Partial()
    rows = items.to_pylist()
    units = [{"refused_code": None, "inputs": [{**row, "role": "input"}]} for row in rows]
    reader = Reader(lake)
    reader.ahead([unit for unit, row in zip(units, rows, strict=True) if row["row"] is not None])
    for unit, row in zip(units, rows, strict=True):
        kind = row["kind"]
        if kind not in _COUNT:
            partial.not_counted[kind] = partial.not_counted.get(kind, 0) + 1
            continue
        try:
            data, meta = _read(lake, reader, unit, row)
        except ItemError as error:
            partial.left_out[error.code] = partial.left_out.get(error.code, 0) + 1
            continue
        partial.items += 1
        _COUNT[kind](partial, row, data, meta)
    return partial


def _read(lake: Lake, reader: Reader, unit: dict[str, Any], row: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An item's data, and what is known of it beside. Raises ItemError."""
    if row["kind"] == "variants":
        return variants.read_variants(lake, row["array"], row["content_digest"]), {}
    read = reader.read(unit)
    return read.data["input"], dict(read.meta["input"])


def merged(partials: list[Partial]) -> Partial:
    """All in one, in their order."""
    whole = Partial()
    for partial in partials:
        whole.merge(partial)
    return whole


def _volume(partial: Partial, row: dict[str, Any], data: np.ndarray, meta: dict[str, Any]) -> None:
    slope, intercept = meta.get("rescale") or (1.0, 0.0)
    _group(partial, row, Intensity, "intensity").add(data, float(slope), float(intercept))


def _image(partial: Partial, row: dict[str, Any], data: np.ndarray, meta: dict[str, Any]) -> None:
    del meta
    for number, channel in enumerate(data):
        of = {"channel": number} if len(data) > 1 else {}
        _group(partial, row, Intensity, "intensity", **of).add(channel, 1.0, 0.0)


def _recording(partial: Partial, row: dict[str, Any], data: np.ndarray, meta: dict[str, Any]) -> None:
    rate = float(meta["rate"])
    for number, name in enumerate(meta["channels"]):
        gain, offset = float(meta["gain"][number]), float(meta["offset"][number])
        of = {"channel": name, "unit": meta["units"][number], "rate_hz": rate}
        _group(partial, row, lambda: Spectrum(rate), "power", **of).add(data[number], gain, offset)


def _sequence(partial: Partial, row: dict[str, Any], data: np.ndarray, meta: dict[str, Any]) -> None:
    if meta["alphabet"] in BASES:
        alphabet = meta["alphabet"]
        _group(partial, row, lambda: Letters(alphabet), "letters", alphabet=alphabet).add(data)


def _variants(partial: Partial, row: dict[str, Any], data: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    del meta
    _group(partial, row, Alleles, "alleles").add(data["variant_allele"], data.get("call_genotype"))


_COUNT: dict[str, Callable[[Partial, dict[str, Any], Any, dict[str, Any]], None]] = {
    "volume": _volume,
    "image": _image,
    "recording": _recording,
    "sequence": _sequence,
    "variants": _variants,
}


def _group(partial: Partial, row: dict[str, Any], make: Any, what: str, **of: Any) -> Any:
    key: Key = (("what", what), ("modality", row["modality"]), ("site", row["site"]), *of.items())
    if key not in partial.groups:
        partial.groups[key] = make()
    return partial.groups[key]


@lru_cache(4)
def _opened(lake_root: str) -> Lake:
    return Lake.open(lake_root)
