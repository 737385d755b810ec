"""What the make_*.py scripts share: rounding, library versions and the layout of the JSON files."""

import importlib.metadata
import json
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def rounded(values: Any, digits: int = 6) -> Any:
    """Turn numbers or an array of them into plain Python, rounded; a single NaN becomes None."""
    out = np.round(np.asarray(values, dtype=np.float64), digits)
    return None if out.ndim == 0 and np.isnan(out) else out.tolist()


def best_seconds(call: Callable[[], Any]) -> float:
    """Time a call, best of 3."""
    return round(min(timeit.repeat(call, number=1, repeat=3)), 2)


def write(out: Path, call: str, notes: str, packages: str, data: dict[str, Any]) -> None:
    """Write data with a "how": the call, the notes (one a line) and package versions (the first made the results)."""
    versions = {name: importlib.metadata.version(name) for name in packages.split()}
    how = {"package": packages.split()[0], "version": versions[packages.split()[0]], "libraries": versions}
    how |= {"call": call, "notes": dict(line.split(": ", 1) for line in notes.strip().splitlines())}
    out.write_text(json.dumps(data | {"how": how}, indent=1, sort_keys=True) + "\n")
