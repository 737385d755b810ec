"""Whether a machine, and a lake, can do the work; and how to mend what cannot."""

import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

from ..lake.errors import DiastoleError
from ..lake.layout import Lake, probe_conditional_put

NEEDED = ("torch", "ray", "zarr", "deltalake", "pyarrow", "duckdb", "onnxruntime", "nibabel", "edfio")


def examine(lake_root: str | None) -> list[dict[str, Any]]:
    """What was looked at: name, ok, what was found, how to mend it."""
    findings = [
        _finding("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    ]
    findings += [_package(name) for name in NEEDED]
    cores = os.cpu_count() or 1
    findings.append(_finding("cores", True, str(cores), ""))
    findings.append(_gpu())
    if lake_root:
        findings.append(_lake(lake_root))
    return findings


def _package(name: str) -> dict[str, Any]:
    try:
        return _finding(name, True, importlib.metadata.version(name), "")
    except importlib.metadata.PackageNotFoundError:
        return _finding(name, False, "missing", f"pip install {name}")


def _gpu() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        return _finding("gpu", True, f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}", "")
    driver = shutil.which("nvidia-smi") is not None
    mend = "the driver is there, but this torch is a CPU build: install a CUDA build" if driver else ""
    return _finding("gpu", not driver, "none; jobs run on the CPU", mend)


def _lake(root: str) -> dict[str, Any]:
    try:
        lake = Lake.open(root)
        probe_conditional_put(lake.store)
        key = "its key is here" if lake.key else ""
    except (DiastoleError, OSError) as error:
        return _finding("lake", False, str(error), "see the message")
    free = f", {shutil.disk_usage(lake.store.local).free / 2**30:.0f} GB free" if lake.store.local else ""
    return _finding("lake", True, f"format read, conditional put holds, {key}{free}", "")


def _finding(name: str, ok: bool, found: str, mend: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "mend": mend}
