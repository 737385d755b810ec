"""How the values that a net sees are scaled: rescaled, filled, clipped to quantiles, standardised.

What is done to each value is worked out first, and then done to all in one go: part by part, each within the cache. Of
integers of 8 and 16 bits it is worked out from how often each one occurs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import model_validator

from ...jobs.normalise import Frozen, Normalise, Sparse
from ...lake.errors import ItemError, SpecError
from .ranks import neighbours

PART = 2**17
"""Values at a time: half a megabyte of float32."""
COUNTED = ("int8", "uint8", "int16", "uint16")
"""Types whose values are counted, on a CPU."""


class Intensity(Sparse):
    """How values are scaled. The statistics are those of the first pass, of the whole volume, or of the dataset."""

    normalise: Normalise | None = None
    """By statistics of the dataset, instead of by quantiles and deviation of the volume itself."""
    quantiles: tuple[float, float] | None = None
    """Values are clipped to these and brought to 0–1."""
    standardise: bool = False
    """Then brought to mean 0 and deviation 1, within what the net sees."""
    scale: float = 1.0
    shift: float = 0.0
    """Last, multiplied and shifted."""

    @model_validator(mode="after")
    def _check(self) -> "Intensity":
        if self.normalise and (self.standardise or self.quantiles):
            raise ValueError("normalise stands alone, without quantiles and standardise")
        return self


@dataclass(frozen=True)
class Source:
    """What stored values mean."""

    slope: float
    intercept: float
    ends: tuple[float, float] | None = None
    """What infinities become, and NaN 0, where some values are not finite."""

    def into(self, target: Any, raw: Any) -> Any:
        """Stored values as the source's, in `target`, float32 of the same shape."""
        target.copy_(raw)
        if (self.slope, self.intercept) != (1.0, 0.0):
            target.mul_(self.slope).add_(self.intercept)
        return target if self.ends is None else target.nan_to_num_(0.0, neginf=self.ends[0], posinf=self.ends[1])

    def values(self, raw: Any) -> Any:
        """Stored values as float32 of the source's."""
        import torch

        return self.into(torch.empty(raw.shape, dtype=torch.float32, device=raw.device), raw)


Bounds = tuple[float, float]
Counted = tuple[Any, np.ndarray]
"""Each value between the least and the greatest of the source, ascending, as float32, and how often it occurs."""
Step = Callable[[Any], Any]
"""What is done to values, in place."""


def scale_into(
    out: Any, raw: Any, source: Source, how: Intensity, bounds: Bounds | None, dataset: Frozen | None = None
) -> Bounds | None:
    """Scale `raw`, a contiguous tensor of stored values, into `out`, float32 of the same shape and device.

    Gives the values of the quantiles: `bounds`, or where these are not known yet, those of `raw`. Raises ItemError where
    the values are all alike and should be scaled by how they differ; SpecError where the `dataset`'s statistics are wanted
    and were not frozen.
    """
    raw, out = raw.reshape(-1), out.view(-1)
    steps: list[Step] = []
    if how.normalise is not None:
        if dataset is None or not dataset.mean:
            raise SpecError("statistics of the dataset were not frozen; plan the job anew")
        steps.append(lambda x: x.sub_(dataset.mean[0]).div_(dataset.std[0]))
    counted = _counted(raw, source) if how.standardise or (how.quantiles is not None and bounds is None) else None
    if how.quantiles is not None:
        low, high = bounds = bounds or _quantiles(raw, source, counted, how.quantiles)
        _check_contrast(high - low)
        steps.append(lambda x: x.sub_(low).div_(high - low).clamp_(0, 1))
    if how.standardise:
        mean = _sum(raw, source, counted, [*steps, lambda x: x.double()]) / raw.numel()
        steps.append(lambda x: x.sub_(mean))
        squares = _sum(raw, source, counted, [*steps, lambda x: x.double().square_()])
        deviation = (squares / max(raw.numel() - 1, 1)) ** 0.5
        _check_contrast(deviation)
        steps.append(lambda x: x.div_(deviation))
    for part, target in zip(_parts(raw), _parts(out), strict=True):
        _through(steps, source.into(target, part)).mul_(how.scale).add_(how.shift)
    return bounds


def _check_contrast(width: float) -> None:
    if width <= 0:
        raise ItemError("no_contrast", "its values are all alike, so they cannot be scaled")


def _through(steps: Sequence[Step], x: Any) -> Any:
    for step in steps:
        x = step(x)
    return x


def _sum(raw: Any, source: Source, counted: Counted | None, steps: Sequence[Step]) -> float:
    """Of all values, after some steps, of which the last makes them float64."""
    if counted:
        values, counts = counted
        return float((_through(steps, values.clone()).numpy() * counts).sum())
    return sum(_total(_through(steps, source.values(part))) for part in _parts(raw))


def _total(values: Any) -> float:
    """Their sum; on a CPU numpy's, since torch's depends on how many threads it has."""
    return float(values.numpy().sum() if values.device.type == "cpu" else values.sum())


def _parts(values: Any) -> Any:
    """On a CPU, parts that fit its cache; else all."""
    return values.split(PART) if values.device.type == "cpu" and len(values) else (values,)


def _counted(raw: Any, source: Source) -> Counted | None:
    """Values and counts, on a CPU; None of types of more than 16 bits."""
    import torch

    if raw.device.type != "cpu" or str(raw.dtype).removeprefix("torch.") not in COUNTED:
        return None
    least, most = int(raw.numpy().min()), int(raw.numpy().max())  # torch has no min of uint16
    counts = torch.zeros(most - least + 1, dtype=torch.int64)
    wide = raw.dtype == torch.uint16 or most - least >= 2**15
    for part in _parts(raw):
        places = part.to(torch.int32 if wide else torch.int16).sub(least)
        counts += torch.bincount(places, minlength=len(counts))
    values = source.values(torch.arange(least, most + 1, dtype=torch.int32))
    return (values.flip(0), counts.numpy()[::-1]) if source.slope < 0 else (values, counts.numpy())


def _quantiles(raw: Any, source: Source, counted: Counted | None, wanted: Bounds) -> Bounds:
    """Linear between the two nearest ranks, as numpy and torch have it, for any number of values."""
    import torch

    places = np.array(wanted) * (raw.numel() - 1)
    below = places.astype(np.int64)
    if counted:
        ranks = np.stack([below, np.minimum(below + 1, raw.numel() - 1)])
        pairs = counted[0].numpy()[np.searchsorted(np.cumsum(counted[1]), ranks, side="right")]
    elif raw.device.type == "cpu":
        pairs = neighbours(source.values(raw).numpy(), below.tolist())
    else:
        ranks = np.stack([below, np.minimum(below + 1, raw.numel() - 1)])
        pairs = torch.sort(source.values(raw)).values[torch.from_numpy(ranks).to(raw.device)].cpu().numpy()
    pairs = pairs.astype(np.float64)
    low, high = (pairs[0] + (pairs[1] - pairs[0]) * (places - below)).tolist()
    return low, high
