"""A class for each residue of a protein: secondary structure, disorder, binding, …"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ...jobs.task import Options, Result, Task, Unit, Window
from ...lake.errors import SpecError
from ...lake.models import Manifest
from .checks import no_sequence, wrong_outputs

PAD = 255


class ResidueOptions(Options):
    """How letters become numbers."""

    of_the_model = frozenset({"alphabet"})
    alphabet: str
    """Letters in the order of the network's one-hot input."""
    activation: Literal["softmax", "none"] = "softmax"
    """What turns the network's output into probabilities: softmax, or none where it gives them itself."""


@dataclass
class _State:
    codes: np.ndarray
    """(length,) uint8."""
    probabilities: np.ndarray | None = None
    """(length, classes) float32."""


class Residues(Task):
    """One window per protein. A batch may mix lengths: the network packs them, and what pads them changes no result."""

    name = "residues"
    version = 1
    item_columns: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("length", pa.int64()),
            pa.field("classes", pa.string()),  # the likeliest class of each residue, one letter each
            pa.field("probabilities", pa.list_(pa.list_(pa.float32()))),  # per residue, in the order of the classes
            pa.field("fractions", pa.list_(pa.float64())),  # of residues in each class
        ]
    )
    units: ClassVar[Mapping[str, str]] = {"length": "{residue}", "probabilities": "1", "fractions": "1"}
    options_type = ResidueOptions

    def __init__(self, manifest: Manifest, options: ResidueOptions) -> None:
        super().__init__(manifest, options)
        if not manifest.classes or any(len(name.encode()) != 1 for name in manifest.classes):
            raise SpecError(f"task residues needs classes of one letter each; {manifest.ref} has none, or longer ones")
        self._code = np.full(256, PAD, np.uint8)
        for number, letter in enumerate(options.alphabet.encode()):
            self._code[letter] = number

    def refuse(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
        return no_sequence(items[self.roles[0]])

    def cost(self, items: Mapping[str, Mapping[str, Any]]) -> float:
        """4 bytes for each letter of the alphabet at each residue."""
        return 4.0 * len(self.options.alphabet) * int(items["input"]["sequence"]["length"])

    def begin(self, unit: Unit) -> _State:
        return _State(self._code[unit.data["input"]])

    def windows(self, state: _State, step: int) -> Sequence[Window]:
        del step
        return [Window(0, {"input": ()}, weight=float(len(state.codes)))]

    def prepare(self, state: _State, window: Window, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        del window, raw
        return state.codes

    def encode(self, step: int, ready: Sequence[np.ndarray], device: Any) -> dict[str, Any]:
        """x: (batch, longest, letters) one-hot, zeros where padded; lengths: (batch,) on the CPU."""
        del step
        import torch

        lengths = torch.tensor([len(codes) for codes in ready])
        codes = torch.full((len(ready), int(lengths.max())), PAD, dtype=torch.uint8)
        for place, sequence in enumerate(ready):
            codes[place, : len(sequence)] = torch.from_numpy(sequence)
        codes = codes.to(device)
        letters = len(self.options.alphabet)
        table = torch.zeros((PAD + 1, letters), device=device)
        table[:letters] = torch.eye(letters, device=device)
        return {"x": table[codes.long()], "lengths": lengths}

    def decode(self, step: int, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """(batch, longest, classes) probabilities as numpy."""
        del step
        values = outputs["output"].float()
        soft = self.options.activation == "softmax" and values.ndim > 1
        return {"output": (values.softmax(-1) if soft else values).cpu().numpy()}

    def collect(self, state: _State, step: int, window: Window, outputs: Mapping[str, Any]) -> None:
        del step, window
        wanted, found = (len(state.codes), len(self.manifest.classes)), tuple(outputs["output"].shape)
        if len(found) != 2 or found[0] < wanted[0] or found[1] != wanted[1]:
            raise wrong_outputs(found, f"{wanted[0]} residues and {wanted[1]} classes")
        state.probabilities = outputs["output"][: len(state.codes)]

    def finish(self, state: _State) -> Result:
        probabilities = state.probabilities if state.probabilities is not None else np.empty((0, 0), np.float32)
        best = probabilities.argmax(1)
        count = np.bincount(best, minlength=len(self.manifest.classes))
        names = np.array([name.encode() for name in self.manifest.classes])
        return Result(
            {
                "length": len(best),
                "classes": names[best].tobytes().decode(),
                "probabilities": probabilities,
                "fractions": (count / max(len(best), 1)).tolist(),
            }
        )
