"""Ray Data with its own checkpoints, into its own Delta sink: read_parquet → map_batches → write_delta.

As raydata.py otherwise. Started again after a crash, it should go on where it stopped.
"""

from pathlib import Path
from typing import Any

from ray.data.checkpoint import CheckpointConfig
from raydata import scored
from timing import main


def run(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Score and write."""
    place = str(out / "checkpoint")
    checkpoint = CheckpointConfig(id_column="number", checkpoint_path=place, delete_checkpoint_on_success=False)
    scored(folder, out, settings, checkpoint).write_delta(str(out / "table"))


if __name__ == "__main__":
    main(run)
