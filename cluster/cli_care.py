"""The commands that keep a lake in order: sweep and compact."""

import re
from typing import Annotated

import typer

from ..lake.errors import SpecError
from .options import Json, LakeOption, opened_lake

Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for runs and ingests that hold the lake.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and say what would be done.")]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def sweep(
    lake: LakeOption,
    grace: Annotated[str, typer.Option(help="How long what is not needed stays: 7d, 12h, 30m, 0.")] = "7d",
    dry_run: DryRun = False,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Remove what nothing refers to any more: files of killed writers and of old versions of tables, arrays, maps.

    Older versions of a table can be read for as long as the grace. Exit code 1 where a place was left as it is, since
    it could not be said what is needed there.
    """
    from ..jobs.sweep import sweep as run_sweep
    from .show import print_json

    swept = run_sweep(opened_lake(lake), _seconds(grace), dry_run=dry_run, wait=wait)
    if as_json:
        removed = {kind: {"files": files, "bytes": size} for kind, (files, size) in swept.removed.items()}
        print_json({"dry_run": dry_run, "removed": removed, "left": swept.left})
    else:
        print("would remove:" if dry_run else "removed:")
        for kind, (files, size) in swept.removed.items():
            print(f"  {kind:12} {files:8} files {size / 1e6:12.1f} MB")
        for place, reason in swept.left.items():
            print(f"left as it is: {place}: {reason}")
    if swept.left:
        raise typer.Exit(1)


def compact(
    lake: LakeOption,
    outputs: Annotated[list[str] | None, typer.Argument(help="Names of outputs; without them, all.")] = None,
    dry_run: DryRun = False,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Put the small files of predictions together into files of some 128 MB. The old ones stay until a sweep."""
    from ..jobs.compact import compact as run_compact
    from .show import print_json

    done = run_compact(opened_lake(lake), outputs or (), dry_run=dry_run, wait=wait)
    if as_json:
        print_json({"dry_run": dry_run, "partitions": [partition.__dict__ for partition in done]})
        return
    for p in done:
        became = f"at most {p.files[1]}" if dry_run else str(p.files[1])
        print(
            f"{p.table} {p.level} {p.key_group}: {p.files[0]} files, {p.bytes[0] / 1e6:.1f} MB → {became}; {p.rows} rows"
        )
    if not done:
        print("no partition has several small files")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None or (not found[2] and float(found[1])):
        raise SpecError(f"--grace {text!r} is no time; write it as 7d, 12h, 30m, 90s or 0")
    return float(found[1]) * UNITS[found[2] or "s"]
