"""What `diastole tune` chose for a model on a kind of device, kept in the lake until model, device or torch change."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..lake.errors import LakeError
from ..lake.layout import Lake
from ..lake.models import Manifest
from ..lake.plain_json import from_json
from .spec import Resources

LIBRARIES = ("torch", "onnxruntime", "numpy")


def keep(lake: Lake, manifest: Manifest, device: str, value: Mapping[str, Any]) -> None:
    """Keep a choice, in place of an earlier one. `value` has `runtime`, and what it was chosen from."""
    kept = {"model": manifest.ref, "model_digest": manifest.model_digest, "device": device, "versions": versions()}
    lake.store.put(_path(lake, manifest, device), json.dumps({**kept, **value}, indent=1).encode())


def forget(lake: Lake, manifest: Manifest, device: str) -> None:
    """From now on the model runs as its package says."""
    lake.store.delete(_path(lake, manifest, device))


def read(lake: Lake, manifest: Manifest, device: str) -> dict[str, Any] | None:
    """What is kept, whether it still holds or not."""
    try:
        kept = from_json(lake.store.get(_path(lake, manifest, device)))
        kinds = {"model_digest": str, "device": str, "versions": dict, "runtime": dict}
        if not all(isinstance(kept.get(name), kind) for name, kind in kinds.items()):
            raise ValueError
        return kept
    except FileNotFoundError:
        return None
    except ValueError:
        raise LakeError(f"what was tuned for {manifest.ref} is damaged; tune it again, or --forget it") from None


def choose(lake: Lake, manifest: Manifest, device: str, resources: Resources) -> tuple[dict[str, Any], str | None]:
    """(runtime settings of a plan, what to say of them). A batch that the job itself says wins."""
    kept = read(lake, manifest, device)
    if kept is None:
        return {}, None
    if changed := _changed(kept, manifest, device):
        return {}, f"what was tuned for {manifest.ref} is not used: {changed} changed; tune it again, or --forget it"
    own = {"batch"} if resources.batch is not None else set()
    return {name: value for name, value in kept["runtime"].items() if name not in own}, None


def versions() -> dict[str, str]:
    """Of the libraries that compute, found without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _changed(kept: Mapping[str, Any], manifest: Manifest, device: str) -> str | None:
    if kept["model_digest"] != manifest.model_digest:
        return "the model"
    if kept["device"] != device:
        return "the device"
    there, now = kept["versions"].get("torch"), versions().get("torch")
    return None if there == now else f"torch ({there}, now {now})"


def _path(lake: Lake, manifest: Manifest, device: str) -> str:
    return lake.tuned(manifest.name, manifest.version, device)
