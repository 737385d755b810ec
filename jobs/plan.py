"""A plan: job × lake, frozen. Which units, why each, in which shards, at what cost."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..lake import delta, predictions
from ..lake.database import database
from ..lake.errors import EnvironmentFailure, LakeError, SpecError
from ..lake.ids import digest
from ..lake.layout import Lake
from ..lake.models import Manifest
from ..lake.plain_json import from_json
from ..lake.suppressed import Suppressed
from .admit import Answer, Items
from .contract import Refusal, refuse, refuse_use
from .cut import Cut, cut
from .normalise import with_statistics
from .reasons import sort_out
from .select import Key, select
from .spec import Job
from .task import Task
from .units import UNITS, arrange

__all__ = ["UNITS", "Plan", "check_not_empty", "holds", "make_plan", "spec_digest"]

SHARDS = 16
"""Shards that a small job is cut into, so that a few workers end together."""
SHARD_COST = (64 * 2**10, 512 * 2**20)
"""Bytes through the network for one shard, at least and at most, but for a unit that is larger."""
NEIGHBOURS = 16
"""Shards' worth of units that are sorted by cost together."""
SHARD_UNITS = 4096
"""Units in one shard at most."""


@dataclass(frozen=True)
class Plan:
    """What a run will do: a function of the job, the lake and, with `device: auto`, of whether there is a GPU."""

    job: dict[str, Any]
    model: str
    model_digest: str
    spec_digest: str
    key_group: str
    task: str
    task_version: int
    options: dict[str, Any]
    output: str
    table_version: int
    """Version of the output's table that was planned against; -1 where there was none."""
    device: str
    batch: int
    runtime: dict[str, Any]
    """How the networks run, as `diastole tune` chose it for all workers of the run; empty: as they are."""
    units: pa.Table = field(repr=False, compare=False)
    skipped: dict[str, int] = field(compare=False)
    """Units that are not planned, by reason."""
    run_id: str = ""
    wanted: pa.Table | None = field(default=None, repr=False, compare=False)
    """item_id and input_digest of all that the job means, scored already or not; not kept with the run."""

    def header(self) -> dict[str, Any]:
        """All but the units, as JSON-like values."""
        values = asdict(self.__class__(**{**self.__dict__, "units": None, "wanted": None}))
        del values["units"], values["wanted"]
        return values

    @property
    def shards(self) -> dict[str, int]:
        """Units by shard."""
        return _counts(self.units["shard"])

    @property
    def reasons(self) -> dict[str, int]:
        """Planned units by reason."""
        return _counts(self.units["reason"])

    @property
    def refusals(self) -> dict[str, int]:
        """Planned units that do not meet the contract, by code: they get a failed row without any compute."""
        return _counts(self.units["refused_code"].drop_null())

    @property
    def cost(self) -> float:
        """Bytes of what goes through the network."""
        return float(pc.sum(self.units["cost"], min_count=0).as_py())

    def to_bytes(self) -> bytes:
        """The plan as Parquet, its header in the metadata."""
        table = self.units.replace_schema_metadata({"diastole": json.dumps(self.header())})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, units: bool = True) -> "Plan":
        """Read a plan back."""
        return cls.from_file(pa.BufferReader(data), units=units)

    @classmethod
    def from_file(cls, file: Any, *, units: bool = True) -> "Plan":
        """Read a plan back from a file, or all but its units: then only the file's end is read. Raises ValueError where it
        is none, EnvironmentFailure where there is too little memory for it.
        """
        try:
            found = pq.ParquetFile(file, page_checksum_verification=True)
            header = {"runtime": {}, **from_json(found.schema_arrow.metadata[b"diastole"])}
            table = found.read().replace_schema_metadata() if units else UNITS.empty_table()
            plan = cls(**header, units=table)
        except MemoryError as error:
            raise EnvironmentFailure(
                "a plan does not fit the memory, or is damaged; run on a larger machine"
            ) from error
        except (ArithmeticError, LookupError, TypeError, NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # storage failed
            raise ValueError("a plan cannot be read") from error
        kinds = {f.name: getattr(f.type, "__origin__", f.type) for f in fields(cls)}
        if table.schema != UNITS or any(type(value) is not kinds[name] for name, value in header.items()):
            raise ValueError("a plan has other fields than plans have")
        return plan


def holds(plan: Plan, gone: Suppressed) -> pa.Array:
    """Which units are of withdrawn subjects: by the subject that was planned, or by any input. (units,) bool."""
    theirs = pc.is_in(plan.units["subject_id"], pa.array(sorted(gone.subjects), pa.string())).combine_chunks()
    if not gone.items and not gone.arrays:
        return theirs
    named = {"item_id": pa.array(sorted(gone.items), pa.string()), "array": pa.array(sorted(gone.arrays), pa.string())}
    mask, at = theirs.to_numpy(zero_copy_only=False).copy(), 0
    for chunk in plan.units["inputs"].chunks:
        inputs, parents = pc.list_flatten(chunk), pc.list_parent_indices(chunk)
        for name, values in named.items():
            mask[at + parents.filter(pc.is_in(inputs.field(name), values)).to_numpy()] = True
        at += len(chunk)
    return pa.array(mask)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column)
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def spec_digest(task: Task, precision: str = "fp32") -> str:
    """Digest of what changes a result beside input and model: the task, its version, its parameters, the precision.

    What else the runtime is set to keeps within the package's tolerance, like threads and the batch, and is not in it.
    """
    return digest(
        {
            "task": task.name,
            "version": task.version,
            "options": task.options.model_dump(mode="json"),
            "precision": precision,
        }
    )


def make_plan(
    lake: Lake,
    job: Job,
    manifest: Manifest,
    task: Task,
    *,
    device: str = "cpu",
    limit: int | None = None,
    only: Sequence[str] = (),
    retry: bool = False,
    runtime: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a job. `limit` takes the first so many units, `only` these item ids, `retry` also what failed before.

    Raises UserError where the job cannot be meant: no such dataset, a condition that is not SQL, an empty selection,
    a use that the model's licence does not permit, statistics that are not there.
    """
    _check_use(job, manifest)
    task = with_statistics(lake, job, task)
    runtime = dict(runtime or {})
    spec, model = spec_digest(task, runtime.get("precision", "fp32")), manifest.model_digest
    key = Key(predictions.key_group(model, spec), model, spec)
    table = delta.open_table(lake, lake.predictions(job.output))

    def answer(items: Items) -> Answer:
        refusal = _refusal(items, job, manifest, task)
        return refusal, 0.0 if refusal else task.cost(items)

    with database() as opened:
        opened.register("done", predictions.item_rows(table))
        opened.register("own", predictions.item_rows(table, key.group))
        selected = select(opened, lake, {role: job.inputs[role] for role in manifest.inputs}, only, key)
        left = sort_out(opened, selected, key, retry=retry, limit=limit)
        planned = selected.open.num_rows > left.total()
        units = arrange(opened, list(manifest.inputs), answer, _cut) if planned else UNITS.empty_table()
    plan = Plan(
        job=job.model_dump(mode="json"),
        model=manifest.ref,
        model_digest=model,
        spec_digest=spec,
        key_group=key.group,
        task=task.name,
        task_version=task.version,
        options=task.options.model_dump(mode="json"),
        output=job.output,
        table_version=-1 if table is None else table.version(),
        device=device,
        batch=job.resources.batch or runtime.get("batch") or manifest.batch,
        runtime=runtime,
        units=units,
        skipped=dict(sorted((selected.skipped + left).items())),
        wanted=selected.wanted,
    )
    identity = [
        plan.header(),
        *(_column_digest(units[name]) for name in ("item_id", "input_digest", "attempt", "shard")),
    ]
    return replace(plan, run_id=digest(identity))


def _check_use(job: Job, manifest: Manifest) -> None:
    if manifest.permitted_use and job.purpose != manifest.permitted_use:
        raise SpecError(
            f"{manifest.ref} ({manifest.licence}) may be used for {manifest.permitted_use} only; "
            f"if that is what this job is, say so in it: purpose: {manifest.permitted_use}"
        )
    if set(job.inputs) != set(manifest.inputs):
        raise SpecError(
            f"{manifest.ref} takes the roles {', '.join(manifest.inputs)}, the job names {', '.join(job.inputs)}"
        )


def _refusal(items: Items, job: Job, manifest: Manifest, task: Task) -> Refusal | None:
    """Why a unit cannot be scored, told before any compute, or None."""
    for item in items.values():
        if found := refuse_use(item, job.purpose):
            return found
    for role, contract in manifest.inputs.items():
        if found := refuse(contract, items[role]):
            return found
    return task.refuse(items)


def _cut(costs: NDArray[np.float64]) -> Cut:
    """Shards so large that a small job has enough of them, and a large one not too many."""
    target = min(max(float(costs.sum()) / SHARDS, SHARD_COST[0]), SHARD_COST[1])
    return cut(costs, target, NEIGHBOURS, SHARD_UNITS)


def _column_digest(column: pa.ChunkedArray) -> str:
    """Digest of a column of integers or strings without nulls, the same however it is cut into chunks."""
    values, lengths = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        if pa.types.is_integer(chunk.type):
            values.update(chunk.to_numpy().astype("<i8").tobytes())
            continue
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths.update(np.diff(offsets).astype("<i4").tobytes())
        values.update(memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]] if len(chunk) else b"")
    return values.hexdigest() + lengths.hexdigest()


def check_not_empty(plan: Plan, lake: Lake) -> None:
    """Raise LakeError where nothing at all was selected: neither planned nor skipped."""
    if plan.units.num_rows == 0 and not plan.skipped:
        names = ", ".join(s["dataset"] for s in plan.job["inputs"].values())
        raise LakeError(f"the job selects no item of {names} in {lake.store.root}; check its `where`, or ingest first")
