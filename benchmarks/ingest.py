"""DICOM and NIfTI to Zarr beside a plain script of pydicom or nibabel and zarr-python, in one run, in turns.

    python benchmarks/ingest.py [--series 4] [--slices 240] [--volumes 24] [--rounds 3] [--folder FOLDER] [--keep]

Series are slices of 512² made of pyradiomics' CT of lungs under the header of a real slice; NIfTI files are the MNI template,
each with other voxels. diastole's part is `diastole ingest` as it is typed, with two decoders: hashed, checked, read in
child processes with a cap, written with checksums, synced, its tables committed. The script does none of that, in one process
and in two. What each wrote is compared, voxel by voxel; another result is an error.
"""

import argparse
import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ingest_report
import nibabel
import numpy as np
import pydicom
import report
import zarr
from fetched import data
from memory import Watch
from pydicom.uid import generate_uid

DIASTOLE = "diastole ingest, 2 decoders"
PLAIN = {"plain script, 1 process": 1, "plain script, 2 processes": 2}
SCRIPT = Path(__file__).parent / "peers" / "plain_ingest.py"
PACKAGES = ("pydicom", "nibabel", "zarr", "numcodecs", "numpy")


def lungs(name: str) -> np.ndarray:
    """A CT of pyradiomics', (z, y, x)."""
    raw = data().member("pyradiomics", f"pyradiomics-3.0.1/data/{name}_image.nrrd").read_bytes()
    head, _, packed = raw.partition(b"\n\n")
    said = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    shape = [int(size) for size in reversed(said["sizes"].split())]
    dtype = {"short": "<i2", "int": "<i4", "float": "<f4"}[said["type"]]
    return np.frombuffer(gzip.decompress(packed), dtype).reshape(shape)


def make_series(folder: Path, count: int, slices: int) -> None:
    """Folders of slices, in an order of names that says nothing of their places."""
    header, random = pydicom.dcmread(data().radiotherapy("ct.0")), np.random.default_rng(0)
    scan = np.clip(lungs("lung2"), -1024, 3071).astype("<i2")
    scan = np.concatenate([scan, scan[::-1]])
    for number in range(count):
        series, study = generate_uid(), generate_uid()
        (folder / f"s{number}").mkdir(parents=True)
        header.PatientID, header.StudyInstanceUID, header.SeriesInstanceUID = f"P{number}", study, series
        for place, name in enumerate(random.permutation(slices)):
            pixels = np.roll(scan[place % len(scan)], 7 * number + place // len(scan), axis=1)
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            header.ImagePositionPatient, header.InstanceNumber = [-250, -250, float(2 * place)], place + 1
            header.Rows, header.Columns = pixels.shape
            header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
            header.RescaleIntercept, header.RescaleSlope = 0, 1
            header.PixelData = pixels.tobytes()
            header.save_as(folder / f"s{number}" / f"{name:04d}.dcm")


def make_volumes(folder: Path, count: int) -> None:
    """The template, brighter or darker, moved and with noise; compressed as nibabel does it."""
    template, random = nibabel.load(data().brain()), np.random.default_rng(0)
    voxels = np.asarray(template.dataobj, np.float32)
    folder.mkdir()
    for number in range(count):
        moved = np.roll(voxels, (number % 5, number % 7), (0, 1)) * random.uniform(1, 4)
        noisy = (moved + (moved > 0) * random.integers(0, 4, voxels.shape)).astype("<i2")
        nibabel.save(nibabel.Nifti1Image(noisy, template.affine), folder / f"v{number}.nii.gz")


def timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a command in a process of its own; processor time is of all that it started and waited for."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    with Watch(process.pid) as watch:
        _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}: {said.decode()[-2000:]}")
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2), "peak_mb": watch.peak_mb}


def once(who: str, sources: Path, out: Path) -> dict[str, float]:
    """One of those who are compared."""
    environment = {**os.environ, "DIASTOLE_KEYS": str(out / "keys")}
    out.mkdir()
    if who in PLAIN:
        return timed([sys.executable, str(SCRIPT), str(sources), str(out), str(PLAIN[who])], environment)
    lake = ["--lake", str(out / "lake")]
    diastole = [sys.executable, "-m", "diastole.cluster"]
    subprocess.run([*diastole, "init", *lake[1:]], env=environment, check=True, capture_output=True)
    return timed([*diastole, "ingest", "d", str(sources), *lake, "--modality", "CT", "--json"], environment)


def written(out: Path) -> list[bytes]:
    """The volumes that were written, by content."""
    groups = (zarr.open(path.parent, mode="r") for path in out.rglob("zarr.json") if (path.parent / "c").exists())
    return sorted(np.asarray(array[...]).tobytes() for array in groups)


def compare(sources: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians by who, and the ratios to diastole's."""
    found: dict[str, list[dict[str, float]]] = {DIASTOLE: [], **{who: [] for who in PLAIN}}
    for turn in range(rounds):
        names, expected = list(found), None
        for who in names[turn % len(names) :] + names[: turn % len(names)]:
            out = folder / "out"
            found[who].append(once(who, sources, out))
            if turn == 0:
                volumes = written(out)
                if len(volumes) != len(list(sources.iterdir())) or volumes != (expected or volumes):
                    raise SystemExit(f"{who} wrote other volumes")
                expected = volumes
                del volumes
            shutil.rmtree(out)
    medians = {who: {n: statistics.median(one[n] for one in all_) for n in all_[0]} for who, all_ in found.items()}
    ours = medians[DIASTOLE]
    ratios = {who: {n: round(medians[who][n] / ours[n], 2) for n in ours} for who in PLAIN}
    return {"median": medians, "times diastole's": ratios, "all": found}


def main() -> None:
    """Make, run in turns, print JSON and then tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, count in (("series", 4), ("slices", 240), ("volumes", 24), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--keep", action="store_true", help="Into docs/.")
    parser.add_argument("--note", default="", help="How busy the machine was, …")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=said.folder) as name:
        folder, found = Path(name), {}
        if said.series:
            make_series(folder / "dicom", said.series, said.slices)
            what = f"DICOM: {said.series} series of {said.slices} slices of 512² int16"
            found[what] = compare(folder / "dicom", said.rounds, folder)
        if said.volumes:
            make_volumes(folder / "nifti", said.volumes)
            what = f"NIfTI: {said.volumes} .nii.gz of the MNI template, int16"
            found[what] = compare(folder / "nifti", said.rounds, folder)
    print(json.dumps(found, indent=1))
    print(*(line for what, one in found.items() for line in ingest_report.table(what, one)), sep="\n")
    if said.keep:
        keep(found, said.note)


def keep(found: dict[str, Any], note: str) -> None:
    """Put what was measured into docs/."""
    named = {key: value for key, value in report.machine().items() if key in ("cpu", "python", "deltalake")}
    kept = {"machine": named | {one: version(one) for one in PACKAGES}, "note": note, "sources": found}
    (report.DOCS / "ingest.json").write_text(json.dumps(kept, indent=1) + "\n")
    workloads = json.loads((report.DOCS / "performance.json").read_text())["workloads"]
    (report.DOCS / "performance.md").write_text(report.page(workloads))


if __name__ == "__main__":
    main()
