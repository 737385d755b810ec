"""A lake that is read where it lies, and written to elsewhere: what probes score leaves nothing in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..lake.errors import EnvironmentFailure
from ..lake.layout import Lake
from ..lake.store import Found, Store

WRITTEN = ("runs", "predictions", "current", "maps", "integrity")
"""What a run writes; these lie in the other folder, and are empty at first."""


class Aside(Store):
    """Datasets and models are those of a store, all that a run writes goes to a folder."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store.root)
        self._lake, self._folder = store, Store(str(folder))

    def path(self, relative: str) -> Path:
        return self._at(relative).path(relative)

    def uri(self, relative: str) -> str:
        return self._at(relative).uri(relative)

    def get(self, relative: str) -> bytes:
        return self._at(relative).get(relative)

    def sha256(self, relative: str) -> str:
        return self._at(relative).sha256(relative)

    def open(self, relative: str) -> Any:
        return self._at(relative).open(relative)

    def fill(self, relative: str, places: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        return self._at(relative).fill(relative, places)

    def size(self, relative: str) -> int | None:
        return self._at(relative).size(relative)

    def put(self, relative: str, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:
        self._to(relative).put(relative, data, durable=durable)

    def put_if_absent(self, relative: str, data: bytes) -> bool:
        return self._to(relative).put_if_absent(relative, data)

    def link(self, paths: Mapping[str, str]) -> None:
        for path in (*paths, *paths.values()):
            self._to(path)
        self._folder.link(paths)

    def delete(self, relative: str) -> None:
        self._to(relative).delete(relative)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return self._at(prefix).list(prefix)

    def found(self, prefix: str) -> Iterator[Found]:
        return self._at(prefix).found(prefix)

    def prune(self, prefix: str) -> None:
        self._to(prefix).prune(prefix)

    def names(self, prefix: str) -> Iterator[str]:
        return self._at(prefix).names(prefix)

    def folders(self, prefix: str) -> Iterator[str]:
        return self._at(prefix).folders(prefix)

    def sync(self, *prefixes: str) -> None:
        for prefix in prefixes:
            self._to(prefix)
        self._folder.sync(*prefixes)

    def zarr(self, relative: str, *, read_only: bool) -> Any:
        return (self._at if read_only else self._to)(relative).zarr(relative, read_only=read_only)

    def _at(self, relative: str) -> Store:
        return self._folder if PurePosixPath(relative).parts[0] in WRITTEN else self._lake

    def _to(self, relative: str) -> Store:
        store = self._at(relative)
        if store is self._lake:
            raise EnvironmentFailure("a probe was about to write into the lake; this is a fault of diastole, report it")
        return store


def aside(lake: Lake, folder: Path) -> Lake:
    """A lake whose runs leave nothing in it."""
    return Lake(Aside(lake.store, folder), lake.lake_id)
