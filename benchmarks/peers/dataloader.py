"""A careful PyTorch script: batches read from a mapped file by a DataLoader, one Parquet writer.

Settings: `workers` of the loader, torch's `threads`, `batch`.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pieces import pieces, read
from scoring import scorer
from timing import main
from torch.utils.data import DataLoader, Dataset


class Batches(Dataset[dict[str, Any]]):
    """One batch at each place, read in one go."""

    def __init__(self, folder: Path, batch: int, share: float) -> None:
        self.pieces = pieces(folder, batch, share)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return read(self.pieces[place])


def run(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Score and write; row groups of about 64 batches."""
    score = scorer(folder, out, settings)
    batches = Batches(folder, settings["batch"], settings.get("share", 1.0))
    workers = settings["workers"]
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None, collate_fn=_as_it_is
    )
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(out / "part.parquet", score.schema, compression="zstd") as writer:
        for batch in loader:
            waiting.append(score(batch))
            if len(waiting) == 64:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


if __name__ == "__main__":
    main(run)
