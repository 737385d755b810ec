"""Frequencies of alternate alleles among the samples of each file of variants. Files are not joined with one another."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BINS = 100
"""Of the spectrum: frequencies from n/100 on, below (n + 1)/100; 1 is in the last."""
CELLS = 2**22
"""Allele calls at a time."""


@dataclass
class Alleles:
    """Variants of some files."""

    items: int = 0
    variants: int = 0
    uncalled: int = 0
    """Variants without any call: they have no frequency."""
    alternates: int = 0
    """Alternate alleles that have one."""
    absent: int = 0
    """Of these, in no sample."""
    singletons: int = 0
    """Of these, called once."""
    called: int = 0
    """Allele calls, of all variants and samples."""
    missing: int = 0
    """Allele calls that are missing."""
    alternate: int = 0
    """Allele calls of an alternate allele."""
    spectrum: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    """Alternate alleles by their frequency."""

    def add(self, alleles: np.ndarray, genotypes: np.ndarray | None) -> None:
        """Take one file: alleles (variants, most alleles) texts, the reference first, '' where there are fewer; calls
        (variants, samples, ploidy) of the number of an allele, -1 missing, -2 no call.
        """
        self.items += 1
        self.variants += len(alleles)
        if genotypes is None or not genotypes.size:
            self.uncalled += len(alleles)
            return
        step = max(CELLS // int(np.prod(genotypes.shape[1:])), 1)
        for start in range(0, len(alleles), step):
            self._take(alleles[start : start + step], genotypes[start : start + step])

    def merge(self, other: "Alleles") -> None:
        """Take in what was counted elsewhere."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def told(self) -> dict[str, Any]:
        """As it is stored."""
        return {**vars(self), "spectrum": self.spectrum.tolist()}

    def _take(self, alleles: np.ndarray, genotypes: np.ndarray) -> None:
        calls = genotypes.reshape(len(genotypes), -1)
        numbers = (calls >= 0).sum(axis=1)
        self.called += int(numbers.sum())
        self.missing += int((calls == -1).sum())
        self.alternate += int((calls > 0).sum())
        known = numbers > 0
        self.uncalled += int((~known).sum())
        for allele in range(1, alleles.shape[1]):
            there = known & (alleles[:, allele] != "")
            counts = (calls[there] == allele).sum(axis=1)
            self.alternates += len(counts)
            self.absent += int((counts == 0).sum())
            self.singletons += int((counts == 1).sum())
            places = np.minimum(counts * BINS // np.maximum(numbers[there], 1), BINS - 1)
            self.spectrum = self.spectrum + np.bincount(places, minlength=BINS)
