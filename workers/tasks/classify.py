"""A class for a whole image: scaled, resized and cropped on the device, one pass through the network.

Images that lie in packs go through as whole blocks; the numbers are those of each image alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from ...jobs.normalise import Normalise, Normalised
from ...jobs.task import Result, Task, Unit, Window
from ...lake.errors import ItemError, SpecError
from ...lake.models import Manifest
from .checks import no_image, wrong_outputs
from .device import staged

Size = tuple[PositiveInt, PositiveInt]


class ClassifyOptions(Normalised):
    """How stored values become what the network sees, and its outputs a label."""

    of_the_model = frozenset({"channels", "scale", "resize", "crop", "mean", "std", "normalise", "activation"})
    channels: list[int] | None = Field(default=None, min_length=1)
    """Which stored channels the network sees, in its order: [2, 1, 0] turns RGB round, [0, 0, 0] makes three of grey."""
    scale: float = 1.0
    """What values are multiplied by, as float32, first of all: 0.00392156862745098 is 1/255."""
    resize: Size | None = None
    """(height, width): bilinear with antialias, as torch.nn.functional.interpolate does it."""
    crop: Size | None = None
    """(height, width) around the centre, after resizing."""
    mean: list[float] = Field(default_factory=list)
    """By channel of the network, or one for all: taken off after scaling."""
    std: list[float] = Field(default_factory=list)
    """Likewise: divided by."""
    normalise: Normalise | None = None
    """By mean and std of each stored channel of the dataset, instead of by those of the package."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """softmax where classes exclude each other, sigmoid where they do not, none where the network gives probabilities."""
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """A class is named where its probability is at least this; left out: the most probable, with sigmoid from 0.5 on."""

    @model_validator(mode="after")
    def _check(self) -> "ClassifyOptions":
        if self.channels and min(self.channels) < 0:
            raise ValueError("channels are counted from 0")
        if any(value == 0.0 for value in self.std):
            raise ValueError("std has a zero in it")
        if self.normalise and (self.mean or self.std):
            raise ValueError("normalise stands alone, without mean and std")
        return self

    @property
    def normalises(self) -> bool:
        return self.normalise is not None


@dataclass
class _State:
    image: np.ndarray
    outputs: Any = None


class Classify(Task):
    """One window, the image; one output, its classes."""

    name = "classify"
    version = 1
    blocks = True
    item_columns: ClassVar[pa.Schema] = pa.schema(
        [
            # the most probable class; null below the threshold, and where classes do not exclude each other (sigmoid)
            pa.field("label", pa.string()),
            pa.field("probability", pa.float32()),  # of the most probable class, also where it is not named
            pa.field("labels", pa.list_(pa.string())),  # with sigmoid: classes at or above the threshold, else null
            pa.field("probabilities", pa.list_(pa.float32())),  # in the order of the classes
            pa.field("abstained", pa.bool_()),  # no class reaches the threshold
        ]
    )
    units: ClassVar[Mapping[str, str]] = {"probability": "1", "probabilities": "1"}
    options_type = ClassifyOptions

    def __init__(self, manifest: Manifest, options: ClassifyOptions) -> None:
        super().__init__(manifest, options)
        if not manifest.classes:
            raise SpecError(f"task classify needs the names of the classes; {manifest.ref} has none")
        self._classes = np.array(manifest.classes, object)
        several = options.activation == "sigmoid"
        self._threshold = options.threshold if options.threshold is not None else 0.5 if several else 0.0

    def refuse(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
        item = items[self.roles[0]]
        return no_image(item) or self._misfit([int(size) for size in item["shape"]])

    def cost(self, items: Mapping[str, Mapping[str, Any]]) -> float:
        """4 bytes for each value that the network sees."""
        return 4.0 * float(np.prod(self._seen(items["input"]["shape"])))

    def begin(self, unit: Unit) -> _State:
        image = unit.data["input"]
        misfit = self._misfit(image.shape)
        if misfit:
            raise ItemError(*misfit)
        return _State(image)

    def windows(self, state: _State, step: int) -> Sequence[Window]:
        del step
        return [Window(0, {"input": ()}, bucket=self._seen(state.image.shape))]

    def prepare(self, state: _State, window: Window, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        del state, window
        return raw["input"]

    def encode(self, step: int, ready: Sequence[np.ndarray], device: Any) -> dict[str, Any]:
        """x: (batch, c, h, w) float32. Images of different sizes are brought to one in groups."""
        del step
        import torch

        groups = [list(group) for _, group in groupby(ready, key=lambda image: (image.shape, image.dtype))]
        parts = [self.encode_block(np.stack(group), {}, device)["x"] for group in groups]
        return {"x": parts[0] if len(parts) == 1 else torch.cat(parts)}

    def collect(self, state: _State, step: int, window: Window, outputs: Mapping[str, Any]) -> None:
        del step, window
        state.outputs = outputs["output"][None]

    def finish(self, state: _State) -> Result:
        return Result(
            {name: values[0].as_py() for name, values in self.finish_block({"output": state.outputs}).items()}
        )

    def encode_block(self, data: np.ndarray, meta: Mapping[str, Any], device: Any) -> dict[str, Any]:
        """x: (n, c, h, w) float32, of images (n, C, H, W) as stored, which travel to the device before they are cast."""
        del meta
        import torch

        options = self.options
        x = staged(data, device).to(torch.float32, copy=True)  # a copy: it is changed below
        if options.channels is not None:
            x = x[:, options.channels]
        if options.scale != 1.0:
            x *= options.scale
        if options.resize is not None and tuple(x.shape[2:]) != options.resize:
            x = torch.nn.functional.interpolate(
                x, size=options.resize, mode="bilinear", align_corners=False, antialias=True
            )
        if options.crop is not None:
            (height, width), (top, left) = options.crop, _corner(x.shape[2:], options.crop)
            x = x[:, :, top : top + height, left : left + width]
        mean, std = self._constants()
        if mean:
            x -= torch.tensor(mean, device=device)[:, None, None]
        if std:
            x /= torch.tensor(std, device=device)[:, None, None]
        return {"x": x.contiguous()}

    def finish_block(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of n item rows from outputs (n, classes), as Arrow arrays."""
        values = outputs["output"]
        if values.ndim != 2 or values.shape[1] != len(self._classes):
            raise wrong_outputs(values.shape[1:], f"{len(self._classes)} classes")
        values = values.float()
        if self.options.activation == "softmax":
            values = values.softmax(1)
        probabilities = np.ascontiguousarray(values.cpu().numpy())
        if self.options.activation == "sigmoid":  # torch's gives other last digits where a value stands elsewhere
            from scipy.special import expit

            probabilities = expit(probabilities)
        best = probabilities.argmax(1)
        highest = probabilities[np.arange(len(best)), best]
        abstained = highest < np.float32(self._threshold)
        return self._named(probabilities, best, abstained) | {
            "probability": pa.array(highest),
            "probabilities": _lists(pa.array(probabilities.reshape(-1)), np.full(len(best), len(self._classes))),
            "abstained": pa.array(abstained),
        }

    def _named(self, probabilities: np.ndarray, best: np.ndarray, abstained: np.ndarray) -> dict[str, pa.Array]:
        """`label` where classes exclude each other, else `labels`."""
        names = pa.array(self._classes, pa.string())
        if self.options.activation != "sigmoid":
            return {
                "label": names.take(pa.array(best, mask=abstained)),
                "labels": pa.nulls(len(best), pa.list_(pa.string())),
            }
        reached = probabilities >= np.float32(self._threshold)
        return {
            "label": pa.nulls(len(best), pa.string()),
            "labels": _lists(names.take(pa.array(np.nonzero(reached)[1])), reached.sum(1)),
        }

    def _constants(self) -> tuple[list[float], list[float]]:
        """Mean and std of each channel that the network sees, scaled; one for all, or none."""
        options = self.options
        if options.normalise is None:
            return options.mean, options.std
        found = options.statistics
        if found is None or not found.mean:
            raise SpecError("statistics of the dataset were not frozen; plan the job anew")
        seen = options.channels if options.channels is not None else range(len(found.mean))
        pairs = [(found.mean[channel], found.std[channel]) for channel in seen]
        return [mean * options.scale for mean, _ in pairs], [std * options.scale for _, std in pairs]

    def _seen(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(c, h, w) that the network sees of an image (C, H, W)."""
        channels = len(self.options.channels) if self.options.channels is not None else int(shape[0])
        height, width = self.options.crop or self.options.resize or shape[1:]
        return channels, int(height), int(width)

    def _misfit(self, shape: Sequence[int]) -> tuple[str, str] | None:
        """Why an image (C, H, W) cannot become what the network sees."""
        options = self.options
        if len(shape) != 3:
            return (
                "not_an_image",
                f"the task needs an image of channels, rows and columns, the item has {len(shape)} axes",
            )
        channels = self._seen(shape)[0]
        needed = max(options.channels) + 1 if options.channels else 1
        wanted = {len(values) for values in (options.mean, options.std) if len(values) > 1} | {channels}
        wanted |= {len(options.statistics.mean)} if options.statistics and options.channels is None else set()
        if shape[0] < needed or len(wanted) > 1:
            return "wrong_channels", f"the image has {shape[0]} channels, the model needs {max(needed, *wanted)}"
        height, width = options.resize or shape[1:]
        if options.crop and (options.crop[0] > height or options.crop[1] > width):
            return (
                "too_small",
                f"the image has {height} × {width} pixels, the model needs {options.crop[0]} × {options.crop[1]}",
            )
        return None


def _corner(shape: Sequence[int], crop: Size) -> tuple[int, int]:
    """Where a crop around the centre begins; of an odd rest, the half that is rounded to even, as torchvision has it."""
    return round((shape[0] - crop[0]) / 2.0), round((shape[1] - crop[1]) / 2.0)


def _lists(flat: pa.Array, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)
