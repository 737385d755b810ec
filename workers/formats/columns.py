"""Columns of a table whose rows come one after the other, as .npy files: at once on disk, and as wide as they turn out."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError


class Columns:
    """All columns of a source, held to a limit of bytes together."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit, self._bytes = folder, limit, 0

    def take(self, count: int) -> None:
        """Count bytes that are about to be written. Raises ItemError `too_large`."""
        self._bytes += count
        if self._bytes > self._limit:
            raise ItemError(
                "too_large", f"its arrays have more than {self._limit} bytes; raise max_item_bytes if they may"
            )


class Column:
    """Numbers (rows, *inner, width), written in blocks of rows, each of its own width and dtype.

    What a row does not reach gets `fill` when the column is finished.
    """

    def __init__(self, columns: Columns, name: str, inner: tuple[int, ...], fill: Any) -> None:
        self.name, self._columns, self._inner, self._fill = name, columns, inner, fill
        self._path = columns.folder / f"{name}.blocks"
        self._file = self._path.open("xb")
        self._blocks: list[tuple[int, int, np.dtype[Any]]] = []  # rows, width, dtype

    @property
    def width(self) -> int:
        """Length of the longest row so far, 0 where there is none."""
        return max((width for _, width, _ in self._blocks), default=0)

    def add(self, block: np.ndarray) -> None:
        """Rows that follow: (rows, *inner, width)."""
        self._columns.take(block.nbytes)
        self._file.write(np.ascontiguousarray(block).data)
        self._blocks.append((block.shape[0], block.shape[-1], block.dtype))

    def finish(self, *, flat: bool = False) -> None:
        """Write NAME.npy, as wide as the longest row; `flat`: of width 1, and without that axis."""
        self._file.close()
        kinds = [kind for _, _, kind in self._blocks]
        dtype = np.result_type(*kinds) if kinds else np.dtype("<i1")
        rows, width = sum(rows for rows, _, _ in self._blocks), 1 if flat else self.width
        shape = (rows, *self._inner) if flat else (rows, *self._inner, width)
        self._columns.take(math.prod(shape) * dtype.itemsize - self._path.stat().st_size)
        header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
        with self._path.open("rb") as blocks, (self._columns.folder / f"{self.name}.npy").open("xb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            for count, wide, kind in self._blocks:
                found = (count, *self._inner, wide)
                block = np.frombuffer(blocks.read(math.prod(found) * kind.itemsize), kind).reshape(found)
                if wide < width:
                    whole = np.full((count, *self._inner, width), self._fill, dtype)
                    whole[..., :wide] = block
                    block = whole
                out.write(np.ascontiguousarray(block, dtype).data)
        self._path.unlink()


class TextColumn:
    """Texts (rows, width): their lengths in bytes in NAME.npy, and their UTF-8, one after the other, in NAME.bin."""

    def __init__(self, columns: Columns, name: str) -> None:
        self.name, self._columns = name, columns
        self._lengths = Column(columns, name, (), 0)
        self._file = (columns.folder / f"{name}.bin").open("xb")

    @property
    def width(self) -> int:
        """Texts of the longest row so far."""
        return self._lengths.width

    def add(self, rows: list[list[str]]) -> None:
        """Rows that follow, of any number of texts each; what a row does not reach is an empty text."""
        encoded = [[text.encode() for text in row] for row in rows]
        lengths = np.zeros((len(rows), max(map(len, rows), default=0)), np.uint32)
        for number, row in enumerate(encoded):
            lengths[number, : len(row)] = [len(text) for text in row]
        letters = b"".join(text for row in encoded for text in row)
        self._columns.take(len(letters))
        self._file.write(letters)
        self._lengths.add(lengths)

    def finish(self, *, flat: bool = False) -> None:
        """Write both files."""
        self._file.close()
        self._lengths.finish(flat=flat)
