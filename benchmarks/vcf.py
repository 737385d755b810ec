"""VCF to VCF Zarr beside bio2zarr, on the same file in one run: seconds, processor time and peak memory, and their ratios.

    python benchmarks/vcf.py FILE.vcf.gz

The file must be bgzip and declare its contigs, as bio2zarr wants it; one that does not is written anew first. diastole's
part is the whole ingest: hashed, checked, read in a child process, written with checksums, and its item committed.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import Watch

OURS = """
import sys
from diastole.lake.layout import Lake
from diastole.workers.ingest import ingest
report = ingest(Lake.create(sys.argv[2]), "v", [sys.argv[1]])
assert report.added == 1, report
"""
THEIRS = """
import sys, bio2zarr.vcf
bio2zarr.vcf.convert([sys.argv[1]], sys.argv[2], zarr_format=3, worker_processes=int(sys.argv[3]))
"""


def prepared(path: Path, folder: Path) -> Path:
    """The file as bgzip, with all contigs declared; all else as it was."""
    from Bio import bgzf

    contigs, declared = set(), set()
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if not line.startswith("#"):
                contigs.add(line.partition("\t")[0])
            elif found := re.match("##contig=<ID=([^,>]+)", line):
                declared.add(found[1])
    out = folder / "prepared.vcf.gz"
    with gzip.open(path, "rt") as lines, bgzf.BgzfWriter(out, compresslevel=1) as writer:
        for line in lines:
            if line.startswith("#CHROM"):
                writer.write("".join(f"##contig=<ID={one}>\n" for one in sorted(contigs - declared)))
            writer.write(line)
    return out


def timed(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in a process of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as keys:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "DIASTOLE_KEYS": keys},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with Watch(process.pid) as watch:
            code = process.wait()
    if code:
        raise SystemExit(f"it ended with {code}")
    return {"seconds": round(time.monotonic() - started, 1), "cpu_s": watch.cpu_s, "peak_mb": watch.peak_mb}


def main(path: Path) -> None:
    """Print JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = str(prepared(path, folder))
        found = {
            "diastole": timed(OURS, file, str(folder / "lake")),
            "bio2zarr, in its process": timed(THEIRS, file, str(folder / "a.vcz"), "0"),
            "bio2zarr, 2 processes": timed(THEIRS, file, str(folder / "b.vcz"), "2"),
        }
        ours = found["diastole"]
        for who in list(found)[1:]:
            found[who]["ratios"] = {key: round(found[who][key] / ours[key], 2) for key in ours}
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
