"""How long a refresh takes of many files that did not change, as a user runs it, and how much memory.

python benchmarks/refresh.py [--files 1000000] [--folder FOLDER]

The files are of one byte each, in folders of a thousand. Their rows of `sources` and `items` are written as an ingest
would have written them, since to ingest a million files takes longer than to look at them again; then `diastole refresh`
runs three times: nothing changed; ten files new (FASTA) and ten gone; nothing changed again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from diastole.lake import items
from diastole.lake.layout import Lake
from diastole.workers.compare import Comparison
from diastole.workers.listing import Listing
from diastole.workers.remembered import remember
from diastole.workers.sources import IngestOptions

FOLDER = 1000


def make(root: Path, count: int) -> None:
    """Files of one byte."""
    for first in range(0, count, FOLDER):
        folder = root / f"{first:07d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FOLDER, count)):
            (folder / f"scan-{number:07d}.nii").write_bytes(b"x")


def know(lake: Lake, root: Path, count: int) -> None:
    """Write what an ingest would have written of them."""
    options, now = IngestOptions(), datetime.now(UTC)
    compared = Comparison(lake, options, items.read_sources(lake, "d"))
    compared.take_all(Listing.of([root]))
    assert len(compared.changed) == count
    keys, sources = list(compared.changed), list(compared.changed.values())
    ids = [lake.item_id("d", source.natural_key) for source in sources]
    columns = {
        "source_key": keys,
        "bytes": [source.size for source in sources],
        "modified_ns": [source.modified for source in sources],
        "source_digest": [lake.source_key(key) * 2 for key in keys],
        "options_digest": [compared.digests.of(source, with_limits=False) for source in sources],
        "items": [[item] for item in ids],
        "state": ["ingested"] * count,
        "root": [compared.root_key(str(root))] * count,
        "part_of": [None] * count,
    }
    items.write_sources(lake, "d", pa.table(columns, items.SOURCES))
    row = dict.fromkeys(items.ITEMS.names)
    row |= {"modality": "MR", "state": "live", "ingested_at": now, "shape": [1], "dtype": "uint8", "nbytes": 1}
    columns = {name: ids if name == "item_id" else [row[name]] * count for name in items.ITEMS.names}
    items.write_items(lake, "d", pa.table(columns, items.ITEMS))
    remember(lake, "d", [root], options)


def refresh(lake: Lake, environment: dict[str, str]) -> dict[str, float]:
    """Seconds and peak memory of the command, and what it said."""
    command = [sys.executable, "-m", "diastole.cluster", "refresh", "d", "--lake", lake.store.root, "--json"]
    begun = time.perf_counter()
    done = subprocess.run(
        ["/usr/bin/time", "-v", *command], env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - begun
    peak = int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)[1]) / 2**20
    said = json.loads(done.stdout)
    return {"seconds": round(seconds, 1), "peak_gb": round(peak, 2)} | {
        name: said[name] for name in ("files", "opened", "added", "unchanged", "gone")
    }


def main() -> None:
    """Make, refresh, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=said.folder) as folder:
        top = Path(folder)
        os.environ["DIASTOLE_KEYS"] = str(top / "keys")
        lake = Lake.create(str(top / "lake"))
        make(top / "src", said.files)
        know(lake, top / "src", said.files)
        found = {"nothing changed": refresh(lake, dict(os.environ))}
        first = top / "src" / "0000000"
        for number in range(10):
            (first / f"scan-{number:07d}.nii").unlink()
            (first / f"new-{number}.fa").write_text(">r\nMKV" + "A" * number + "\n")
        found["ten new, ten gone"] = refresh(lake, dict(os.environ))
        found["nothing changed again"] = refresh(lake, dict(os.environ))
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
