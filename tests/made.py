"""Small lakes, models and jobs for the tests: real files through the real ingest, real networks through the engine."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diastole.cluster import driver
from diastole.jobs.spec import Job, parse_job
from diastole.lake import delta, models
from diastole.lake.ids import sha256_bytes
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NET = '''
import os
import time
import torch

class Net(torch.nn.Module):
    """A class per residue. It meets its ends on proteins that begin with M (kills), Y (raises), W (NaN) and V (∞)."""

    def __init__(self, most=0, pause=0.0):
        super().__init__()
        self.most, self.pause = most, pause
        self.fc = torch.nn.Linear(20, 3)

    def forward(self, x, lengths):
        time.sleep(self.pause)
        first = x[:, 0].argmax(-1)
        if self.most and len(x) > self.most:
            raise torch.OutOfMemoryError(f"a batch of {len(x)}")
        if (first == 10).any():
            os.kill(os.getpid(), 9)
        if (first == 19).any():
            raise IndexError("it knows no Y")
        out = torch.where((first == 18)[:, None, None], torch.nan, self.fc(x))
        return torch.where((first == 17)[:, None, None], torch.inf, out)
'''


def proteins(count: int, seed: int = 0, low: int = 5, high: int = 40) -> list[str]:
    """Random proteins that no network dies of."""
    chosen = random.Random(seed)
    return ["A" + "".join(chosen.choices(LETTERS, k=chosen.randint(low, high))) for _ in range(count)]


def add_proteins(lake: Lake, folder: Path, sequences: list[str], dataset: str = "d", prefix: str = "p") -> None:
    """Ingest proteins, named p0, p1, …, from a FASTA file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f">{prefix}{n}\n{sequence}\n" for n, sequence in enumerate(sequences))
    (folder / f"{prefix}.fasta").write_text(text)
    ingest(lake, dataset, [folder], IngestOptions(public=True, alphabet="protein"))


def images(lake: Lake, folder: Path, data: Any, dataset: str = "d", name: str = "a") -> None:
    """Ingest a stack of images (n, y, x), named a#0, a#1, …"""
    import numpy as np

    (folder / "images").mkdir(parents=True, exist_ok=True)
    np.save(folder / "images" / f"{name}.npy", data)
    ingest(lake, dataset, [folder / "images"], IngestOptions(public=True, modality="XC"))


def network(seed: int = 0) -> bytes:
    """A state dict for Net."""
    torch.manual_seed(seed)
    return saved(torch.nn.Linear(20, 3).state_dict(), "fc.")


def saved(state: dict[str, Any], prefix: str = "") -> bytes:
    """A state dict as a file."""
    buffer = io.BytesIO()
    torch.save({prefix + key: value for key, value in state.items()}, buffer)
    return buffer.getvalue()


def add_model(lake: Lake, files: dict[str, bytes], **fields: Any) -> models.Manifest:
    """A package of these files. Code of its own is allowed in this process and in those that it starts."""
    pinned = {path.partition(".")[0]: {"path": path, "sha256": sha256_bytes(data)} for path, data in files.items()}
    manifest = models.Manifest.model_validate({"name": "m", "version": "1", "files": pinned, **fields})
    manifest = models.add(lake, manifest, files)
    allowed = os.environ.get("DIASTOLE_ALLOW_CODE", "")
    os.environ["DIASTOLE_ALLOW_CODE"] = f"{allowed},{manifest.ref}:{manifest.model_digest}"
    return manifest


def residues(lake: Lake, *, seed: int = 0, options: dict[str, Any] | None = None, **fields: Any) -> models.Manifest:
    """The model that most tests run: Net, with `options` for its constructor."""
    return add_model(
        lake,
        {"net.pt": network(seed), "code.py": NET.encode()},
        **{
            "task": "residues",
            "runtime": "python",
            "network": "code.py:Net",
            "network_options": options or {},
            "inputs": {"input": {"modality": ["protein"], "alphabet": LETTERS}},
            "classes": ["H", "E", "C"],
            "options": {"alphabet": LETTERS},
            "batch": 4096,
        }
        | fields,
    )


def job(**fields: Any) -> Job:
    """A job in this process; `resources` are overlaid."""
    resources = {"workers": 0, "threads": 1, "device": "cpu"} | fields.pop("resources", {})
    return parse_job({"name": "j", "dataset": "d", "model": "m", "output": "o", "resources": resources} | fields)


def run(lake: Lake, choice: driver.Choice | None = None, **fields: Any) -> driver.Outcome:
    """Run a job."""
    return driver.run_job(lake, job(**fields), choice)


def table(lake: Lake, level: str = "item", output: str = "o") -> list[dict[str, Any]]:
    """Rows of a level, as they are published."""
    found = delta.open_table(lake, lake.predictions(output))
    rows = found.to_pyarrow_dataset().to_table().to_pylist() if found else []
    return [row for row in rows if row["level"] == level]


def by_name(lake: Lake, dataset: str = "d", output: str = "o") -> dict[str, dict[str, Any]]:
    """Published item rows by the item's name."""
    names = {item["item_id"]: item["name"] for item in read_items(lake, dataset).to_pylist()}
    return {names[row["item_id"]]: row for row in table(lake, output=output)}


def codes(lake: Lake) -> dict[str, str | None]:
    """Error code by name of the item."""
    return {name: row["error_code"] for name, row in by_name(lake).items()}


def scores(lake: Lake, output: str = "o") -> dict[str, list[Any]]:
    """What the network gave, by name of the item."""
    return {name: row["probabilities"] for name, row in by_name(lake, output=output).items()}


def assert_each_once(lake: Lake, planned: int, dataset: str = "d", output: str = "o") -> None:
    """The invariant: one item row for each key, all items have one, detail rows are those that item rows count."""
    rows = table(lake, output=output)
    keys = [(r["item_id"], r["input_digest"], r["model_digest"], r["spec_digest"], r["attempt"]) for r in rows]
    assert len(keys) == len(set(keys)) == planned
    assert {r["item_id"] for r in rows} == {i["item_id"] for i in read_items(lake, dataset).to_pylist()}
    said = Counter({(r["run_id"], r["item_id"]): r["n_rows"] for r in rows if r["n_rows"]})
    assert said == Counter((r["run_id"], r["item_id"]) for r in table(lake, "row", output))


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user whom permissions bind; root is not bound by them. What is run in here must not start processes."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def command(lake: Lake, *arguments: str, **environment: str) -> list[Any]:
    """What subprocess takes to run the command line on a lake: the arguments, and the environment."""
    return [
        [sys.executable, "-m", "diastole.cluster", *arguments],
        {**os.environ, "DIASTOLE_LAKE": lake.store.root, **environment},
    ]


def cli(lake: Lake, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on a lake."""
    line, env = command(lake, *arguments, **environment)
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)


def job_file(folder: Path, **fields: Any) -> str:
    """A job as a file (JSON is YAML)."""
    path = folder / "job.yaml"
    path.write_text(json.dumps(job(**fields).model_dump(mode="json")))
    return str(path)
