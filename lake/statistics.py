"""Statistics of a dataset, stored beside it: `statistics/DATASET/DIGEST.json`, written once.

The digest is of the contents of the items that they cover, their sites if asked, and of how they were made: so what is
there says whether it is of the dataset as it is now. Withdrawal removes those of each dataset that held the subject.
"""

import json
from collections.abc import Mapping
from typing import Any

from . import integrity
from .errors import LakeError
from .ids import digest, sha256_bytes
from .layout import Lake, check_name
from .plain_json import from_json

ROOM = "statistics"
FORMAT = 1
"""Raised whenever the same items would give other statistics."""
PARAMETERS: Mapping[str, Any] = {
    "histogram_bits": 20,  # of a float32: sign, exponent and 11 of the mantissa, so integers up to 4096 are exact
    "window_s": 4.0,
    "most_samples": 4096,  # in one window of a power spectrum
    "kmer": {"dna": 4, "protein": 3},
}
"""How they are made."""


def folder(dataset: str) -> str:
    """Where a dataset's statistics lie."""
    return f"{ROOM}/{check_name('dataset', dataset)}"


def statistics_digest(items: str, by: str | None) -> str:
    """Digest of statistics over items of this digest, by nothing or by `site`."""
    return digest({"format": FORMAT, "items": items, "by": by, "parameters": dict(PARAMETERS)})


def write(lake: Lake, dataset: str, name: str, found: Mapping[str, Any]) -> None:
    """Store statistics under their digest, and record the file. What is there already, whole, is left as it is."""
    path, data = f"{folder(dataset)}/{name}.json", _words(found)
    if not lake.store.put_if_absent(path, data):
        if lake.store.get(path) == data:
            return
        lake.store.put(path, data)  # it was damaged: whole, it would be the same
    integrity.renew(lake, [integrity.FileRecord(path, len(data), sha256_bytes(data))], "stats")


def read(lake: Lake, dataset: str, name: str) -> dict[str, Any] | None:
    """Statistics by their digest; None where there are none, or they are damaged."""
    try:
        found = from_json(lake.store.get(f"{folder(dataset)}/{name}.json"))
        check = found.pop("check")
    except (FileNotFoundError, NotADirectoryError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return dict(found) if check == digest(found) and found.get("digest") == name else None


def stored(lake: Lake, dataset: str) -> list[str]:
    """Digests of all that a dataset has."""
    return sorted(name.removesuffix(".json") for name in lake.store.names(folder(dataset)) if name.endswith(".json"))


def drop(lake: Lake, dataset: str) -> int:
    """Remove all of a dataset's. How many. Killed in between, `check` misses nothing, and the next call goes on."""
    paths = [path for path, _ in lake.store.list(folder(dataset))]
    if paths:
        integrity.forget(lake, paths)
    for path in paths:
        lake.store.delete(path)
    return len(paths)


def check_by(by: str | None) -> str | None:
    """Raises LakeError for what statistics cannot be split by."""
    if by not in (None, "site"):
        raise LakeError(f"statistics cannot be split by {by!r}; use site")
    return by


def _words(found: Mapping[str, Any]) -> bytes:
    return json.dumps({**found, "check": digest(dict(found))}).encode()
