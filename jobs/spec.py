"""A job file: which items, which model, which task, where to. Checked before anything runs."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..lake.errors import SpecError
from ..lake.ids import digest
from ..lake.models import first_problem
from ..lake.plain_yaml import YAML_BYTES, from_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Selection(_Strict):
    """Items of one dataset."""

    dataset: str
    """Name of the dataset."""
    where: str | None = None
    """SQL condition over the columns of `items`, as in: modality = 'MR' and site = 'A'."""


class Resources(_Strict):
    """What the run may use. None of it changes a result beyond the model's stated tolerance."""

    workers: int = Field(default=2, ge=0)
    """Worker processes on Ray; 0: all in this process."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of each worker for the network; by default the cores divided by the workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    gpus_per_worker: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that each worker on Ray takes: with 0.5, two of them compute on one. It means nothing on a CPU."""
    batch: int | None = Field(default=None, ge=1)
    """Windows in one batch; by default what the model package says."""
    memory_gb: float = Field(default=2.0, gt=0)
    """Bound of what one worker reads ahead and holds in unfinished units, in GB; one unit may always enter."""
    worker_memory_gb: float | None = Field(default=None, gt=0)
    """What the process of a worker may take in all, in GB; what would be more is out of memory for its batch, and no reason
    for the system to kill a worker. By default, for workers on Ray that compute on a CPU, their share of 90 % of the
    machine's memory, and at least 4 GB; else no bound."""
    deadline_s: float | None = Field(default=None, gt=0)
    """Seconds after which a worker that does not get on (reads, computes and writes nothing) is ended and its shard is
    done again; by default 20 times what a shard of that cost takes in this run, at least 300 and at most 1800; in one
    process, 1800."""
    max_failed: float = Field(default=0.5, ge=0, le=1)
    """Share of the units tried that may fail; where more do, the run stops and publishes nothing."""
    max_failed_after: int = Field(default=50, ge=1)
    """Units that must have been tried before that share counts."""
    attempts: int = Field(default=3, ge=1)
    """How often a shard may die before it is split, and an item alone before it is quarantined."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """What one worker costs in an hour, so that an estimate gives the price of the run."""
    currency: str = ""
    """In what that price is."""


class Job(_Strict):
    """A job: items × model × task → one output table."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Name of the job; runs of the same name are runs of the same job."""
    inputs: dict[str, Selection]
    """By role; one role for most models. Items of several roles are joined by subject and session."""
    model: str
    """`name` or `name@version` of a model package in the lake."""
    output: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Name of the table that the predictions go into."""
    task: str | None = None
    """Name of the task; by default the one that the model package names."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the task, over those of the model package."""
    purpose: str | None = None
    """What the results are for; models with a limited permitted use need it to be named."""
    resources: Resources = Resources()
    """What the run may use."""

    def with_workers(self, workers: int | None) -> "Job":
        """The same job on so many workers; None: as it says."""
        if workers is None:
            return self
        return self.model_copy(update={"resources": self.resources.model_copy(update={"workers": workers})})

    @property
    def job_digest(self) -> str:
        """Digest of all that is meant by the job, without its resources."""
        return digest(self.model_dump(mode="json", exclude={"resources"}))


def load_job(path: Path) -> Job:
    """Read a job file. Raises SpecError with the first thing that is wrong, in one line."""
    try:
        with path.open("rb") as file:
            value = from_yaml(file.read(YAML_BYTES + 1))
    except FileNotFoundError:
        raise SpecError(f"there is no job file {path}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}; name a job file") from None
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise SpecError(f"{path}: a job file is a mapping; see examples/ or diastole schema")
    return parse_job(value, str(path))


def parse_job(value: dict[str, Any], where: str = "job") -> Job:
    """A job from plain values. `dataset:` and `where:` at the top stand for one role called `input`."""
    value = dict(value)
    if "dataset" in value and "inputs" not in value:
        value["inputs"] = {"input": {"dataset": value.pop("dataset"), "where": value.pop("where", None)}}
    try:
        return Job.model_validate(value)
    except ValidationError as error:
        known = ", ".join(["dataset", "where", *Job.model_fields])
        hint = f"; known keys: {known}" if "extra_forbidden" in str(error) else ""
        raise SpecError(f"{where}: {first_problem(error)}{hint}") from None


def job_schema() -> dict[str, Any]:
    """JSON Schema of a job file, for editors."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    selection = schema["$defs"]["Selection"]["properties"]
    schema["properties"] |= {"dataset": selection["dataset"], "where": selection["where"]}
    schema["required"].remove("inputs")
    schema["anyOf"] = [{"required": ["inputs"]}, {"required": ["dataset"]}]
    return dict(json.loads(json.dumps(schema)))
