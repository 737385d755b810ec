"""Ray Data: read_parquet → map_batches with an actor class → write_parquet.

Settings: `actors`, `batch` (a number of rows, or "auto"), its `format` (default, which is numpy, or pyarrow), `blocks` (override_num_blocks, or null), torch's `threads` in each
actor (or null, as Ray leaves it), `cpus` that Ray is told of.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from pieces import files
from scoring import from_arrow, scorer
from timing import main


class Predictor:
    """One network."""

    def __init__(self, folder: Path, out: Path, settings: dict[str, Any]) -> None:
        self.score = scorer(folder, out, settings)

    def __call__(self, batch: Any) -> pa.Table:
        return self.score(from_arrow(batch["number"], batch["data"]) if isinstance(batch, pa.Table) else batch)


def scored(folder: Path, out: Path, settings: dict[str, Any], checkpoint: Any = None) -> Any:
    """The rows with what the network gives of them, in a Ray of its own, with a checkpoint if that is said."""
    ray.init(address="local", num_cpus=settings["cpus"], include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = checkpoint
    paths = [str(path) for path in files(folder, "parquet", settings.get("share", 1.0))]
    rows = ray.data.read_parquet(paths, override_num_blocks=settings["blocks"])
    return rows.map_batches(
        Predictor,
        fn_constructor_args=[folder, out, settings],
        batch_size=settings["batch"],
        batch_format=settings["format"],
        compute=ray.data.ActorPoolStrategy(size=settings["actors"]),
    )


def run(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Score and write."""
    scored(folder, out, settings).write_parquet(str(out / "parts"))


if __name__ == "__main__":
    main(run)
