"""Ingest as Markdown: what ingest.py has measured."""

import json
from pathlib import Path
from typing import Any

ABOUT = """## Ingest

DICOM and NIfTI to Zarr (`benchmarks/ingest.py`), whole processes in turns, medians. `diastole ingest` hashes the sources, checks
headers and places, decodes in child processes with a cap, syncs, and commits its tables; the script (`benchmarks/peers/plain_ingest.py`)
does none of that, and writes the same chunks with the same codec. The voxels of all are equal. *Times* are the script's of diastole's.
"""


def table(what: str, found: dict[str, Any]) -> list[str]:
    """One kind of source."""
    lines = [f"| {what} | s | CPU, s | peak, MB | times as long | times the CPU | times the memory |", "|---" * 7 + "|"]
    for who, one in found["median"].items():
        ratio = found["times diastole's"].get(who, dict.fromkeys(one, 1.0))
        cells = [f"{one['seconds']:.1f}", f"{one['cpu_s']:.1f}", f"{one['peak_mb']:.0f}"]
        cells += [f"{ratio[name]:.2f}" for name in ("seconds", "cpu_s", "peak_mb")]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return [*lines, ""]


def pages(docs: Path) -> list[str]:
    """The section, or nothing where nothing was measured."""
    path = docs / "ingest.json"
    if not path.exists():
        return []
    kept = json.loads(path.read_text())
    tables = [line for what, found in kept["sources"].items() for line in table(what, found)]
    said = ", ".join(f"{key} {value}" for key, value in kept["machine"].items())
    return [ABOUT, *tables, f"On {said}. {kept['note']}".strip(), ""]
