"""A class for a whole sequence: pieces of it are classified and their probabilities pooled.

A package may have several stages: where the first gives a certain class, the next tells its kinds apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ...jobs.task import Options, Result, Task, Unit, Window
from ...lake.errors import ModelError
from ...lake.models import Manifest
from .checks import no_sequence, wrong_outputs

_CODES = np.full(256, 255, np.uint8)
"""Small letters stand for masked stretches, and are no bases here, as they are none for tiara."""
_CODES[np.frombuffer(b"ACGT", np.uint8)] = np.arange(4, dtype=np.uint8)


class Stage(Options):
    """One network of the package."""

    net: str
    """Its name in the package's files."""
    idf: str | None = None
    """Name of the table (.npy) that weighs the k-mer counts."""
    k: int
    """Letters in a k-mer."""
    classes: list[str]
    """Class of each output of the network; an empty name is an output that stands for none."""
    when: str | None = None
    """The stage runs where the one before gave this class."""


class SequenceOptions(Options):
    """How a sequence becomes pieces, and probabilities a label."""

    of_the_model = frozenset({"piece", "stages", "merge"})
    piece: int
    """Letters in a piece."""
    stages: list[Stage] = Field(min_length=1)
    threshold: float
    """A class is suggested where its probability is above."""
    merge: dict[str, list[str]] = Field(default_factory=dict)
    """Name → classes of the first stage; suggested where none is above the threshold alone, but all together are."""
    short_piece: float = 0.0
    """The last piece is left out where it is shorter than this share of a piece, unless it is the only one."""
    blank_piece: Literal["unknown", "leave_out"] = "leave_out"
    """What becomes of a sequence with a piece that has no k-mer of A, C, G and T, as in a long gap of an assembly:
    `unknown` without probabilities, or the class of its other pieces, and unknown only where there is none.
    """


@dataclass
class _State:
    codes: np.ndarray
    step: int = 0
    sums: dict[int, list[np.ndarray]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)


class SequenceClasses(Task):
    """K-mer profiles of pieces through a classifier; the mean of the pieces' probabilities, then the next stage."""

    name = "sequence"
    version = 1
    item_columns: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("length", pa.int64()),
            pa.field("n_pieces", pa.int64()),  # that were classified in the first stage
            pa.field("label", pa.string()),  # of the last stage that ran; `unknown` below the threshold
            pa.field("labels", pa.list_(pa.string())),  # of each stage that ran
            # of the first stage, in the order of its classes; null where no piece could be classified
            pa.field("probabilities", pa.list_(pa.float64())),
            pa.field("stage_probabilities", pa.list_(pa.list_(pa.float64()))),  # of the stages after it, likewise
        ]
    )
    units: ClassVar[Mapping[str, str]] = {"length": "{base}", "probabilities": "1"}
    options_type = SequenceOptions

    def __init__(self, manifest: Manifest, options: SequenceOptions) -> None:
        super().__init__(manifest, options)
        named = [name for name in options.stages[0].classes if name]
        if named != manifest.classes:
            raise ModelError(
                f"{manifest.ref}: classes are {', '.join(manifest.classes)}, its first stage has {', '.join(named)}; "
                "they must be the same, in the same order"
            )
        self._tables: dict[int, Any] = {}

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(stage.net for stage in self.options.stages)

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(stage.idf for stage in self.options.stages if stage.idf is not None)

    def refuse(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
        return no_sequence(items[self.roles[0]])

    def cost(self, items: Mapping[str, Mapping[str, Any]]) -> float:
        """4 bytes for each k-mer of the first stage in each piece."""
        pieces = max(int(items["input"]["sequence"]["length"]) // self.options.piece, 1)
        return 4.0 * 4 ** self.options.stages[0].k * pieces

    def begin(self, unit: Unit) -> _State:
        return _State(_CODES[unit.data["input"]])

    def windows(self, state: _State, step: int) -> Sequence[Window]:
        if step:
            self._close(state, step - 1)
            if state.labels[-1] != self.options.stages[step].when or len(state.labels) != step:
                return []
        size, length = self.options.piece, len(state.codes)
        starts = np.arange(0, length, size)
        if len(starts) > 1 and length - starts[-1] < self.options.short_piece * size:
            starts = starts[:-1]
        stops = np.minimum(starts + size, length)
        k = self.options.stages[step].k
        places = _kmers(state.codes, k)
        seen = np.searchsorted(places, stops - k, "right") > np.searchsorted(places, starts)
        state.sums[step] = []
        if self.options.blank_piece == "unknown" and not seen.all():
            return []
        regions = zip(starts[seen].tolist(), stops[seen].tolist(), strict=True)
        return [Window(n, {"input": (slice(start, stop),)}) for n, (start, stop) in enumerate(regions)]

    def prepare(self, state: _State, window: Window, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        del raw
        return state.codes[window.regions["input"]]

    def encode(self, step: int, ready: Sequence[np.ndarray], device: Any) -> dict[str, Any]:
        """x: (batch, 4^k) k-mer counts, weighed, each of length 1. A k-mer with another letter than ACGT counts nowhere."""
        import torch

        stage = self.options.stages[step]
        codes = torch.full((len(ready), max(len(piece) for piece in ready)), 255, dtype=torch.uint8)
        for place, piece in enumerate(ready):
            codes[place, : len(piece)] = torch.from_numpy(piece)
        codes = codes.to(device).long()
        span = max(codes.shape[1] - stage.k + 1, 0)
        index = torch.zeros((len(ready), span), dtype=torch.int64, device=device)
        whole = torch.ones((len(ready), span), dtype=torch.bool, device=device)
        for offset in range(stage.k):
            letters = codes[:, offset : offset + span]
            index = index * 4 + letters.clamp(max=3)
            whole &= letters < 4
        counts = torch.zeros((len(ready), 4**stage.k), device=device)
        counts.scatter_add_(1, index, whole.float())
        weighed = counts * self._weights(step, device)
        norm = torch.linalg.vector_norm(weighed, dim=1, keepdim=True)
        return {"x": weighed / norm.clamp(min=torch.finfo(torch.float32).tiny)}

    def collect(self, state: _State, step: int, window: Window, outputs: Mapping[str, Any]) -> None:
        del window
        classes = len(self.options.stages[step].classes)
        if tuple(outputs["output"].shape) != (classes,):
            raise wrong_outputs(outputs["output"].shape, f"{classes} classes")
        state.sums[step].append(outputs["output"].double().cpu().numpy())

    def finish(self, state: _State) -> Result:
        self._close(state, max(state.sums))
        first, *later = [self._named(step, pieces) for step, pieces in sorted(state.sums.items())]
        return Result(
            {
                "length": len(state.codes),
                "n_pieces": len(state.sums[0]),
                "label": state.labels[-1],
                "labels": state.labels,
                "probabilities": first,
                "stage_probabilities": later,
            }
        )

    def _named(self, step: int, pieces: list[np.ndarray]) -> list[float] | None:
        """The mean of the pieces, without the outputs that stand for no class."""
        if not pieces:
            return None
        names = self.options.stages[step].classes
        return [float(p) for p, name in zip(np.mean(pieces, axis=0), names, strict=True) if name]

    def _close(self, state: _State, step: int) -> None:
        """The label of a stage, once all of its pieces are in."""
        if len(state.labels) > step or step not in state.sums:
            return
        label, names = "unknown", self.options.stages[step].classes
        if state.sums[step]:
            mean = np.mean(state.sums[step], axis=0)
            best = int(mean.argmax())
            if mean[best] > self.options.threshold and names[best]:
                label = names[best]
            for merged, parts in self.options.merge.items():
                together = sum(float(p) for p, name in zip(mean, names, strict=True) if name in parts)
                if label == "unknown" and step == 0 and together > self.options.threshold:
                    label = merged
        state.labels.append(label)

    def load_tables(self, read: Any) -> None:
        """Take the idf tables of the package, as the worker reads them: name → bytes."""
        import io

        for step, stage in enumerate(self.options.stages):
            if stage.idf is not None:
                try:
                    self._tables[step] = np.load(io.BytesIO(read(stage.idf)), allow_pickle=False).astype(np.float32)
                except (AttributeError, EOFError, MemoryError, OSError, ValueError) as error:
                    raise ModelError(
                        f"{self.manifest.ref}: its table {stage.idf} is no .npy file of numbers"
                    ) from error

    def _weights(self, step: int, device: Any) -> Any:
        import torch

        table = self._tables.get(step)
        return 1.0 if table is None else torch.from_numpy(table).to(device)


def _kmers(codes: np.ndarray, k: int) -> np.ndarray:
    """Where k letters in a row are bases."""
    bases = np.concatenate([[0], np.cumsum(codes < 4)])
    return np.flatnonzero(bases[k:] - bases[:-k] == k)
