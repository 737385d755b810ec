"""The task and the networks of the soak: small, and with everything that a result may have."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import torch

from diastole.jobs.task import Options, Result, Task, Window
from diastole.workers import tasks

from .world import FAILS, LETTERS, weights

SCORE = f'''
import torch

class Net(torch.nn.Module):
    """The mean of a number for each letter. It raises on proteins that begin with {FAILS}."""

    def __init__(self):
        super().__init__()
        self.letters = torch.nn.Parameter(torch.zeros(20))

    def forward(self, x):
        if (x[:, 0] == {LETTERS.index(FAILS)}).any():
            raise IndexError("it cannot")
        return self.letters[x.long()].mean(1)
'''
MASK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (x > 50).float() + self.bias
"""


class Motifs(Task):
    """The score of a protein, and a row for each W of it."""

    name, version, outputs = "motifs", 1, ("output",)
    item_columns: ClassVar[pa.Schema] = pa.schema([pa.field("length", pa.int64()), pa.field("score", pa.float64())])
    row_columns: ClassVar[pa.Schema] = pa.schema([pa.field("place", pa.int64())])
    options_type = Options

    def begin(self, unit: Any) -> dict[str, Any]:
        return {"letters": bytes(unit.data["input"]).decode()}

    def windows(self, state: dict[str, Any], step: int) -> list[Window]:
        return [Window(0, {"input": ()}, bucket=len(state["letters"]))]

    def prepare(self, state: dict[str, Any], window: Window, raw: Any) -> list[int]:
        return [LETTERS.index(letter) for letter in state["letters"]]

    def encode(self, step: int, ready: Any, device: Any) -> dict[str, Any]:
        return {"x": torch.tensor(ready, dtype=torch.uint8)}

    def collect(self, state: dict[str, Any], step: int, window: Window, outputs: Any) -> None:
        state["score"] = float(outputs["output"])

    def finish(self, state: dict[str, Any]) -> Result:
        letters = state["letters"]
        places = [n for n, letter in enumerate(letters) if letter == "W"]
        return Result({"length": len(letters), "score": state["score"]}, rows={"place": places})


def enter(folder: Path) -> None:
    """Make the task known, here and to workers of Ray, as an installed package would."""
    about = folder / "site" / "motifs-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: motifs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[diastole.tasks]\nmotifs = soak.motifs:Motifs\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(Path(__file__).parents[1])])
    tasks.entry_points = lambda group: [SimpleNamespace(name="motifs", load=lambda: Motifs)]  # type: ignore[attr-defined]


def state_dict(version: str) -> dict[str, Any]:
    """Weights of the network that scores."""
    return {"letters": torch.tensor(weights(version), dtype=torch.float32)}
