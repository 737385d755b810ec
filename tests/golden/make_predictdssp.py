"""PredictDSSP on chains of Biopython's test PDB files: make_predictdssp.py BIOPYTHON_SDIST.tar.gz OUT.json"""

import hashlib
import importlib.util
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_common import rounded, write

CHAINS = [("1A8O", "A"), ("2XHE", "B"), ("7DDO", "A"), ("7DDO", "C")]
MEMBER = "biopython-1.88/Tests/PDB/{}.pdb"
NAMES = "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR MSE"
ONE_LETTER = dict(zip(NAMES.split(), "ACDEFGHIKLMNPQRSTVWYM", strict=True))
NOTES = """
sequence: the ATOM and HETATM records named CA, altloc blank or A, residue one of the 20 or MSE (as M), in file order
unobserved: residues only in SEQRES or REMARK 465 are left out and what is left is joined without a gap
reference: C; H from first to last residue number (inclusive) of each HELIX record, any class; then E for SHEET records
predicted: the class with the highest probability, H before E before C in a tie
q3: share of equal letters over the sequence
"""


def load_predictor() -> Any:
    """Import PredictDSSP.dssp_predict without the package's __init__ (it needs plotting and web packages)."""
    spec = importlib.util.find_spec("PredictDSSP")
    assert spec is not None
    package = types.ModuleType("PredictDSSP")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["PredictDSSP"] = package
    return importlib.import_module("PredictDSSP.dssp_predict")


def read_chain(text: str, chain: str) -> tuple[list[int], str, str]:
    """Return residue numbers, sequence and three-state reference of one chain."""
    residues: list[tuple[int, str]] = []
    spans: list[tuple[str, int, int]] = []
    for line in text.splitlines():
        if line.startswith(("ATOM  ", "HETATM")) and line[21] == chain:
            if line[12:16] == " CA " and line[16] in " A" and line[17:20] in ONE_LETTER:
                residues.append((int(line[22:26]), ONE_LETTER[line[17:20]]))
        elif line.startswith("HELIX ") and line[19] == chain:
            spans.append(("H", int(line[21:25]), int(line[33:37])))
        elif line.startswith("SHEET ") and line[21] == chain:
            spans.append(("E", int(line[22:26]), int(line[33:37])))
    numbers, reference = [number for number, _ in residues], ["C"] * len(residues)
    for state, first, last in spans:
        reference = [state if first <= n <= last else old for n, old in zip(numbers, reference, strict=True)]
    return numbers, "".join(letter for _, letter in residues), "".join(reference)


def main(sdist: Path, out: Path) -> None:
    torch.set_num_threads(1)
    predictor = load_predictor()
    chains: dict[str, dict[str, Any]] = {}
    with tarfile.open(sdist) as archive:
        for name, chain in CHAINS:
            raw = archive.extractfile(MEMBER.format(name)).read()  # type: ignore[union-attr]
            numbers, sequence, reference = read_chain(raw.decode(), chain)
            predicted = "".join("HEC"[i] for i in predictor.predict_dssp(sequence))
            q3 = rounded(np.mean([a == b for a, b in zip(predicted, reference, strict=True)]))
            entry = {"member": MEMBER.format(name), "sha256": hashlib.sha256(raw).hexdigest(), "chain": chain, "q3": q3}
            entry |= {"sequence": sequence, "reference": reference, "predicted": predicted, "length": len(sequence)}
            chains[f"{name}-{chain}"] = entry | {"first_residue": numbers[0], "last_residue": numbers[-1]}
            if name == "1A8O":
                chains["1A8O-A"]["probabilities"] = rounded(predictor.predict_dssp(sequence, raw_vals=True), 4)
    call = "PredictDSSP.dssp_predict.predict_dssp(sequence, raw_vals=True), columns H, E, C"
    write(out, call, NOTES, "PredictDSSP numpy torch", {"chains": chains})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
