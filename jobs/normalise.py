"""Normalising by statistics of the dataset: a task's options say that they want them, a plan freezes the numbers.

So they are part of the spec digest: other statistics are other results. A job that names a `digest` keeps the ones of that
digest, however the dataset grows.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..lake import statistics
from ..lake.errors import SpecError
from ..lake.layout import Lake
from .covered import covered_digest
from .spec import Job
from .task import Options, Task


class Sparse(Options):
    """Options of which those that were added later are only written where they are set: older results stay valid."""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = {"normalise", "statistics"}
        return {key: value for key, value in handler(self).items() if key not in later or value is not None}


class Normalise(Options):
    """By what values are normalised."""

    source: Literal["dataset"] = Field(alias="from")
    """`dataset`: mean and standard deviation of all values of the job's dataset, after rescaling."""

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {"from": self.source}


class Frozen(Options):
    """Statistics that a plan was made with."""

    digest: str = Field(pattern="^[0-9a-f]{32}$")
    """Of the statistics in the lake, `statistics/DATASET/DIGEST.json`. A job may name it; left out, those of now are taken."""
    mean: list[float] = Field(default_factory=list)
    """Of all values, or of each stored channel: the plan fills them in."""
    std: list[float] = Field(default_factory=list)


class Normalised(Sparse):
    """Options of a task that can normalise by statistics of the dataset."""

    statistics: Frozen | None = None
    """Which ones; by default those of the dataset as it is when the job is planned."""

    @property
    def normalises(self) -> bool:
        """Whether they are asked for."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.statistics is not None and not self.normalises:
            raise ValueError("statistics are only of use to a package that has `normalise`")
        return self

    def frozen(self, found: Frozen) -> Self:
        """The same with these."""
        return self.model_copy(update={"statistics": found})


def with_statistics(lake: Lake, job: Job, task: Task) -> Task:
    """The task with its statistics frozen, where it wants some. Raises SpecError where there are none, or others."""
    options = task.options
    if not isinstance(options, Normalised) or not options.normalises:
        return task
    dataset = job.inputs[task.roles[0]].dataset
    wanted = options.statistics.digest if options.statistics else covered_digest(lake, dataset)
    found = statistics.read(lake, dataset, wanted)
    if found is None:
        others = statistics.stored(lake, dataset)
        old = "" if not others else " as it is now" if options.statistics is None else " of that digest"
        raise SpecError(
            f"{task.manifest.ref} normalises by statistics of {dataset}, of which there are none{old}; "
            f"make them with: diastole stats {dataset}"
        )
    groups = _groups(found["groups"], task.manifest.inputs[task.roles[0]].modality)
    if not groups or not all(group["values"] and group["std"] > 0 for group in groups):
        raise SpecError(
            f"the statistics of {dataset} have no mean and deviation that {task.manifest.ref} could use: it needs volumes or "
            "images of one modality, not all alike; look at: diastole stats"
        )
    means, deviations = [group["mean"] for group in groups], [group["std"] for group in groups]
    return type(task)(task.manifest, options.frozen(Frozen(digest=wanted, mean=means, std=deviations)))


def _groups(groups: Sequence[dict[str, Any]], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """Those of the intensities that are meant: by channel, of one modality; none where it cannot be said."""
    meant = [g for g in groups if g["what"] == "intensity" and (not modalities or g["modality"] in modalities)]
    one = len({group["modality"] for group in meant}) == 1 and len({"channel" in group for group in meant}) == 1
    unsplit = all(group["site"] is None for group in meant)
    return sorted(meant, key=lambda group: group.get("channel", 0)) if one and unsplit else []
