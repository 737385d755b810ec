"""What must hold whenever no command runs, and what a reader may see while one does."""

from collections import Counter
from typing import Any

import numpy as np

from diastole.lake import arrays, delta, predictions
from diastole.lake.items import read_items
from diastole.lake.layout import Lake

from .world import FAILS, World, score

Row = dict[str, Any]


def problems(root: str, world: World) -> list[str]:
    """What is wrong with the lake, held to what should be there; nothing, if all is well."""
    lake = Lake.open(root)
    names = {r["item_id"]: r["name"] for d in ("proteins", "volumes") for r in _live(lake, d)}
    return [*_items(lake, world), *_scores(lake, world, names), *_masks(lake, world, names), *_withdrawn(lake, world)]


def per_run(root: str) -> Counter[tuple[str, str]]:
    """(output, run) → its item rows, as a reader finds them at this moment."""
    lake, found = Lake.open(root), Counter[tuple[str, str]]()
    for output in ("scores", "masks"):
        table = delta.open_table(lake, lake.predictions(output))
        if table is not None:
            rows = predictions.item_rows(table).to_table(columns=["run_id"])["run_id"].to_pylist()
            found.update((output, run) for run in rows)
    return found


def _live(lake: Lake, dataset: str) -> list[Row]:
    return [row for row in read_items(lake, dataset).to_pylist() if row["state"] == "live"]


def _items(lake: Lake, world: World) -> list[str]:
    wanted = {name: len(letters) for s in world.living() for name, letters in world.proteins[s].items()}
    found = Counter(row["name"] for row in _live(lake, "proteins"))
    lengths = {row["name"]: row["sequence"]["length"] for row in _live(lake, "proteins")}
    volumes = Counter(row["name"] for row in _live(lake, "volumes"))
    return [
        *([] if found == Counter(list(wanted)) else [f"items lost or doubled: {_apart(found, Counter(list(wanted)))}"]),
        *([] if lengths == wanted else ["items of another length than their source"]),
        *([] if volumes == Counter(f"{s}v" for s in world.living()) else ["volumes lost or doubled"]),
    ]


def _scores(lake: Lake, world: World, names: dict[str, str]) -> list[str]:
    table = delta.open_table(lake, lake.predictions("scores"))
    rows = delta.dataset(table).to_table().to_pylist() if table else []
    items = [row for row in rows if row["level"] == "item"]
    found, said = Counter[Any](), []
    failed: dict[Any, list[int]] = {}
    for row in items:
        name = names.get(row["item_id"], "?")
        if row["status"] == "scored":
            found[name, row["model_version"], row["length"], round(row["score"], 4)] += 1
        else:
            failed.setdefault((name, row["model_version"], row["input_digest"]), []).append(row["attempt"])
    wanted = Counter(
        (name, version, len(letters), round(score(letters, version), 4))
        for name, letters, version in world.history()
        if letters[0] != FAILS
    )
    apart = {key: (found[key], wanted[key]) for key in found | wanted if not _same(found, wanted, key)}
    if apart:
        said.append(f"rows lost or doubled (found, wanted): {dict(list(apart.items())[:3])}, {len(apart)} in all")
    if len(failed) != len({key for key in world.history() if key[1][0] == FAILS}):
        said.append(f"{len(failed)} units failed, {len([k for k in world.history() if k[1][0] == FAILS])} should")
    for key, attempts in failed.items():
        if sorted(attempts) != list(range(1, len(attempts) + 1)) or len(attempts) > world.retries + 1:
            said.append(f"attempts {attempts} of {key[0]} after {world.retries} retries")
    details = Counter((row["run_id"], row["item_id"], row["input_digest"]) for row in rows if row["level"] == "row")
    counted = {(r["run_id"], r["item_id"], r["input_digest"]): r["n_rows"] for r in items if r["n_rows"]}
    if details != Counter(counted):
        said.append(f"detail rows: {details.total()}, item rows say {sum(counted.values())}")
    return [*said, *_shown(lake, world, names)]


def _same(found: Counter[Any], wanted: Counter[Any], key: Any) -> bool:
    if found[key] == wanted[key]:
        return True
    near = [(*key[:3], round(key[3] + step, 4)) for step in (-1e-4, 1e-4)]  # float32 beside float64, at a rounding edge
    return found[key] + sum(found[n] for n in near) == wanted[key] + sum(wanted[n] for n in near)


def _shown(lake: Lake, world: World, names: dict[str, str]) -> list[str]:
    """`current/` shows each living protein once, as it is now."""
    table = delta.open_table(lake, lake.current("scores"))
    rows = [r for r in delta.dataset(table).to_table().to_pylist() if r["level"] == "item"] if table else []
    shown = {names.get(row["item_id"], "?"): row for row in rows}
    if len(shown) != len(rows) or set(shown) != {name for name, _, _ in world.wanted()}:
        return [f"current/ shows {len(rows)} rows of {len(shown)} items, {len(world.wanted())} should be there"]
    wrong = 0
    for name, letters, version in world.wanted():
        row = shown[name]
        right = row["status"] == "failed" if letters[0] == FAILS else _near(row["score"], score(letters, version))
        wrong += not (right and row["model_version"] == version)
    return [f"current/ shows {wrong} items with other than their last result"] if wrong else []


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) < 1e-4


def _masks(lake: Lake, world: World, names: dict[str, str]) -> list[str]:
    table = delta.open_table(lake, lake.predictions("masks"))
    rows = [r for r in delta.dataset(table).to_table().to_pylist() if r["level"] == "item"] if table else []
    found = Counter[Any]()
    for row in rows:
        mask, _ = arrays.read_whole(lake, row["maps"][0]["path"], row["maps"][0]["digest"])
        found[names.get(row["item_id"], "?"), np.packbits(np.asarray(mask) > 0).tobytes()] += 1
        if row["voxels"] != int((np.asarray(mask) > 0).sum()):
            found["a mask other than its row says", b""] += 1
    wanted = Counter[Any]()
    for subject, voxels in world.masked:
        if subject not in world.withdrawn:
            values = np.frombuffer(voxels, np.int16).reshape(5, 6, 7)
            wanted[f"{subject}v", np.packbits(values > 50).tobytes()] += 1
    return [] if found == wanted else [f"masks: {_apart(found, wanted)}"]


def _withdrawn(lake: Lake, world: World) -> list[str]:
    gone = {lake.subject_id(subject) for subject in world.withdrawn}
    there = {r["subject_id"] for d in ("proteins", "volumes") for r in read_items(lake, d).to_pylist()}
    return ["items of subjects who withdrew"] if gone & there else []


def _apart(found: Counter[Any], wanted: Counter[Any]) -> str:
    return f"{(found - wanted).total()} too many, {(wanted - found).total()} too few"
