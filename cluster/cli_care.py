"""The commands that keep a lake in order: quarantine, check, sweep, compact, doctor."""

import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from ..lake.errors import SpecError
from . import recorded
from .options import Json, LakeOption, Workers, opened_lake

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


def quarantine(
    lake: LakeOption,
    source: Annotated[Path | None, typer.Option(help="Say which files of this folder the records mean.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Score again what failed at scoring.")] = False,
    job: Annotated[
        Path | None, typer.Option(help="With --retry: by this job file, not by the jobs as they were run.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Show what could not be ingested or scored, with the reason and how to try again; or try it again."""
    from .show import show_quarantine, show_retried

    opened = opened_lake(lake)
    if not retry:
        recorded.noted(rows=show_quarantine(opened, source, as_json=as_json))
        return
    from ..workers.process import prepare

    prepare()
    from ..jobs.spec import load_job
    from .bars import RunBar
    from .driver import Choice
    from .retry import retry as run_again

    spec = load_job(job) if job else None
    with RunBar(quiet=as_json) as bar, redirect_stdout(sys.stderr):
        outcomes = list(run_again(opened, spec, workers, Choice(), bar))
    recorded.noted(scored=sum(o.scored for o in outcomes), failed=sum(o.failed for o in outcomes))
    show_retried(opened, outcomes, as_json=as_json)


def check(
    lake: LakeOption,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare its sha256.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take damaged results out, so that their job's next run scores them again.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds that a repair waits for runs and ingests to end.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Hold every file to what was written, and each item's geometry, rate and units to what can be.

    Exit code 1 where something is missing or changed, and not repaired, or cannot be. What a dataset holds, and which
    items stand out, says: diastole describe DATASET.
    """
    from ..jobs.sound import unsound
    from ..lake.scrub import scrub
    from .bars import CheckBar
    from .show import show_check

    opened = opened_lake(lake)
    with CheckBar(opened, quiet=as_json) as bar:
        found = scrub(opened, deep=deep, progress=bar.update)
    wrong, unread = unsound(opened, deep=deep)
    recorded.noted(files=found.files, wrong=len(found.findings), unsound=len(wrong))
    repaired = None
    if repair and found.findings:
        from .repair import mend

        repaired = mend(opened, found.findings, wait)
    show_check(found, repaired, wrong, unread, as_json=as_json)
    if wrong or unread or (found.findings if repaired is None else repaired.left):
        raise typer.Exit(1)


def doctor(
    lake: Annotated[
        str, typer.Option("--lake", envvar="DIASTOLE_LAKE", help="Also check this lake.", show_default=False)
    ] = "",
    as_json: Json = False,
) -> None:
    """Check this machine, and a lake: versions, devices, storage."""
    from .doctor import examine
    from .show import show_checkup

    findings = examine(lake or None)
    show_checkup(findings, as_json=as_json)
    if any(not finding["ok"] for finding in findings):
        raise typer.Exit(1)
