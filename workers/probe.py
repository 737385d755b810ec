"""A probe: some shards of a plan through the real engine, in a process as a worker would be, without a trace in the lake.

`python -m diastole.workers.probe` loads the model, says so in a line of JSON, scores a few units to get warm, says what
that took, and waits for a line on standard input, so that several can measure at once, as workers do. Then it scores
shards for some seconds, publishes them in a folder of its own, and says in a third line what that took.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from diastole.jobs.commit import commit
from diastole.jobs.ledger import Ledger, Shard
from diastole.jobs.plan import Plan
from diastole.jobs.receipts import Receipt
from diastole.lake import predictions
from diastole.lake.errors import DiastoleError
from diastole.lake.layout import Lake

from .aside import aside
from .worker import engine_of

if TYPE_CHECKING:
    from .engine import Engine

AHEAD = 2
"""Shards that a worker has at once: the one that it computes, and the one that it reads."""
PIECES = 4
"""Into so many pieces the time is cut at least, so that probes that measure at once end together."""
WARM_S = 0.3
"""Seconds that the last units take that are scored to get warm."""
GOLDEN = 0.6180339887


def main(arguments: Sequence[str]) -> int:
    """`lake plan.parquet folder threads seconds number of`: the probe `number` of `of` that measure at once."""
    for name in ("deltalake", "duckdb"):  # which publishing needs; a driver has them from planning
        importlib.import_module(name)
    root, plan_file, folder, threads, seconds, number, of = arguments
    plan = Plan.from_bytes(Path(plan_file).read_bytes())
    try:
        engine = engine_of(aside(Lake.open(root), Path(folder)), plan, int(threads))
        _say({"opened": True})
        shards = spread(plan)[int(number) :: int(of)]
        first = warm(engine, shards)
        _say(first)
        sys.stdin.readline()
        _say(measure(engine, shards, float(seconds), first["cost"] / first["seconds"]))
    except DiastoleError as error:
        _say({"error": str(error)})
        return 1
    return 0


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def spread(plan: Plan) -> list[pa.Table]:
    """The units of each shard that go through the network, in an order whose every beginning is spread over the plan."""
    units = plan.units.filter(pc.is_null(plan.units["refused_code"]))
    names = units["shard"].to_numpy(zero_copy_only=False)
    starts = [n for n in range(len(names)) if n == 0 or names[n] != names[n - 1]]
    tables = [units.slice(a, b - a) for a, b in zip(starts, [*starts[1:], len(names)], strict=True)]
    return [tables[n] for n in sorted(range(len(tables)), key=lambda n: (n * GOLDEN) % 1.0)]


def cost_of(units: pa.Table) -> float:
    """Bytes through the network."""
    return float(pc.sum(units["cost"]).as_py() or 0.0)


def warm(engine: "Engine", shards: Sequence[pa.Table]) -> dict[str, Any]:
    """Score more and more units until they take a while: by then libraries are loaded and networks compiled.

    Seconds and bytes of all of them and of the last ones, and what it took to publish those.
    """
    total, passed, count, number = 0.0, 0.0, 1, 0
    while True:
        units = shards[0].slice(0, min(count, shards[0].num_rows))
        *_, (_, seconds) = score(engine, [units], f"warm{number}")
        total, passed = total + seconds, passed + cost_of(units)
        if (seconds > WARM_S and number) or count >= shards[0].num_rows:
            break
        count, number = count * 4, number + 1
    return {"units": units.num_rows, "cost": cost_of(units), "seconds": seconds} | {
        "all_cost": passed,
        "all_s": total,
        "published_s": publish(engine, [units], f"warm{number}"),
    }


def measure(engine: "Engine", shards: Sequence[pa.Table], seconds: float, pace: float) -> dict[str, Any]:
    """Score shards, or pieces of long ones, until the time is over. What each took, CPU seconds and peak memory of all."""
    given: list[pa.Table] = []
    done: list[dict[str, Any]] = []
    began, before = time.perf_counter(), _cpu_seconds()

    def until() -> Iterator[pa.Table]:
        for units in shards:
            passed = time.perf_counter() - began
            if given and passed > seconds:
                return
            best = max(pace, sum(one["cost"] for one in done) / max(passed, 1e-3))
            given.append(_middle(units, best * seconds / PIECES))
            yield given[-1]

    for receipt, at in score(engine, until(), "measured"):
        units = given[len(done)]
        done.append({"units": units.num_rows, "cost": cost_of(units), "at_s": at, **(receipt.seconds or {})})
    return {
        "pieces": done,
        "cpu_s": _cpu_seconds() - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "published_s": publish(engine, given, "measured"),
    }


def _middle(units: pa.Table, most: float) -> pa.Table:
    """A shard, or if it costs more than `most`, its middle."""
    count = max(1, min(units.num_rows, int(most * units.num_rows / max(cost_of(units), 1.0))))
    return units.slice((units.num_rows - count) // 2, count)


def score(engine: "Engine", pieces: Iterable[pa.Table], run_id: str) -> Iterator[tuple[Receipt, float]]:
    """Score units as the shards of a run. Each receipt, with the seconds since the begin."""
    engine.plan = replace(engine.plan, run_id=run_id)
    received, over = 0, False

    def handed() -> Iterator[Shard]:
        for number, units in enumerate(pieces):
            while number - received >= AHEAD and not over:
                time.sleep(0.002)
            yield Shard(f"{number:05d}", units, "probe", in_process=True)

    def end() -> None:
        nonlocal over
        over = True

    begun = time.perf_counter()
    for receipt in engine.work(handed(), end):
        received += 1
        yield receipt, time.perf_counter() - begun


def publish(engine: "Engine", pieces: Sequence[pa.Table], run_id: str) -> float:
    """Publish what was scored, as a driver does at the end of a run, in the probe's own folder. Seconds."""
    lake, task, place = engine.lake, engine.task, engine.plan.units.schema.get_field_index("shard")
    named = [
        units.set_column(place, "shard", pa.array([f"{number:05d}"] * units.num_rows, pa.string()))
        for number, units in enumerate(pieces)
    ]
    plan = replace(engine.plan, run_id=run_id, units=pa.concat_tables(named), table_version=-1)
    schema = predictions.table_schema(task.item_columns, task.row_columns)
    begun = time.perf_counter()
    commit(lake, plan, Ledger(lake, plan, in_process=True), schema)
    wanted = plan.units.select(["item_id", "input_digest"])
    predictions.refresh_current(lake, plan.output, plan.model_digest, plan.spec_digest, wanted)
    return time.perf_counter() - begun


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
