"""Cohorts of the benchmarks, made with a seed: a lake as diastole has it, and the same items as its peers like them.

FOLDER/lake, keys      the lake
FOLDER/order.parquet   item_id → number, the place of an item in the cohort
FOLDER/npy, parquet    the peers' copies; net.pt, settings.json
FOLDER/cohort.json     what it is
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATASET, MODEL, TUNED = "cohort", "net", "net-tuned"
"""The network is there twice: as its package has it, and as `diastole tune` chose on this machine."""
FILE_BYTES = 128 * 2**20
"""Of one file of the peers' at about."""


@dataclass(frozen=True)
class Workload:
    """A cohort and its network."""

    make: Callable[[Path, int], str]
    """Makes so many items in a folder, and says what they are."""
    items_per_second: float
    """At the ceiling, on two cores: how many items make a second of work."""
    unit: str
    """What is counted."""


def make(folder: Path, name: str, seconds: float) -> dict[str, Any]:
    """The cohort of a workload in a folder, made now unless it is there."""
    os.environ |= {"DIASTOLE_KEYS": str(folder / "keys"), "DIASTOLE_LAKE": str(folder / "lake")}
    said = folder / "cohort.json"
    items = max(8, round(workloads()[name].items_per_second * seconds))
    if said.exists() and json.loads(said.read_text())["items"] == items:
        return dict(json.loads(said.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    diastole("init", str(folder / "lake"))
    what = workloads()[name].make(folder, items)
    shutil.rmtree(folder / "source")
    cohort = {"what": what, "items": items, "unit": workloads()[name].unit}
    said.write_text(json.dumps(cohort))
    return cohort


def workloads() -> dict[str, Workload]:
    """All workloads by name."""
    import images
    import proteins
    import volumes

    return {
        "images64": Workload(images.small, 36_000, "images"),
        "images224": Workload(images.large, 46, "images"),
        "volumes": Workload(volumes.make, 8, "volumes"),
        "proteins": Workload(proteins.make, 1000, "proteins"),
    }


def ingest(folder: Path, number: Callable[[str], int], *options: str, source: str = "source") -> None:
    """Ingest FOLDER/SOURCE as public data, and keep which item has which number, by its name."""
    from diastole.lake.items import read_items
    from diastole.lake.layout import Lake

    diastole("ingest", DATASET, str(folder / source), "--public", *options)
    items = read_items(Lake.open(str(folder / "lake")), DATASET).select(["item_id", "name"])
    numbers = pa.array([number(name) for name in items["name"].to_pylist()], pa.int64())
    pq.write_table(pa.table({"item_id": items["item_id"], "number": numbers}), folder / "order.parquet")


def add_model(folder: Path, net: Path, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    """Put a network into the lake, and beside the peers' copies with what they need to know of it."""
    package = folder / "source" / "package"
    package.mkdir(parents=True)
    digest = subprocess.check_output(["sha256sum", net], text=True).split()[0]
    shutil.copy(net, package / "net.pt")
    if net != folder / "net.pt":
        shutil.copy(net, folder / "net.pt")
    files = {"files": {"main": {"path": "net.pt", "sha256": digest}}}
    for name in (MODEL, TUNED):
        (package / "model.yaml").write_text(json.dumps({"name": name, "version": "1", **files, **manifest}))
        diastole("models", "add", str(package))
    (folder / "settings.json").write_text(json.dumps(settings))
    diastole("tune", TUNED)


def write_stack(folder: Path, first: int, items: np.ndarray) -> None:
    """The peers' copies of items from the `first` on: a .npy stack, and a Parquet file of their bytes.

    Parquet stores an array of uint8 or int16 as one of int32, so bytes are the faster by far.
    """
    (folder / "npy").mkdir(exist_ok=True)
    np.save(folder / "npy" / f"{first:08d}.npy", items)
    texts = pa.array([item.tobytes() for item in items], pa.binary())
    write_parquet(folder, first, range(first, first + len(items)), texts, rows=max(1, 2**24 // items[0].nbytes))


def write_parquet(folder: Path, first: int, numbers: Sequence[int], data: Any, rows: int) -> None:
    """Items as rows of `number` and `data`, so many in a row group; not compressed, which is fastest to read."""
    (folder / "parquet").mkdir(exist_ok=True)
    table = pa.table({"number": pa.array(numbers, pa.int64()), "data": data})
    path = folder / "parquet" / f"{first:08d}.parquet"
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)


def diastole(*arguments: str) -> None:
    """Run a command as a user would."""
    subprocess.run([str(Path(sys.executable).parent / "diastole"), *arguments], check=True, stdout=subprocess.DEVNULL)
