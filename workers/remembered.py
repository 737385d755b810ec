"""What was ingested from where, and how, for the refresh of the next night.

It lies beside the lake's key, on the machine that ingests, since paths may hold names: `LAKE_ID.sources.json`.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diastole.lake import keys
from diastole.lake.errors import LakeError, SpecError
from diastole.lake.layout import Lake

from .listing import absolute
from .sources import IngestOptions

_ONCE = ("retry", "verify", "workers")
"""Options that are meant for one time only."""


def remember(lake: Lake, dataset: str, paths: Sequence[Path | str], options: IngestOptions) -> None:
    """Keep what was said of these paths, instead of what was said before of them and of what lies below them."""
    said = {name: value for name, value in asdict(options).items() if name not in _ONCE}
    said["manifest"] = None if options.manifest is None else absolute(options.manifest)
    known = _read(lake)
    named = [absolute(path) for path in paths]
    before = {p: s for p, s in known.get(dataset, {}).items() if not any(f"{p}/".startswith(f"{n}/") for n in named)}
    known[dataset] = before | dict.fromkeys(named, said)
    path = _path(lake)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.touch(mode=0o600)
    part.write_text(json.dumps(known, indent=1))
    part.replace(path)


def remembered(
    lake: Lake, dataset: str, workers: int, paths: Sequence[Path | str] | None = None
) -> list[tuple[list[str], IngestOptions]]:
    """The paths of a dataset, or some of them, together where the same was said of them.

    Raises SpecError where one of them, or none, is known here.
    """
    known = _read(lake).get(dataset, {})
    asked = list(known) if paths is None else [absolute(path) for path in paths]
    if unknown := sum(path not in known for path in asked):
        raise SpecError(f"{unknown} of {len(asked)} paths were not ingested from this machine; ingest them first")
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for path in asked:
        said = known[path]
        found.setdefault(json.dumps(said, sort_keys=True), ([], said))[0].append(path)
    if not found:
        raise SpecError(f"where {dataset!r} comes from is not known on this machine; ingest it first")
    return [(paths, _options(said, workers)) for paths, said in found.values()]


def _options(said: dict[str, Any], workers: int) -> IngestOptions:
    manifest = said.pop("manifest")
    try:
        return IngestOptions(**said, manifest=None if manifest is None else Path(manifest), workers=workers)
    except TypeError:
        raise SpecError("what was said at the last ingest is of another version; name the folders again") from None


def _read(lake: Lake) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        try:
            return dict(json.loads(_path(lake).read_text()))
        except (ValueError, TypeError):
            raise LakeError(f"{_path(lake).name} in {keys.folder()} is damaged; remove it, and ingest again") from None
    return {}


def _path(lake: Lake) -> Path:
    return keys.folder() / f"{lake.lake_id}.sources.json"
