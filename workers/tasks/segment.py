"""A mask for a volume: one net on the whole of it, or one that finds a box first and one that looks into the box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ...jobs.normalise import Normalised
from ...jobs.task import DenseMap, Options, Result, Task, Unit, Window
from ...lake.errors import ItemError, ModelError
from ...lake.models import Manifest
from .checks import no_volume, wrong_outputs
from .device import staged
from .geometry import canonical, filled, largest_component, nearest, stored
from .intensity import Intensity, Source, scale_into
from .measure import mean_inside, measured


class Pass(Options):
    """One network of the package."""

    net: str
    """Its name in the package's files."""
    grid: tuple[int, int, int] | None = None
    """Voxels along each axis that the net sees, by nearest neighbour; none: the item's own."""
    channel: int = Field(default=0, ge=0)
    """Channel of the output that is the probability."""
    threshold: float = 0.5
    """Of a box: what belongs to the object."""
    profile: float = 0.02
    """Of a box: share of a plane that must belong to the object for the box to reach there."""
    margin: float = 0.1
    """Of a box: by how much of its size it is widened at each end."""


class SegmentOptions(Normalised):
    """How a volume becomes a mask."""

    of_the_model = frozenset({"passes", "axes", "intensity"})
    passes: list[Pass] = Field(min_length=1)
    """The last gives the mask, each before it a box for the next."""
    axes: Literal["zyx", "xyz"] = "zyx"
    """Order of the axes that the net sees, in the contract's orientation."""
    intensity: Intensity = Intensity()
    non_finite: Literal["fill", "refuse"] = "fill"
    """What becomes of voxels that are NaN or infinite: `fill`, 0 for NaN and the ends of the finite values for infinities,
    after rescaling and before all statistics; or the item fails as `non_finite_input`.
    """
    threshold: float = 0.5
    """What belongs to the mask."""
    largest: bool = False
    """Keep only the largest connected component (26 neighbours)."""
    fill: bool = False
    """Fill holes that the background does not reach."""

    @property
    def normalises(self) -> bool:
        return self.intensity.normalise is not None


Box = tuple[slice, slice, slice]


@dataclass
class _State:
    volume: np.ndarray
    """A view in the orientation and order of axes that the net sees."""
    meta: Mapping[str, Any]
    box: Box | None
    """Where the next net looks; none: nothing was found, so the mask is empty."""
    non_finite: int = 0
    """Voxels that are NaN or infinite."""
    ends: tuple[float, float] = (0.0, 0.0)
    """The least and the greatest finite value, rescaled, where some voxel has none."""
    bounds: tuple[float, float] | None = None
    """The values of the quantiles."""
    probability: np.ndarray | None = None
    """Inside of the box."""


class Segment(Task):
    """A binary mask, written with the item's geometry."""

    name = "segment"
    version = 3
    item_columns: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("volume_ml", pa.float64()),
            pa.field("voxels", pa.int64()),
            # first and last + 1 voxel: x, y, z, x, y, z, as the source has them
            pa.field("bbox", pa.list_(pa.int64())),
            pa.field("centroid_mm", pa.list_(pa.float64())),  # in RAS
            pa.field("mean_probability", pa.float64()),  # inside of the mask
            pa.field("non_finite", pa.int64()),  # voxels of the item that were NaN or infinite
        ]
    )
    units: ClassVar[Mapping[str, str]] = {"volume_ml": "mL", "centroid_mm": "mm", "mean_probability": "1"}
    options_type = SegmentOptions

    def __init__(self, manifest: Manifest, options: SegmentOptions) -> None:
        super().__init__(manifest, options)
        if len(manifest.classes) != 1:
            raise ModelError(
                f"task segment gives one binary mask, so it needs exactly one class; {manifest.ref} has "
                f"{len(manifest.classes)}: {', '.join(manifest.classes) or 'name it in classes of model.yaml'}"
            )

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(one.net for one in self.options.passes)

    def refuse(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
        return no_volume(items[self.roles[0]])

    def cost(self, items: Mapping[str, Mapping[str, Any]]) -> float:
        """4 bytes for each voxel that a net sees."""
        own = int(np.prod(items["input"]["shape"]))
        return float(sum(4 * (np.prod(one.grid) if one.grid else own) for one in self.options.passes))

    def begin(self, unit: Unit) -> _State:
        meta = unit.meta["input"]
        volume = canonical(unit.data["input"], meta, self.manifest.inputs["input"].orientation, self.options.axes)
        count, ends = _non_finite(unit.data["input"], *_rescale(meta))
        if count and (self.options.non_finite == "refuse" or count == volume.size):
            raise ItemError("non_finite_input", f"{count} of its {volume.size} voxels are NaN or infinite")
        return _State(volume, meta, (slice(None), slice(None), slice(None)), count, ends)

    def windows(self, state: _State, step: int) -> Sequence[Window]:
        if state.box is None:
            return []
        grid = self.options.passes[step].grid or _inside(state).shape
        return [Window(0, {"input": ()}, bucket=grid, tag=grid)]

    def prepare(self, state: _State, window: Window, raw: Mapping[str, np.ndarray]) -> tuple[_State, np.ndarray]:
        """The box on the net's grid, in the stored dtype."""
        del raw
        return state, nearest(_inside(state), window.tag)

    def encode(self, step: int, ready: Sequence[tuple[_State, np.ndarray]], device: Any) -> dict[str, Any]:
        """x: (batch, 1, *grid) float32, scaled."""
        del step
        import torch

        x = torch.empty((len(ready), 1, *ready[0][1].shape), dtype=torch.float32, device=device)
        for place, (state, raw) in enumerate(ready):
            source = Source(*_rescale(state.meta), state.ends if state.non_finite else None)
            there = staged(raw, device)
            state.bounds = scale_into(
                x[place], there, source, self.options.intensity, state.bounds, self.options.statistics
            )
        return {"x": x}

    def collect(self, state: _State, step: int, window: Window, outputs: Mapping[str, Any]) -> None:
        one, shape = self.options.passes[step], tuple(outputs["output"].shape)
        if len(shape) != 4 or one.channel >= shape[0] or shape[1:] != tuple(window.tag):
            grid = " × ".join(map(str, window.tag))
            raise wrong_outputs(shape, f"at least {one.channel + 1} channels on the net's grid of {grid}")
        probability = outputs["output"][one.channel].float().cpu().numpy()
        if step < len(self.options.passes) - 1:
            state.box = _box(largest_component(probability > one.threshold), state.volume.shape, state.box, one)
        else:
            state.probability = nearest(probability, _inside(state).shape)

    def finish(self, state: _State) -> Result:
        whole, mean = np.zeros(state.volume.shape, np.uint8), None
        if state.box is not None and state.probability is not None:
            inside = state.probability > self.options.threshold
            if self.options.largest:
                inside = largest_component(inside)
            if self.options.fill:
                inside = filled(inside)
            mean = mean_inside(state.probability, inside)
            whole[state.box] = inside
        mask = stored(whole, state.meta, self.manifest.inputs["input"].orientation, self.options.axes)
        columns = {**measured(mask, state.meta), "mean_probability": mean, "non_finite": state.non_finite}
        return Result(columns, maps={"mask": DenseMap(mask, "input", self.manifest.classes)})


def _rescale(meta: Mapping[str, Any]) -> tuple[float, float]:
    """Slope and intercept from stored values to the source's."""
    slope, intercept = meta.get("rescale") or (1.0, 0.0)
    return float(slope), float(intercept)


def _non_finite(stored_values: np.ndarray, slope: float, intercept: float) -> tuple[int, tuple[float, float]]:
    """How many voxels are no finite float32 once rescaled, and between which values the others lie."""
    if stored_values.dtype.kind in "iu":
        return 0, (0.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored_values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    finite = np.isfinite(values)
    count = finite.size - int(np.count_nonzero(finite))
    if count in (0, finite.size):
        return count, (0.0, 0.0)
    known = values[finite]
    return count, (float(known.min()), float(known.max()))


def _inside(state: _State) -> np.ndarray:
    return state.volume if state.box is None else state.volume[state.box]


def _box(mask: np.ndarray, shape: Sequence[int], within: Box | None, one: Pass) -> Box | None:
    """Where the object is, on the grid of the whole volume, widened by the margin; None where it is nowhere.

    `within` is where the net looked, so what the mask covers.
    """
    if within is None:
        return None
    slices = []
    for axis in range(3):
        first, last, _ = within[axis].indices(shape[axis])
        others = tuple(a for a in range(3) if a != axis)
        planes = np.flatnonzero(mask.mean(axis=others) > one.profile)
        if not len(planes):
            return None
        scale = np.float32(last - first) / np.float32(mask.shape[axis])
        centre = np.round(scale * np.float32((planes[-1] + 1 + planes[0]) / 2))
        size = np.round(np.float32(1 + 2 * one.margin) * (scale * np.float32(planes[-1] + 1 - planes[0])))
        start = min(first + max(0, int(centre - size / 2)), last - 1)
        slices.append(slice(start, min(last, max(start + 1, first + int(centre + size / 2)))))
    return (slices[0], slices[1], slices[2])
