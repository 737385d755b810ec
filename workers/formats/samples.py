"""Samples on their way from a file into a .npy of (channel, time), a block at a time."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits

BLOCK_BYTES = 2**24
"""Read at once."""


class Samples:
    """A .npy file of (channel, time), little-endian, whose pieces are put where they belong."""

    def __init__(self, path: Path, channels: int, length: int, dtype: np.dtype) -> None:
        self.dtype = dtype.newbyteorder("<")
        self.length = length
        self.non_finite = 0
        """Values that are NaN or infinite, of those put so far."""
        self._file = path.open("xb")
        shape = {"descr": self.dtype.str, "fortran_order": False, "shape": (channels, length)}
        np.lib.format.write_array_header_1_0(self._file, shape)
        self._file.flush()
        self._start = self._file.tell()
        os.ftruncate(self._file.fileno(), self._start + channels * length * self.dtype.itemsize)

    def __enter__(self) -> "Samples":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, channel: int, first: int, values: np.ndarray) -> None:
        """Values of a channel from sample `first` on."""
        if self.dtype.kind == "f":
            self.non_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
        piece = np.ascontiguousarray(values, self.dtype).tobytes()
        place = self._start + (channel * self.length + first) * self.dtype.itemsize
        while piece:
            done = os.pwrite(self._file.fileno(), piece, place)
            piece, place = piece[done:], place + done

    def put_block(self, first: int, block: np.ndarray) -> None:
        """(time, channel) from sample `first` on."""
        for channel in range(block.shape[1]):
            self.put(channel, first, block[:, channel])


def check_size(channels: int, length: int, itemsize: int, limits: Limits) -> None:
    """Hold what a header claims to the limit. Raises ItemError."""
    decoded = channels * length * itemsize
    if decoded > limits.item_bytes:
        raise ItemError(
            "too_large", f"it decodes to {decoded} bytes, more than {limits.item_bytes}; raise max_item_bytes if it may"
        )


def check_scale(gains: Sequence[float], offsets: Sequence[float]) -> None:
    """Raise ItemError where a channel cannot be turned into its unit."""
    if not np.isfinite([*gains, *offsets]).all() or 0 in gains:
        raise ItemError("header_lies", "a channel's scale is zero or not a number")
