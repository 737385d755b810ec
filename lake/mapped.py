"""Arrays that are mapped from files: read once, in bands, they need not be in memory all at once."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

BAND_BYTES = 2**24


def bands(data: np.ndarray) -> Iterator[np.ndarray]:
    """Stretches of an array in C order, flat, that make up all of it; those of a mapped one are let go behind them."""
    flat = data.reshape(-1)
    step = max(BAND_BYTES // data.itemsize, 1)
    for first in range(0, flat.size, step):
        yield flat[first : first + step]
        let_go(data)


def let_go(data: np.ndarray) -> None:
    """Give back the memory of an array that is mapped and read only; what is looked at again is read again."""
    base: Any = data
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
