"""Who takes part: how each is called, and with which settings."""

import json
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cohorts import DATASET, MODEL, TUNED

from diastole.workers.process import ENVIRONMENT

HERE = Path(__file__).parent
PEERS = HERE / "peers"
DAFT = Path(sys.prefix) / "daft"
"""Where `make bench` puts Daft with the pyarrow that it wants, which is older than ours."""
RAISED = ENVIRONMENT
"""Settings of the allocator and of OpenMP that diastole gives itself, for those that cannot know of them."""
CHOSEN = HERE / "tuned.json"
"""Settings of the peers by workload, as tune.py found them."""
LAYOUTS = {
    "1x2": ("1 process × 2 threads", (1, 1, 2)),
    "lanes": ("1 process, 2 batches side by side", (1, 2, 1)),
    "2x1": ("2 processes × 1 thread", (2, 1, 1)),
}
"""Of the ceiling: processes, batches side by side in each, threads of each."""
CEILINGS = {
    **{f"ceiling-{name}": (f"the network alone, {what}", False) for name, (what, _) in LAYOUTS.items()},
    **{f"ceiling-{name}-raised": (f"the network alone, {what}", True) for name, (what, _) in LAYOUTS.items()},
}
TUNED_CEILINGS = {
    f"ceiling-{name}-tuned": (f"the network alone after `diastole tune`, {what}", True)
    for name, (what, _) in LAYOUTS.items()
}
DIASTOLE = {
    "here": ("diastole, one process × 2 threads", {"workers": 0, "threads": 2}),
    "ray-1": ("diastole, 1 Ray worker × 2 threads", {"workers": 1, "threads": 2}),
    "ray-2": ("diastole, 2 Ray workers × 1 thread", {"workers": 2, "threads": 1}),
    "here-tuned": ("diastole after `diastole tune`, one process × 2 threads", {"workers": 0, "threads": 2}),
    "ray-2-tuned": ("diastole after `diastole tune`, 2 Ray workers × 1 thread", {"workers": 2, "threads": 1}),
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
    def is_ceiling(self) -> bool:
        """Whether it is the network alone."""
        return self.name in CEILINGS or self.name in TUNED_CEILINGS

    @property
    def batches(self) -> str:
        """The file of the batches that a ceiling computes."""
        return "batches-tuned.pt" if self.name in TUNED_CEILINGS else "batches.pt"

    @property
    def environment(self) -> dict[str, str]:
        """Of its process: the allocator as the machine leaves it, or raised; nothing inherited."""
        inherited = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
        paths = {"daft": f"{PEERS}:{DAFT}"}.get(self.name, str(PEERS))
        peer = self.name not in DIASTOLE and not self.is_ceiling
        ours = {"PYTHONPATH": paths, "DAFT_PROGRESS_BAR": "0"} if peer else {}
        raised = {key: value for key, value in RAISED.items() if not self.is_ceiling or key.startswith("MALLOC_")}
        return {**inherited, **ours, **(raised if self.settings.get("raised") else {})}

    def command(self, folder: Path, out: Path, items: int) -> list[str]:
        """What to run; predictions go to `out`, JSON with `seconds` to standard output."""
        if self.is_ceiling:
            arguments = [folder / "lake", folder / self.batches, items // 3, *LAYOUTS[self.name.split("-")[1]][1]]
            return [sys.executable, str(HERE / "ceiling.py"), *map(str, arguments)]
        if self.name in DIASTOLE:
            job = write_job(folder, out.name, self.settings, TUNED if self.name.endswith("-tuned") else MODEL)
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
    tuned = json.loads(CHOSEN.read_text())[workload]["chosen"]
    alone = {**CEILINGS, **TUNED_CEILINGS}
    found = [Variant(name, what, {"raised": raised}) for name, (what, raised) in alone.items()]
    found += [Variant(name, what, settings) for name, (what, settings) in DIASTOLE.items()]
    return found + [Variant(name, what, tuned[name]) for name, what in NAMES.items()]


def by_hand(workload: str) -> list[str]:
    """Peers whose settings nobody has tried out."""
    tried = json.loads(CHOSEN.read_text())[workload]["tried"]
    return [name for name in NAMES if name not in tried]


def write_job(folder: Path, output: str, resources: dict[str, Any], model: str) -> Path:
    """A job file for one run, with an output of its own so that everything is scored again."""
    path = folder / "jobs" / f"{output}.yaml"
    path.parent.mkdir(exist_ok=True)
    job = {"name": output, "dataset": DATASET, "model": model, "output": output, "resources": resources}
    path.write_text(json.dumps(job))
    return path
