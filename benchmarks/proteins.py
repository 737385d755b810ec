"""Proteins whose lengths are spread as in a proteome, and PredictDSSP."""

import json
from pathlib import Path

import fetched
import numpy as np
from cohorts import MODEL, add_model, ingest, write_parquet

FILES = 16
"""The peers' Parquet files: enough to keep two readers busy."""


def make(folder: Path, count: int) -> str:
    """Lengths are gamma distributed with a mean of 330; residues are drawn evenly."""
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    lengths = (random.gamma(2, 150, count) + 30).astype(int)
    sequences = [letters[random.integers(0, 20, size)].tobytes().decode() for size in lengths]
    (folder / "source").mkdir()
    (folder / "source" / "all.fasta").write_text("".join(f">{n}\n{text}\n" for n, text in enumerate(sequences)))
    ingest(folder, int, "--alphabet", "protein")
    recipe, net = fetched.model("predictdssp", "main", folder)
    wanted = ("task", "runtime", "network", "network_options", "inputs", "classes", "options", "batch", "tolerance")
    settings = {
        "kind": "proteins",
        "alphabet": recipe["options"]["alphabet"],
        "classes": "".join(recipe["classes"]),
        "network": recipe["network_options"],
    }
    add_model(folder, net, {key: recipe[key] for key in wanted}, settings)
    by_length = np.argsort(lengths, kind="stable")
    for place, part in enumerate(np.array_split(by_length, min(FILES, count))):
        write_parquet(folder, place, part, [sequences[n] for n in part], rows=len(part))
    return f"{count:,} proteins, {lengths.sum():,} residues, the LSTM of PredictDSSP ({MODEL})".replace(
        f" ({MODEL})", ""
    )


def residues(folder: Path) -> int:
    """How many residues the cohort has."""
    return int(json.loads((folder / "cohort.json").read_text())["what"].split(", ")[1].split()[0].replace(",", ""))
