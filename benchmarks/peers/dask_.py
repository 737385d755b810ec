"""Dask: a bag of pieces, each read, scored and written by one task.

Settings: `scheduler` (threads or processes), `workers`, torch's `threads` in each, `batch`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import dask.bag
import pyarrow as pa
import pyarrow.parquet as pq
from pieces import Piece, pieces, read
from scoring import scorer
from timing import main

PER_TASK = 8
"""Batches in one task, so in one Parquet file."""


@cache
def _scorer(folder: Path, out: Path, settings: str) -> Any:
    return scorer(folder, out, json.loads(settings))


def _score(group: list[Piece], place: int, folder: Path, out: Path, settings: str) -> int:
    score = _scorer(folder, out, settings)
    table = pa.concat_tables([score(read(piece)) for piece in group]).combine_chunks()
    pq.write_table(table, out / f"{place:06d}.parquet", compression="zstd")
    return len(table)


def run(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Score and write."""
    told = json.dumps(settings)
    if settings["scheduler"] == "threads":
        _scorer(folder, out, told)  # once, before the threads ask for it
    whole = pieces(folder, settings["batch"], settings.get("share", 1.0))
    per_task = max(1, min(PER_TASK, len(whole) // (4 * settings["workers"])))
    groups = [whole[start : start + per_task] for start in range(0, len(whole), per_task)]
    tasks = [dask.delayed(_score)(group, place, folder, out, told) for place, group in enumerate(groups)]
    dask.compute(*tasks, scheduler=settings["scheduler"], num_workers=settings["workers"])


if __name__ == "__main__":
    main(run)
