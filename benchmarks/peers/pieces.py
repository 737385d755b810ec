"""The peers' copy of a cohort, cut into pieces of one batch each, for those that read it themselves.

Images and volumes lie in .npy stacks, which are mapped into memory; proteins in Parquet, by length, so that a batch needs
little padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a file."""

    file: Path
    start: int
    stop: int


def pieces(folder: Path, batch: int, share: float) -> Sequence[Piece]:
    """All pieces, or the first `share` of them. `batch` counts images, volumes, or residues."""
    found: list[Piece] = []
    for path in files(folder, "npy", share):
        rows = len(np.load(path, mmap_mode="r"))
        found += [Piece(path, start, min(start + batch, rows)) for start in range(0, rows, batch)]
    if not found:
        for path in files(folder, "parquet", share):
            found += _by_letters(path, batch)
    return found


def files(folder: Path, kind: str, share: float) -> list[Path]:
    """The files of a kind, or the first `share` of them: at least one."""
    there = sorted((folder / kind).glob("*"))
    return there[: max(1, round(share * len(there)))]


def read(piece: Piece) -> dict[str, Any]:
    """A batch: `number` and `data`."""
    if piece.file.suffix == ".npy":
        first = int(piece.file.stem)  # a stack is named for the place of its first item in the cohort
        data = np.array(np.load(piece.file, mmap_mode="r")[piece.start : piece.stop])
        return {"number": np.arange(first + piece.start, first + piece.stop), "data": data}
    table = _table(piece.file)[piece.start : piece.stop]
    return {"number": table["number"].to_numpy(), "data": table["data"].to_pylist()}


def _by_letters(path: Path, batch: int) -> list[Piece]:
    found, start, letters = [], 0, 0
    lengths = [len(sequence) for sequence in _table(path)["data"].to_pylist()]
    for place, length in enumerate(lengths):
        if place > start and letters + length > batch:
            found.append(Piece(path, start, place))
            start, letters = place, 0
        letters += length
    return [*found, Piece(path, start, len(lengths))]


@cache
def _table(path: Path) -> Any:
    return pq.read_table(path)
