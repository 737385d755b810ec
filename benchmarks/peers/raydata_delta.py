"""Ray Data with its own checkpoints, into its own Delta sink: read_parquet → map_batches → write_delta.

As raydata.py otherwise. Started again after a crash, it should go on where it stopped.
"""

from pathlib import Path
from typing import Any

import ray
from pieces import files
from ray.data.checkpoint import CheckpointConfig
from raydata import Predictor
from timing import main


def run(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Score and write, with a Ray of its own."""
    ray.init(address="local", num_cpus=settings["cpus"], include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        id_column="number", checkpoint_path=str(out / "checkpoint"), delete_checkpoint_on_success=False
    )
    paths = [str(path) for path in files(folder, "parquet", 1.0)]
    rows = ray.data.read_parquet(paths, override_num_blocks=settings["blocks"])
    scored = rows.map_batches(
        Predictor,
        fn_constructor_args=[folder, out, settings],
        batch_size=settings["batch"],
        batch_format=settings["format"],
        compute=ray.data.ActorPoolStrategy(size=settings["actors"]),
    )
    scored.write_delta(str(out / "table"))


if __name__ == "__main__":
    main(run)
