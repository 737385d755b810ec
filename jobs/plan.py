"""A plan: job × lake, frozen. Which units, why each, in which shards, at what cost."""

import gc
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..lake import delta
from ..lake.errors import LakeError, SpecError
from ..lake.ids import digest
from ..lake.layout import Lake
from ..lake.models import Manifest
from .contract import refuse, refuse_use
from .select import Candidate, candidates, suppressed
from .spec import Job
from .task import Task

INPUT = pa.struct([(n, pa.string()) for n in ("role", "item_id", "content_digest", "array")] + [("row", pa.int64())])
UNITS = pa.schema(
    [
        pa.field("unit", pa.int64()),
        pa.field("shard", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("subject_id", pa.string()),
        pa.field("inputs", pa.list_(INPUT)),
        pa.field("input_digest", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("attempt", pa.int64()),
        pa.field("refused_code", pa.string()),
        pa.field("refused", pa.string()),
        pa.field("cost", pa.float64()),
    ]
)

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
        return dict(Counter(self.units["shard"].to_pylist()))

    @property
    def reasons(self) -> dict[str, int]:
        """Planned units by reason."""
        return dict(Counter(self.units["reason"].to_pylist()))

    @property
    def refusals(self) -> dict[str, int]:
        """Planned units that do not meet the contract, by code: they get a failed row without any compute."""
        return dict(Counter(code for code in self.units["refused_code"].to_pylist() if code))

    @property
    def cost(self) -> float:
        """Bytes of what goes through the network."""
        return float(sum(self.units["cost"].to_pylist()))

    def to_bytes(self) -> bytes:
        """The plan as Parquet, its header in the metadata."""
        table = self.units.replace_schema_metadata({"diastole": json.dumps(self.header())})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        """Read a plan back."""
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        header = json.loads(table.schema.metadata[b"diastole"])
        return cls(**{"runtime": {}, **header}, units=table.replace_schema_metadata())


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


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A plan makes millions of small objects, none in a cycle: looking at them again and again took half of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_collector_paused()
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
    a use that the model's licence does not permit.
    """
    _check_use(job, manifest)
    runtime = dict(runtime or {})
    spec, model = spec_digest(task, runtime.get("precision", "fp32")), manifest.model_digest
    group = digest([model, spec])[:8]
    table = delta.open_table(lake, lake.predictions(job.output))
    found = candidates(lake, {role: job.inputs[role] for role in manifest.inputs}, only)
    skipped: Counter[str] = Counter(found.unpaired)
    withdrawn = suppressed(lake)
    units: list[dict[str, Any]] = []
    seen = _results_so_far(table, found.units, model, spec)
    for candidate in found.units:
        reason, attempt = _reason(seen.get(candidate.item_id), candidate, retry=retry)
        if candidate.subject_id in withdrawn:
            skipped["withdrawn"] += 1
        elif attempt == 0:
            skipped[reason] += 1
        elif limit is not None and len(units) >= limit:
            skipped["beyond the limit"] += 1
        else:
            units.append(_unit(candidate, reason, attempt, job, manifest, task))
    _cut(units)
    plan = Plan(
        job=job.model_dump(mode="json"),
        model=manifest.ref,
        model_digest=model,
        spec_digest=spec,
        key_group=group,
        task=task.name,
        task_version=task.version,
        options=task.options.model_dump(mode="json"),
        output=job.output,
        table_version=-1 if table is None else table.version(),
        device=device,
        batch=job.resources.batch or runtime.get("batch") or manifest.batch,
        runtime=runtime,
        units=pa.Table.from_pylist(units, UNITS),
        skipped=dict(sorted(skipped.items())),
        wanted=pa.table(
            {"item_id": [u.item_id for u in found.units], "input_digest": [u.input_digest for u in found.units]},
            schema=pa.schema([("item_id", pa.string()), ("input_digest", pa.string())]),
        ),
    )
    identity = [plan.header(), *([u[name] for u in units] for name in ("item_id", "input_digest", "attempt", "shard"))]
    return Plan(**{**plan.__dict__, "run_id": digest(identity)})


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


def _unit(candidate: Candidate, reason: str, attempt: int, job: Job, manifest: Manifest, task: Task) -> dict[str, Any]:
    refusal = None
    for item in candidate.items.values():
        refusal = refusal or refuse_use(item, job.purpose)
    for role, contract in manifest.inputs.items():
        refusal = refusal or refuse(contract, candidate.items[role])
    refusal = refusal or task.refuse(candidate.items)
    code, text = refusal or (None, None)
    return {
        "unit": 0,
        "shard": "",
        "item_id": candidate.item_id,
        "subject_id": candidate.subject_id,
        "inputs": [
            {"role": role, **{n: item[n] for n in ("item_id", "content_digest", "array", "row")}}
            for role, item in candidate.items.items()
        ],
        "input_digest": candidate.input_digest,
        "reason": reason,
        "attempt": attempt,
        "refused_code": code,
        "refused": text,
        "cost": 0.0 if refusal else task.cost(candidate.items),
    }


def _results_so_far(table: Any, units: Sequence[Candidate], model: str, spec: str) -> dict[str, Mapping[str, Any]]:
    """What the output has of each item: under this very key, and under others."""
    if table is None or not units:
        return {}
    import duckdb

    wanted = pa.table(  # noqa: F841 - duckdb finds it by name
        {"item_id": [u.item_id for u in units], "wanted": [u.input_digest for u in units]}
    )
    done = table.to_pyarrow_dataset()  # noqa: F841 - duckdb finds it by name
    rows = duckdb.execute(
        """
        select item_id,
          bool_or(k and status = 'scored') as scored,
          max(case when k and status = 'failed' then attempt end) as failed,
          bool_or(model_digest = $model and spec_digest = $spec and input_digest <> wanted) as other_input,
          bool_or(model_digest <> $model and input_digest = wanted) as other_model,
          bool_or(model_digest = $model and spec_digest <> $spec and input_digest = wanted) as other_spec
        from (
          select *, input_digest = wanted and model_digest = $model and spec_digest = $spec as k
          from (select item_id, input_digest, model_digest, spec_digest, status, attempt from done where level = 'item')
          join wanted using (item_id))
        group by item_id
        """,
        {"model": model, "spec": spec},
    )
    names = [column[0] for column in rows.description]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows.fetchall()}


def _reason(seen: Mapping[str, Any] | None, candidate: Candidate, *, retry: bool) -> tuple[str, int]:
    """(reason, attempt) of a unit; attempt 0 is not to be planned."""
    del candidate
    if seen is None:
        return "new", 1
    if seen["scored"]:
        return "already scored", 0
    if seen["failed"] is not None:
        return ("retry", int(seen["failed"]) + 1) if retry else ("failed before (--retry scores it again)", 0)
    if seen["other_input"]:
        return "changed", 1
    if seen["other_model"]:
        return "model changed", 1
    return ("parameters changed", 1) if seen["other_spec"] else ("changed", 1)


def _cut(units: list[dict[str, Any]]) -> None:
    """Cut units into shards of about equal cost.

    They are taken in the order of storage, some shards' worth at a time; within those, units of like cost come together,
    so that a batch pads little. So a shard reads from few packs, and each pack is read by few shards.
    """
    total = sum(u["cost"] for u in units)
    target = min(max(total / SHARDS, SHARD_COST[0]), SHARD_COST[1])
    units.sort(key=lambda u: (u["inputs"][0]["array"], u["inputs"][0]["row"] or 0, u["item_id"]))
    blocks = [reached // (NEIGHBOURS * target) for reached in accumulate(u["cost"] for u in units)]
    order = sorted(range(len(units)), key=lambda n: (blocks[n], units[n]["cost"], n))
    units[:] = [units[n] for n in order]
    shard, cost, count = 0, 0.0, 0
    for number, unit in enumerate(units):
        if count and (cost + unit["cost"] / 2 > target or count >= SHARD_UNITS):
            shard, cost, count = shard + 1, 0.0, 0
        unit["unit"], unit["shard"] = number, f"{shard:05d}"
        cost, count = cost + unit["cost"], count + 1


def check_not_empty(plan: Plan, lake: Lake) -> None:
    """Raise LakeError where nothing at all was selected: neither planned nor skipped."""
    if plan.units.num_rows == 0 and not plan.skipped:
        names = ", ".join(s["dataset"] for s in plan.job["inputs"].values())
        raise LakeError(f"the job selects no item of {names} in {lake.store.root}; check its `where`, or ingest first")
