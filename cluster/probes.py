"""Probes at work: processes like the workers of a job, that measure at the same time on this machine."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ..jobs.plan import Plan
from ..lake.errors import EnvironmentFailure, ModelError
from ..lake.layout import Lake
from ..workers.process import ENVIRONMENT


@dataclass(frozen=True)
class Probed:
    """What the probes of a plan found."""

    processes: int
    threads: int
    opened_s: float
    """Until the slowest had loaded the model, from the start of its process."""
    warm: list[dict[str, Any]]
    """Of each process what it took to get warm; see workers/probe.py."""
    measured: list[dict[str, Any]]
    """Of each process what it scored, with the seconds; see workers/probe.py."""

    @property
    def units(self) -> int:
        """Units that were measured."""
        return sum(piece["units"] for one in self.measured for piece in one["pieces"])

    @property
    def pace(self) -> list[float]:
        """Seconds of one process for each byte through the network, by piece."""
        return [seconds / max(piece["cost"], 1.0) for one in self.measured for piece, seconds in _taken(one["pieces"])]

    @property
    def seconds_per_byte(self) -> float:
        """Seconds of one process for a byte through the network, while the others are at work."""
        seconds = sum(one["pieces"][-1]["at_s"] for one in self.measured)
        return seconds / max(sum(piece["cost"] for one in self.measured for piece in one["pieces"]), 1.0)

    @property
    def units_per_second(self) -> float:
        """Of all processes together."""
        return sum(sum(p["units"] for p in one["pieces"]) / one["pieces"][-1]["at_s"] for one in self.measured)


def _taken(pieces: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Each piece with the seconds from the end of the one before it."""
    ends = [0.0, *(piece["at_s"] for piece in pieces)]
    return [(piece, end - begin) for piece, begin, end in zip(pieces, ends, ends[1:], strict=False)]


def probe(lake: Lake, plan: Plan, processes: int, threads: int, seconds: float) -> Probed:
    """Measure a plan with so many processes at once. Raises ModelError, EnvironmentFailure."""
    computed = plan.units.filter(pc.is_null(plan.units["refused_code"]))
    processes = max(1, min(processes, pc.count_distinct(computed["shard"]).as_py()))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diastole-probe-")))
        (folder / "plan.parquet").write_bytes(plan.to_bytes())
        begun = time.perf_counter()
        children = []
        for number in range(processes):
            (folder / str(number)).mkdir()
            arguments = [lake.store.root, folder / "plan.parquet", folder / str(number), threads, seconds, number]
            children.append(_start([str(one) for one in [*arguments, processes]]))
            stack.callback(_end, children[-1])
        for child in children:
            _line(child)
        opened = time.perf_counter() - begun
        warm = [_line(child) for child in children]
        for child in children:
            _tell(child)
        return Probed(processes, threads, opened, warm, [_line(child) for child in children])


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "diastole.workers.probe", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**ENVIRONMENT, **os.environ}
    )


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _tell(child: subprocess.Popen[str]) -> None:
    if child.stdin is not None:
        child.stdin.write("\n")
        child.stdin.flush()


def _line(child: subprocess.Popen[str]) -> dict[str, Any]:
    line = child.stdout.readline() if child.stdout is not None else ""
    if not line:
        code = child.wait()
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        raise EnvironmentFailure(
            f"a probe was ended {how}: too little memory for so many workers, or a network that dies"
        )
    said = dict(json.loads(line))
    if "error" in said:
        raise ModelError(said["error"])
    return said
