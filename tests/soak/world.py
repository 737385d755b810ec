"""What should be in the lake, told without diastole: the sources as they lie on disk, and what the network makes of them."""

import csv
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
FAILS = "Y"
"""The network raises on proteins that begin so."""
Key = tuple[str, str, str]
"""(name, content, version of the model)"""


def weights(version: str) -> np.ndarray:
    """(20,) float64: what the network of a version gives for each letter."""
    return np.random.default_rng(int(version)).normal(size=20)


def score(content: str, version: str) -> float:
    """Mean over the letters."""
    return float(np.mean([weights(version)[LETTERS.index(letter)] for letter in content]))


@dataclass
class World:
    """Subjects with proteins and a volume each, and which of them were scored with what."""

    folder: Path
    chance: random.Random
    proteins: dict[str, dict[str, str]] = field(default_factory=dict)
    """subject → name → letters"""
    volumes: dict[str, np.ndarray] = field(default_factory=dict)
    """subject → (z, y, x) int16"""
    withdrawn: set[str] = field(default_factory=set)
    version: str = "1"
    scored: set[Key] = field(default_factory=set)
    masked: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    """(subject, voxels) of each volume that was scored: once."""
    retries: int = 0
    """How often what failed was tried again."""

    def add_subject(self) -> str:
        """A new one, with some proteins and a volume."""
        subject = f"s{len(self.proteins)}"
        self.proteins[subject] = {f"{subject}p{n}": self._letters() for n in range(self.chance.randint(2, 6))}
        self.volumes[subject] = self._voxels()
        self.write(subject)
        return subject

    def change(self) -> str:
        """Another content for a protein and, at times, the volume of someone."""
        subject = self.chance.choice(self.living())
        self.proteins[subject][self.chance.choice(sorted(self.proteins[subject]))] = self._letters()
        if self.chance.random() < 0.3:
            self.volumes[subject] = self._voxels()
        self.write(subject)
        return subject

    def living(self) -> list[str]:
        """Those who did not withdraw."""
        return sorted(set(self.proteins) - self.withdrawn)

    def write(self, subject: str) -> None:
        """A subject's sources, and the manifests of all."""
        for kind in ("fasta", "nifti"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{kind}.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["path", "subject", *(["name"] if kind == "nifti" else [])])
                for one in self.proteins:
                    end = "fasta" if kind == "fasta" else "nii"
                    rows.writerow([f"{kind}/{one}.{end}", one, *([f"{one}v"] if kind == "nifti" else [])])
        text = "".join(f">{name}\n{letters}\n" for name, letters in self.proteins[subject].items())
        (self.folder / "fasta" / f"{subject}.fasta").write_text(text)
        image = nibabel.Nifti1Image(self.volumes[subject].T, np.diag([1.0, 1.0, 2.0, 1.0]))
        nibabel.save(image, self.folder / "nifti" / f"{subject}.nii")

    def note_scored(self) -> None:
        """The jobs have ended: all that lives was scored as it is now."""
        self.scored |= set(self.wanted())
        for subject in self.living():
            self.masked[subject, self.volumes[subject].tobytes()] = 1

    def note_scored_by(self, command: list[str]) -> None:
        """A run of one job has published all."""
        if command[1].endswith("scores.yaml"):
            self.scored |= set(self.wanted())

    def wanted(self) -> list[Key]:
        """What the job over proteins means now."""
        return [(n, letters, self.version) for s in self.living() for n, letters in self.proteins[s].items()]

    def history(self) -> set[Key]:
        """What should have a row: all that was ever scored, of those who did not withdraw."""
        gone = {name for subject in self.withdrawn for name in self.proteins[subject]}
        return {key for key in self.scored if key[0] not in gone}

    def _letters(self) -> str:
        first = FAILS if self.chance.random() < 0.05 else "A"
        return first + "".join(self.chance.choices(LETTERS, k=self.chance.randint(5, 40)))

    def _voxels(self) -> np.ndarray:
        return np.random.default_rng(self.chance.randint(0, 2**31)).integers(0, 100, (5, 6, 7), np.int16)
