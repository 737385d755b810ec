"""Letters and k-mers of sequences, in upper case. A k-mer with another letter than those of BASES is not counted."""

from itertools import product
from typing import Any

import numpy as np

from diastole.lake.statistics import PARAMETERS

BASES = {"dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}
PART = 2**20
"""Letters at a time."""
_UPPER = np.frombuffer(bytes(range(256)).upper(), np.uint8)


class Letters:
    """Sequences of one alphabet."""

    def __init__(self, alphabet: str) -> None:
        self.k, self.bases = int(PARAMETERS["kmer"][alphabet]), BASES[alphabet]
        self.items = 0
        self.letters = np.zeros(256, np.int64)
        self.kmers = np.zeros(len(self.bases) ** self.k, np.int64)

    def add(self, text: np.ndarray) -> None:
        """Take one sequence (letters,) uint8."""
        self.items += 1
        places = np.full(256, -1, np.int32)
        places[list(self.bases.encode())] = np.arange(len(self.bases))
        for start in range(0, len(text), PART):
            self.letters += np.bincount(_UPPER[text[start : start + PART]], minlength=256)
            found = places[_UPPER[text[start : start + PART + self.k - 1]]]
            if len(found) < self.k:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(found, self.k)
            index, whole = np.zeros(len(windows), np.int64), np.ones(len(windows), bool)
            for place in range(self.k):
                index = index * len(self.bases) + windows[:, place]
                whole &= windows[:, place] >= 0
            self.kmers += np.bincount(index[whole], minlength=len(self.kmers))

    def merge(self, other: "Letters") -> None:
        """Take in what was counted elsewhere."""
        self.items += other.items
        self.letters = self.letters + other.letters  # what comes from Ray cannot be written to
        self.kmers = self.kmers + other.kmers

    def told(self) -> dict[str, Any]:
        """As it is stored: what occurs."""
        names = ("".join(word) for word in product(self.bases, repeat=self.k))
        return {
            "items": self.items,
            "letters": {chr(code): int(self.letters[code]) for code in np.flatnonzero(self.letters)},
            "k": self.k,
            "kmers": {name: int(count) for name, count in zip(names, self.kmers, strict=True) if count},
        }
