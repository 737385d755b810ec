"""A small task that writes all there is, item rows, detail rows and maps, for tests of what becomes of these.

It is found as any installed package's task, by an entry point, also in processes that the tests start.
"""

import os
from pathlib import Path
from typing import Any, ClassVar

import made
import nibabel
import numpy as np
import pyarrow as pa

from diastole.jobs.task import DenseMap, Result, Task, Window
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest

NET = """
import os, time
import torch
class Net(torch.nn.Module):
    def __init__(self, pause=0.0):
        super().__init__()
        self.pause, self.fc = pause, torch.nn.Linear(1, 1)
    def forward(self, x):
        time.sleep(self.pause)
        return x * 2
"""


class Spots(Task):
    """A detail row for each voxel above 900, and a map of them."""

    name, version = "spots", 1
    item_columns: ClassVar[pa.Schema] = pa.schema([pa.field("spots", pa.int64())])
    row_columns: ClassVar[pa.Schema] = pa.schema([pa.field("value", pa.float64())])

    def begin(self, unit: Any) -> Any:
        return {"data": unit.data["input"]}

    def windows(self, state: Any, step: int) -> Any:
        return [Window(0, {"input": ()}, bucket=state["data"].shape)]

    def encode(self, step: int, ready: Any, device: Any) -> Any:
        import torch

        return {"x": torch.from_numpy(np.stack([raw["input"] for raw in ready]).astype(np.float32)).to(device)}

    def collect(self, state: Any, step: int, window: Any, outputs: Any) -> None:
        state["out"] = outputs["output"].cpu().numpy()

    def finish(self, state: Any) -> Result:
        mask = (state["out"] > 1800).astype(np.uint8)
        values = [float(value) for value in state["out"][mask > 0]]
        return Result({"spots": len(values)}, {"value": values}, {"mask": DenseMap(mask, "input", ["spot"])})


def install(folder: Path, monkeypatch: Any) -> None:
    """Make the task known, here and in processes that are started from here."""
    about = folder / "site" / "spots-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: spots\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[diastole.tasks]\nspots = spots:Spots\n")
    paths = [str(folder / "site"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(str(folder / "site"))


def volumes(folder: Path, count: int, seed: int = 0, prefix: str = "v") -> Path:
    """Files of small volumes, of which the first has no spot."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = rng.integers(0, 900 if number == 0 else 950, (7, 6, 5)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / f"{prefix}{number}.nii")
    return folder


def cohort(lake: Lake, folder: Path, count: int = 6, **options: Any) -> None:
    """Volumes in the dataset `d`, and the model that scores them."""
    ingest(lake, "d", [volumes(folder, count)], IngestOptions(public=True))
    model(lake, **options)


def model(lake: Lake, **options: Any) -> None:
    """The model that finds spots."""
    files = {"net.pt": made.saved({"weight": made.torch.zeros(1, 1), "bias": made.torch.zeros(1)}, "fc.")}
    files["code.py"] = NET.encode()
    made.add_model(
        lake,
        files,
        task="spots",
        runtime="python",
        network="code.py:Net",
        network_options=options,
        inputs={"input": {}},
        batch=2,
    )
