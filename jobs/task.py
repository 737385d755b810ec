"""What a task declares and does. It says nothing about storage, batching or Ray.

The engine drives every unit through the same steps:

    state = task.begin(unit)
    for each step (0, 1, … of `task.steps`):
        windows = task.windows(state, step)         # pure geometry; none: the step is skipped for this unit
        raw = {role: unit.data[role][region]}       # read by the engine, never by the task
        ready = task.prepare(state, window, raw)    # numpy, ahead of time, in a reading thread
        inputs = task.encode(step, [ready, …])      # a batch, on the device: cast, scale, one-hot, pad
        outputs = network(inputs)                   # named outputs, first axis the batch
        outputs = task.decode(step, outputs)        # what is done with them all at once, on the device
        task.collect(state, window, outputs)        # one window's share
    result = task.finish(state)                     # the item row, detail rows and maps

Windows of several units share a batch if their `bucket` is equal. `prepare` may run while other windows of the unit
are collected, so it must not read what `collect` writes; `encode` and `decode` run in a lane, beside all of these. With `ordered` it may: a unit's next window is prepared only
after the last one was collected, so that a recurrent network's state travels in `state`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from ..lake.models import Manifest


class Options(BaseModel):
    """Parameters of a task: the package's `options` overlaid with the job's. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    of_the_model: ClassVar[frozenset[str]] = frozenset()
    """Those that only the package may set: what its networks were made for, such as their passes or their alphabet."""


@dataclass(frozen=True)
class Window:
    """A piece of a unit that goes through the network in one go."""

    index: int
    """Its place among the unit's windows of this step."""
    regions: Mapping[str, tuple[slice, ...]]
    """By role: what to read, with its halo. `()` is all of it."""
    bucket: Hashable = None
    """Windows of equal buckets may share a batch."""
    weight: float = 1.0
    """Cost of the window, in the unit in which `Manifest.batch` counts; 1 for a window of the usual size."""
    tag: Any = None
    """What `collect` needs to put the output in its place: an offset, the interior without halo."""


@dataclass(frozen=True)
class Unit:
    """What gets one result: its data by role, and what is known of them."""

    data: Mapping[str, np.ndarray]
    """Arrays as stored: (z, y, x), (channel, time), or the letters of a sequence as uint8."""
    meta: Mapping[str, Mapping[str, Any]]
    """By role: affine, spacing and rescale; rate, channels, units, gain and offset; …"""


@dataclass
class DenseMap:
    """A dense output on the grid of the role that it was made from."""

    data: np.ndarray
    """(z, y, x), as stored."""
    role: str
    labels: list[str] | None = None
    """Names of the values 1, 2, … of a label map."""


@dataclass
class Result:
    """What a task makes of one unit."""

    columns: dict[str, Any]
    """The task's columns of the item row."""
    rows: dict[str, Sequence[Any]] = field(default_factory=dict)
    """The detail rows, column by column."""
    maps: dict[str, DenseMap] = field(default_factory=dict)

    @property
    def nbytes(self) -> float:
        """Bytes of its arrays."""
        columns = (value.nbytes for value in self.columns.values() if isinstance(value, np.ndarray))
        return float(sum(columns) + sum(dense.data.nbytes for dense in self.maps.values()))


class Task(ABC):
    """One way to turn items into windows, and outputs into rows and maps. Importing a task imports no torch."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the code gives other results: results of another version are stale."""
    roles: ClassVar[tuple[str, ...]] = ("input",)
    """What a unit consists of; the first role names the result."""
    blocks: ClassVar[bool] = False
    """Whether units that lie side by side in a pack go through as one block: one role, one step, one window each that is
    the whole item. `encode_block` and `finish_block` then stand for all that is done for a unit alone.
    """
    ordered: ClassVar[bool] = False
    """Whether a unit's windows must go through in order, each after the last."""
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    """Names of the network's outputs, in its order."""
    item_columns: ClassVar[pa.Schema]
    row_columns: ClassVar[pa.Schema] = pa.schema([])
    units: ClassVar[Mapping[str, str]] = {}
    """UCUM units of columns."""
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, manifest: Manifest, options: Any) -> None:
        self.manifest = manifest
        self.options = options

    @property
    def steps(self) -> tuple[str, ...]:
        """The passes, by the name of the file that holds each one's network."""
        return tuple(self.manifest.files)[:1]

    @property
    def tables(self) -> tuple[str, ...]:
        """Names in the package's files of what `load_tables` reads."""
        return ()

    def load_tables(self, read: Callable[[str], bytes]) -> None:
        """Take tables of the package, by their names in its files, before the first unit."""
        del read

    def refuse(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
        """(code, reason) why a unit's items cannot be scored, beyond what the contract says.

        Of an item it is told modality, shape, dtype, nbytes, orientation and spacing, signal, sequence, permitted use and
        attributes, and as `row` 0 where it is in a pack: it is asked once for all units that agree in these.
        """
        del items
        return None

    def cost(self, items: Mapping[str, Mapping[str, Any]]) -> float:
        """Relative cost of a unit, by which shards are cut: bytes of what goes through the network. Told as `refuse` is."""
        return float(sum(item["nbytes"] or 0 for item in items.values()))

    @abstractmethod
    def begin(self, unit: Unit) -> Any:
        """A unit's own state. Raises ItemError where it cannot be scored."""

    @abstractmethod
    def windows(self, state: Any, step: int) -> Sequence[Window]:
        """The windows of a step: pure geometry. For later steps, `state` holds what the former ones found."""

    def prepare(self, state: Any, window: Window, raw: Mapping[str, np.ndarray]) -> Any:
        """What travels to the device for one window; runs in a reading thread. By default the raw arrays."""
        del state, window
        return raw

    @abstractmethod
    def encode(self, step: int, ready: Sequence[Any], device: Any) -> dict[str, Any]:
        """Network inputs by name, for a batch of prepared windows: tensors on `device`."""

    def decode(self, step: int, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a batch's outputs, found finite, become before each window gets its own: tensors or arrays, batch first."""
        del step
        return outputs

    @abstractmethod
    def collect(self, state: Any, step: int, window: Window, outputs: Mapping[str, Any]) -> None:
        """Take one window's outputs, as `decode` left them, without the batch axis."""

    @abstractmethod
    def finish(self, state: Any) -> Result:
        """The rows and maps of a unit, after its last step."""

    def encode_block(self, data: np.ndarray, meta: Mapping[str, Any], device: Any) -> dict[str, Any]:
        """Network inputs by name, for items of a pack: (n, …) as stored → tensors (n, …) on `device`. See `blocks`."""
        raise NotImplementedError

    def finish_block(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The task's columns of n item rows, from outputs (n, …) that are finite: arrays or lists of n values."""
        raise NotImplementedError
