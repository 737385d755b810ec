"""Who takes part: how each is called, and with which settings."""

import json
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cohorts import DATASET, MODEL

HERE = Path(__file__).parent
PEERS = HERE / "peers"
DAFT = Path(sys.prefix) / "daft"
"""Where `make bench` puts Daft with the pyarrow that it wants, which is older than ours."""
RAISED = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Settings of glibc's allocator with which large blocks are kept and used again."""
TUNED = HERE / "tuned.json"
"""Settings of the peers by workload, as tune.py found them."""
CEILINGS = {
    f"ceiling-{processes}x{threads}{'-raised' * raised}": (processes, threads, raised)
    for processes, threads in ((1, 2), (2, 1))
    for raised in (False, True)
}
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
DOCUMENTED = {"actors": 2, "batch": "auto", "blocks": None, "threads": None, "cpus": None}
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
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        paths = {"daft": f"{PEERS}:{DAFT}"}.get(self.name, str(PEERS))
        ours = {} if self.name in DIASTOLE or self.name in CEILINGS else {"PYTHONPATH": paths, "DAFT_PROGRESS_BAR": "0"}
        return {**inherited, **ours, **(RAISED if self.settings.get("raised") else {})}

    def command(self, folder: Path, out: Path, items: int) -> list[str]:
        """What to run; predictions go to `out`, JSON with `seconds` to standard output."""
        if self.name in CEILINGS:
            processes, threads, _ = CEILINGS[self.name]
            arguments = [folder / "lake", folder / "batches.pt", items // 2, processes, threads]
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
    found = [
        Variant(name, f"the network alone, {processes} × {threads}", {"raised": raised})
        for name, (processes, threads, raised) in CEILINGS.items()
    ]
    found += [Variant(name, what, settings) for name, (what, settings) in DIASTOLE.items()]
    return found + [Variant(name, what, tuned[name]) for name, what in NAMES.items()]


def write_job(folder: Path, output: str, resources: dict[str, Any]) -> Path:
    """A job file for one run, with an output of its own so that everything is scored again."""
    path = folder / "jobs" / f"{output}.yaml"
    path.parent.mkdir(exist_ok=True)
    job = {"name": output, "dataset": DATASET, "model": MODEL, "output": output, "resources": resources}
    path.write_text(json.dumps(job))
    return path
