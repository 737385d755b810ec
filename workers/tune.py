"""Settings of a model's networks, measured in turns on its own batches: which is fastest within the tolerance."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import torch

from ..jobs.plan import Plan
from ..lake.errors import ModelError
from ..lake.layout import Lake
from .aside import aside
from .models.fast import LAYOUTS, NotAsSet
from .models.runtime import Networks
from .models.settings import Settings
from .record import Recording, Replay, Rows, deviation, record
from .worker import engine_of

ROUNDS = 3
GAIN = 1.05
"""A choice is faster than the baseline by this factor at least."""
WORTH = 1.02
"""A setting that gains less alone is not tried together with others."""
HOPELESS = 2.5
"""What is slower than the baseline by this factor is measured once."""
FEW = 2
"""Items that are recorded first."""
PASS_S = 1.5
"""Seconds of the network that a recording holds, where there are items enough."""
LONGEST_S = 6.0
"""Or at most."""
TURN_S = 0.2
"""A turn takes so long at least: short recordings are passed several times."""
RECORD_BYTES = 2**30
"""Inputs that a recording holds at about."""
DOUBLINGS = 3
"""Batches are made smaller and larger by 2 to the power of this at most."""


@dataclass
class Candidate:
    """Settings, and what was measured of them."""

    settings: Settings
    recording: Recording
    replay: Replay | None = None
    first_s: float | None = None
    """Seconds of the first pass; what is compiled is compiled then."""
    seconds: list[float] = field(default_factory=list)
    """Of the network for each item, by round."""
    gains: list[float] = field(default_factory=list)
    """Times as fast as the baseline, by round."""
    deviation: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    """Why it does not run here."""

    @property
    def gain(self) -> float:
        """Times as fast as the baseline, the median of all rounds; 0 where it does not run."""
        return median(self.gains) if self.gains and not self.note else 0.0

    def surely(self, base: "Candidate") -> float:
        """The gain, or that of the fastest rounds if that is less: what both say is no accident of a busy machine."""
        return min(self.gain, min(base.seconds) / min(self.seconds)) if self.gain else 0.0

    def within(self, tolerance: float) -> bool:
        """Whether it runs, and its outputs are those of the baseline."""
        return not self.note and self.deviation is not None and self.deviation <= tolerance

    def row(self, tolerance: float) -> dict[str, Any]:
        """As plain values."""
        return {
            "settings": str(self.settings),
            "runtime": self.settings.runtime(),
            "items_per_second": round(1 / median(self.seconds), 4) if self.seconds else None,
            "gain": round(self.gain, 3) if self.gains else None,
            "deviation": self.deviation,
            "within": self.within(tolerance),
            "first_s": None if self.first_s is None else round(self.first_s, 3),
            "peak_bytes": self.peak_bytes,
            "note": self.note,
        }


class Bench:
    """The candidates for a model on a device."""

    def __init__(self, lake: Lake, plan: Plan, threads: int, folder: Path, say: Callable[[str], None]) -> None:
        self._lake, self._threads, self._say = lake, threads, say
        self._engine = engine_of(aside(lake, folder), replace(plan, runtime={"lanes": 1}), threads)
        self.tolerance = self._engine.task.manifest.tolerance
        self.candidates: list[Candidate] = []
        """All that were measured, the baseline first."""
        self._plain = self._replay(Settings())
        self._reference: Rows = {}

    def choose(self, units: pa.Table, items: int | None) -> Candidate:
        """Measure each setting alone, then the best ones together. The fastest within the tolerance, or the baseline.

        `units` are those of a plan that meet the contract; `items` is how many of them are recorded, by default as many
        as keep the network busy for a while.
        """
        sample, recording = self._record(units, items)
        base = Candidate(Settings(), recording)
        self._measure([base])
        if base.note:
            raise ModelError(f"the model cannot be tuned, since it does not run as it is: {base.note}")
        alone = [Candidate(settings, recording) for settings in self._settings(recording)]
        alone += [Candidate(Settings(batch=one.limit), one) for one in self._batches(sample, recording)]
        self._measure([base, *alone])
        best = [one for one in alone if one.within(self.tolerance) and one.surely(base) > WORTH]
        best.sort(key=lambda one: -one.surely(base))
        together = _together(best)
        if together:
            self._measure([base, best[0], *together])
        fastest = max(self.candidates, key=lambda one: one.surely(base) if one.within(self.tolerance) else 0.0)
        return fastest if fastest.surely(base) >= GAIN else base

    def _record(self, units: pa.Table, items: int | None) -> tuple[pa.Table, Recording]:
        """Batches of units that are spread over the costs, and those units."""
        limit, count = self._engine.plan.batch, min(items or FEW, units.num_rows)
        record(self._engine, _spread(units, 1), limit)  # libraries are loaded as the first one passes
        while True:
            sample = _spread(units, count)
            recording = record(self._engine, sample, limit)
            if not recording.batches:
                raise ModelError("none of the items that were tried reaches the network; see what a run says of them")
            seconds = self._plain.seconds(recording)
            missing = max(PASS_S / max(seconds, 1e-6), 2 * self._plain.networks.lanes / len(recording.batches))
            room = min(RECORD_BYTES / max(recording.nbytes, 1), LONGEST_S / max(seconds, 1e-6))
            if items or missing <= 1 or room < 2 or count == units.num_rows:
                break
            count = min(units.num_rows, int(count * min(8.0, 1.2 * missing, room)) + 1)
        self._say(f"recorded {len(recording.batches)} batches of {recording.units} items")
        return sample, recording

    def _settings(self, recording: Recording) -> list[Settings]:
        """What there is to try of a network of this kind on this device."""
        kind, device = self._engine.task.manifest.runtime, self._engine.networks.device.type
        most = self._plain.networks.lanes
        lanes: list[dict[str, Any]] = [
            {"lanes": n} for n in ((1, 2) if device == "cpu" else (1, 4)) if n < most or n > 2
        ]
        if kind == "onnx":
            said: list[dict[str, Any]] = [{"spin": False}, {"execution": "parallel"}, {"optimise": "extended"}]
            return [Settings.of(one) for one in said + lanes]
        spatial = any(x.ndim in LAYOUTS for batch in recording.batches for x in batch.inputs.values())
        said = [{"channels_last": True}] if spatial else []
        said += [{"freeze": True}] if kind == "torchscript" else [{"compile": True}]
        said += [{"precision": "bf16"}] + ([{"precision": "fp16"}] if device == "cuda" else [])
        return [Settings.of(one) for one in said + lanes]

    def _batches(self, sample: pa.Table, recording: Recording) -> Iterator[Recording]:
        """The same units in smaller and in larger batches, until there is no more to put together, or no memory for it."""
        for limit in [recording.limit // 2**n for n in range(1, DOUBLINGS) if recording.limit >= 2**n]:
            found = record(self._engine, sample, limit)
            if len(found.batches) > len(recording.batches):
                yield found
        count = len(recording.batches)
        for limit in [recording.limit * 2**n for n in range(1, DOUBLINGS + 1)]:
            before, free = _peak(self._engine.networks, reset=True), _free()
            found = record(self._engine, sample, limit)
            if found.failed:
                self._say(f"batches of {limit} do not fit the memory")
            if found.failed or len(found.batches) >= count or len(found.batches) < self._plain.networks.lanes:
                return
            count = len(found.batches)
            yield found
            if free is not None and 3 * (_peak(self._engine.networks) - before) > free:
                self._say(f"larger batches than {limit} might not fit the memory")
                return

    def _measure(self, candidates: Sequence[Candidate]) -> None:
        """All in turns, the first of them the baseline."""
        for one in candidates:
            if one not in self.candidates:
                self._say(f"first pass: {one.settings}")
                self.candidates.append(one)
                self._open(one)
        base = candidates[0]
        for turn in range(ROUNDS):
            self._say(f"turn {turn + 1} of {ROUNDS}")
            for one in candidates:
                if one.replay is None or one.note or (one.gains and one.gain < 1 / HOPELESS):
                    continue
                seconds, passes = 0.0, 0
                while seconds < TURN_S:
                    seconds, passes = seconds + one.replay.seconds(one.recording), passes + 1
                one.seconds.append(seconds / passes / one.recording.units)
                one.gains.append(base.seconds[-1] / one.seconds[-1])

    def _open(self, one: Candidate) -> None:
        """Load the networks with these settings, and take the recording through them once."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", NotAsSet)
            try:
                one.replay = self._replay(one.settings)
                networks = one.replay.networks
                before, begun = _peak(networks, reset=True), time.perf_counter()
                one.replay.seconds(one.recording)
                one.first_s, one.peak_bytes = time.perf_counter() - begun, _peak(networks) - before
                for rows in one.replay.outputs(one.recording):
                    self._compare(one, rows)
            except Exception as error:  # noqa: BLE001 - whatever a setting fails with, the others go on
                one.note = " ".join(str(error).split())[:200] or type(error).__name__
        one.note = next((str(w.message) for w in said if w.category is NotAsSet), one.note)

    def _replay(self, settings: Settings) -> Replay:
        engine = self._engine
        manifest, task, device = engine.task.manifest, engine.task, engine.plan.device
        return Replay(Networks(self._lake, manifest, task, device, self._threads, settings.runtime()))

    def _compare(self, one: Candidate, rows: Rows) -> None:
        if one is self.candidates[0]:
            self._reference.update(rows)
        apart = deviation(self._reference, rows)
        if apart is not None:
            one.deviation = max(one.deviation or 0.0, apart)


def _spread(units: pa.Table, count: int) -> pa.Table:
    """So many units, from the cheapest to the dearest, in that order: as they come in shards."""
    ordered = units.sort_by("cost")
    return ordered.take(pa.array([n * ordered.num_rows // count for n in range(min(count, ordered.num_rows))]))


def _together(best: Sequence[Candidate]) -> list[Candidate]:
    """The best with the second best, then with the third, …; of two values of a setting the better one."""
    combined: list[Candidate] = []
    runtime = dict(best[0].settings.runtime()) if best else {}
    recording = best[0].recording if best else None
    for one in best[1:]:
        more = {**one.settings.runtime(), **runtime}
        if recording is None or more == runtime:
            continue
        recording = one.recording if "batch" in one.settings.runtime() and "batch" not in runtime else recording
        runtime = more
        combined.append(Candidate(Settings.of(runtime), recording))
    return combined


def _peak(networks: Networks, *, reset: bool = False) -> int:
    """Most bytes that this process, or on a GPU that torch, held since the last reset. After a reset: those held now."""
    if networks.device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(networks.device)
        return int(torch.cuda.max_memory_allocated(networks.device))
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return _kilobytes(Path("/proc/self/status"), "VmHWM") * 1024
    return 0


def _free() -> int | None:
    """Bytes of memory that are free on this machine; None where that is not known."""
    with contextlib.suppress(OSError):
        return _kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024
    return None


def _kilobytes(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name}:")), 0)
