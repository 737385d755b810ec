"""What a listing finds, held against what is known of the dataset's sources: a million unchanged files in seconds."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diastole.lake.layout import Lake

from .listing import SIDECARS, plain
from .sources import NOTHING, IngestOptions, OptionsDigests, Source

BATCH = 2**16
"""Sources that are compared at a time."""
SHORT, TWINS = 24, 64
"""Digits of a digest that files are looked up by, and how many with the same are looked at."""


@dataclass
class Comparison:
    """Sources that are new or changed, and which of the known rows were found again."""

    lake: Lake
    options: IngestOptions
    known: pa.Table
    """As lake.items.read_sources gives it, in one chunk."""
    said: Mapping[str, tuple[int, Mapping[str, str]]] = field(default_factory=dict)
    """As sources.read_manifest gives it."""
    changed: dict[str, Source] = field(default_factory=dict)
    """source_key → source, new ones too, in the order of the listing."""
    at: dict[str, int] = field(default_factory=dict)
    """source_key → row of `known`, for those of `changed` that have one."""
    paths: dict[int, str] = field(default_factory=dict)
    """Row of `known` → path, for found files that are parts of a source."""
    roots: dict[int, str] = field(default_factory=dict)
    """Likewise the path that was named."""
    files: int = 0
    """Sources that were found, without sidecars that belong to none."""

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.known), bool)
        """Which rows were found again."""
        self.same = np.zeros(len(self.known), bool)
        """Which of them had not changed."""
        self.moved: dict[int, str] = {}
        """Rows that were found below another root than before, and its key."""
        self.digests = OptionsDigests(self.options)
        self._keys = self.known["source_key"].combine_chunks()
        self._words, self._words_at = _encoded(self.known["options_digest"])
        self._roots, self._roots_at = _encoded(self.known["root"])
        self._groups: dict[str, list[int]] | None = None
        self._part_of = pc.is_valid(self.known["part_of"]).to_numpy(zero_copy_only=False)
        self._root_keys: dict[str, str] = {}
        self._looked_up: dict[str, int | None] = {}
        self._sorting = threading.Lock()
        self._by_digest: tuple[np.ndarray, np.ndarray] | None = None
        self._bytes = self.known["bytes"].to_numpy()
        self._modified = self.known["modified_ns"].to_numpy()
        state = self.known["state"]
        self._failed, self._gone = (
            pc.equal(state, word).to_numpy(zero_copy_only=False).astype(bool) for word in ("quarantined", "gone")
        )

    def take_all(self, listing: Iterable[Source]) -> None:
        """Compare all sources of a listing."""
        left = iter(listing)
        while batch := list(islice(left, BATCH)):
            self._take(batch)

    def _take(self, batch: list[Source]) -> None:
        keys = [self.lake.source_key(source.path) for source in batch]
        found = pc.index_in(pa.array(keys, pa.string()), value_set=self._keys)
        rows = found.fill_null(-1).to_numpy(zero_copy_only=False)
        same = self._unchanged(batch, rows)
        for source, key, row, is_same in zip(batch, keys, rows.tolist(), same.tolist(), strict=True):
            if row >= 0:
                self._again(source, row, is_same=is_same)
            elif source.sidecar:
                continue
            self.files += 1
            if not is_same:
                self.changed[key] = source
                if row >= 0:
                    self.at[key] = row

    def _again(self, source: Source, row: int, *, is_same: bool) -> None:
        self.seen[row], self.same[row] = True, is_same
        if self._part_of[row]:
            self.paths[row], self.roots[row] = source.path, source.root
        root = self.root_key(source.root)
        if is_same and self._roots_at[row] != self._roots.get(root, -2):
            self.moved[row] = root

    def _unchanged(self, batch: list[Source], rows: np.ndarray) -> np.ndarray:
        """Which are known, with the same size, time and options; (n,) bool."""
        there = rows >= 0
        at = np.where(there, rows, 0)
        if not len(self.known) or self.options.verify:
            return np.zeros(len(batch), bool)
        same = there & ~self._gone[at]
        same &= self._bytes[at] == np.fromiter((s.size for s in batch), np.int64, len(batch))
        same &= self._modified[at] == np.fromiter((s.modified for s in batch), np.int64, len(batch))
        failed = self._failed[at]
        if self.options.retry:
            same &= ~failed
        for place in np.flatnonzero(same).tolist():
            digest = self.digests.of(batch[place], with_limits=bool(failed[place]))
            same[place] = self._words.get(digest, -1) == self._words_at[rows[place]]
        return same

    def root_key(self, root: str) -> str:
        """Opaque id of a path that was named."""
        if root not in self._root_keys:
            self._root_keys[root] = self.lake.source_key(root)
        return self._root_keys[root]

    def row(self, key: str) -> int | None:
        """Row of a source in `known`."""
        if key in self.at or key in self.changed:
            return self.at.get(key)
        if key not in self._looked_up:
            at = pc.index(self._keys, key).as_py() if len(self._keys) else -1
            self._looked_up[key] = None if at < 0 else at
        return self._looked_up[key]

    def known_row(self, key: str) -> dict[str, Any] | None:
        """What is known of a source."""
        row = self.row(key)
        return None if row is None else dict(self.known.slice(row, 1).to_pylist()[0])

    def unseen_failures(self) -> set[str]:
        """Keys of what once failed, and was not found again."""
        return set(self._keys.filter(pa.array(self._failed & ~self.seen)).to_pylist())

    def twin(self, new: Mapping[str, Any]) -> list[str] | None:
        """Items of a file that holds what a new one does, of which the same is said, and that did not change meanwhile."""
        with self._sorting:
            if self._by_digest is None:
                whole = ~self._failed & ~self._gone & ~self._part_of & ~(self.seen & ~self.same)
                rows = np.flatnonzero(whole)
                short = pc.utf8_slice_codeunits(self.known["source_digest"].take(rows), 0, SHORT).to_pylist()
                short = np.array([text or "" for text in short], f"S{SHORT}")
                order = np.argsort(short)
                self._by_digest = short[order], rows[order]
        short, rows = self._by_digest
        first = np.searchsorted(short, new["source_digest"][:SHORT].encode())
        for row in rows[first : first + TWINS].tolist():
            known = self.known.slice(row, 1).to_pylist()[0]
            if known["source_digest"] == new["source_digest"] and known["options_digest"] == new["options_digest"]:
                return list(known["items"])
        return None

    def unchanged_items(self) -> int:
        """Items of sources that had not changed."""
        rows = pa.array(self.same & ~self._failed)
        return len(pc.unique(pc.list_flatten(self.known["items"].filter(rows).combine_chunks())))

    def still_quarantined(self) -> int:
        """Sources that failed before and had not changed; those of many files count once."""
        rows = pa.array(self.same & self._failed)
        return len(pc.unique(pc.coalesce(self.known["part_of"], self.known["source_key"]).filter(rows)))

    def missing(self, roots: Iterable[str]) -> np.ndarray:
        """Rows that lay below these roots, are not gone yet, and were not found again; (n,) bool."""
        wanted = pa.array([self.root_key(root) for root in roots], pa.string())
        below = pc.is_in(self.known["root"], value_set=wanted).to_numpy(zero_copy_only=False)
        return below & ~self.seen & ~self._gone

    def members(self, part_of: str) -> list[int]:
        """Rows of all found files that are parts of a source."""
        if self._groups is None:
            self._groups = {}
            column = self.known["part_of"]
            for row in self.paths:
                self._groups.setdefault(column[row].as_py(), []).append(row)
        return self._groups.get(part_of, [])

    def source(self, row: int) -> Source:
        """A found file that is a part of a source."""
        path, root = self.paths[row], self.roots[row]
        relative = plain(path[len(root) :].lstrip("/")) or plain(path.rpartition("/")[2])
        _, said = self.said.get(path, (0, NOTHING))
        size, modified = int(self._bytes[row]), int(self._modified[row])
        return Source(path, relative, root, size, modified, said=said, sidecar=path.endswith(SIDECARS))


def _encoded(column: pa.ChunkedArray) -> tuple[dict[str, int], np.ndarray]:
    """The values that occur, each with its number, and the number in each row, -1 where there is none."""
    encoded = pc.dictionary_encode(column.combine_chunks())
    numbers = {value: number for number, value in enumerate(encoded.dictionary.to_pylist())}
    return numbers, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
