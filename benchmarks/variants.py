"""Who takes part: how each is called, and with which settings."""

import json
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cohorts import DATASET, MODEL

from diastole.workers.process import ENVIRONMENT

HERE = Path(__file__).parent
PEERS = HERE / "peers"
DAFT = Path(sys.prefix) / "daft"
"""Where `make bench` puts Daft with the pyarrow that it wants, which is older than ours."""
RAISED = ENVIRONMENT
"""Settings of the allocator and of OpenMP that diastole gives itself, for those that cannot know of them."""
TUNED = HERE / "tuned.json"
"""Settings of the peers by workload, as tune.py found them."""
CEILINGS = {
    "ceiling-1x2": ("the network alone, 1 process × 2 threads", (1, 1, 2), False),
    "ceiling-1x2-raised": ("the network alone, 1 process × 2 threads", (1, 1, 2), True),
    "ceiling-lanes-raised": ("the network alone, 1 process, 2 batches side by side", (1, 2, 1), True),
    "ceiling-2x1": ("the network alone, 2 processes × 1 thread", (2, 1, 1), False),
    "ceiling-2x1-raised": ("the network alone, 2 processes × 1 thread", (2, 1, 1), True),
}
"""Processes, batches side by side in each, threads of each."""
DIASTOLE = {
    "here": ("diastole, one process × 2 threads", {"workers": 0, "threads": 2}),
    "ray-1": ("diastole, 1 Ray worker × 2 threads", {"workers": 1, "threads": 2}),
    "ray-2": ("diastole, 2 Ray workers × 1 thread", {"workers": 2, "threads": 1}),
}
NAMES = {
    "dataloader": "PyTorch script, DataLoader",
    "raydata": "Ray Data, as its documents recommend",
    "raydata-tuned": "Ray Data, tuned",
    "daft": "Daft",
    "dask": "Dask",
}
SCRIPTS = {"raydata-tuned": "raydata", "daft": "daft_", "dask": "dask_"}
DOCUMENTED = {"actors": 2, "batch": "auto", "format": "default", "blocks": None, "threads": None, "cpus": None}
"""Ray Data as its documents have it: an actor class, a fixed pool, batch_size="auto"."""


@dataclass(frozen=True)
class Variant:
    """One way to score a cohort."""

    name: str
    what: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of its process: the allocator as the machine leaves it, or raised; nothing inherited."""
        inherited = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
        paths = {"daft": f"{PEERS}:{DAFT}"}.get(self.name, str(PEERS))
        ours = {} if self.name in DIASTOLE or self.name in CEILINGS else {"PYTHONPATH": paths, "DAFT_PROGRESS_BAR": "0"}
        raised = {key: value for key, value in RAISED.items() if self.name not in CEILINGS or key.startswith("MALLOC_")}
        return {**inherited, **ours, **(raised if self.settings.get("raised") else {})}

    def command(self, folder: Path, out: Path, items: int) -> list[str]:
        """What to run; predictions go to `out`, JSON with `seconds` to standard output."""
        if self.name in CEILINGS:
            arguments = [folder / "lake", folder / "batches.pt", items // 3, *CEILINGS[self.name][1]]
            return [sys.executable, str(HERE / "ceiling.py"), *map(str, arguments)]
        if self.name in DIASTOLE:
            job = write_job(folder, out.name, self.settings)
            return [str(Path(sys.executable).parent / "diastole"), "run", str(job), "--json"]
        script = PEERS / f"{SCRIPTS.get(self.name, self.name)}.py"
        return [sys.executable, str(script), str(folder), str(out), json.dumps(self.settings)]

    def missing(self) -> str | None:
        """Why it cannot take part here, or None."""
        wanted = {"raydata": "ray", "raydata-tuned": "ray", "dask": "dask"}.get(self.name)
        if self.name == "daft" and not DAFT.exists():
            return "Daft is not installed here: make bench does that"
        return f"{wanted} is not installed here" if wanted and find_spec(wanted) is None else None


def variants(workload: str) -> list[Variant]:
    """All, with the settings of a workload."""
    tuned = json.loads(TUNED.read_text())[workload]["chosen"]
    found = [Variant(name, what, {"raised": raised}) for name, (what, _, raised) in CEILINGS.items()]
    found += [Variant(name, what, settings) for name, (what, settings) in DIASTOLE.items()]
    return found + [Variant(name, what, tuned[name]) for name, what in NAMES.items()]


def by_hand(workload: str) -> list[str]:
    """Peers whose settings nobody has tried out."""
    tried = json.loads(TUNED.read_text())[workload]["tried"]
    return [name for name in NAMES if name not in tried]


def write_job(folder: Path, output: str, resources: dict[str, Any]) -> Path:
    """A job file for one run, with an output of its own so that everything is scored again."""
    path = folder / "jobs" / f"{output}.yaml"
    path.parent.mkdir(exist_ok=True)
    job = {"name": output, "dataset": DATASET, "model": MODEL, "output": output, "resources": resources}
    path.write_text(json.dumps(job))
    return path
