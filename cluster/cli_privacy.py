"""The commands for consent and for the audit record."""

import re
import sys
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..lake.errors import SpecError
from .options import Json, LakeOption, opened_lake
from .recorded import noted


def withdraw(
    lake: LakeOption,
    subjects: Annotated[
        list[str] | None, typer.Argument(help="As the manifest or the source names them.", show_default=False)
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="A subject_id; may be given again.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Subjects, one a line; - is standard input. Keeps names out of ps.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for runs and ingests that hold the lake.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Remove all that the lake has of subjects whose consent is withdrawn, and keep it away.

    Killed, or refused since a run holds the lake, the same command goes on. Backups and copies elsewhere are yours.
    """
    from ..jobs.withdraw import withdraw as remove
    from ..jobs.withdraw import would_withdraw
    from .driver import give_up

    opened = opened_lake(lake)
    named = [*(subjects or []), *(_lines(file) if file else [])]
    wrong = [given for given in ids or [] if not re.fullmatch("[0-9a-f]{32}", given)]
    if wrong:
        raise SpecError(
            f"{len(wrong)} of --id are no subject_id, which has 32 of 0-9a-f; without --id, a name is meant"
        )
    keys = {opened.subject_id(name.removeprefix("sub-")) for name in named}
    found = sorted(keys | set(ids or []))
    if not found:
        raise SpecError("name a subject, or a list of them with --file")
    noted(subjects=found)
    done = would_withdraw(opened, found) if dry_run else remove(opened, found, give_up, wait)
    noted(items=sum(done.items.values()), rows=sum(done.rows.values()), runs_ended=done.runs)
    _show_withdrawn(done, dry_run=dry_run, as_json=as_json)


def _lines(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"the list of subjects cannot be read ({type(error).__name__}); it must be text in UTF-8"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def audit(
    lake: LakeOption,
    since: Annotated[str | None, typer.Option(help="Only from this day on (UTC), as 2026-01-31.")] = None,
    as_json: Json = False,
) -> None:
    """Show who did what with the lake."""
    from ..lake import audit as records

    opened = opened_lake(lake)
    try:
        day: date | None = None if since is None else datetime.strptime(since, "%Y-%m-%d").date()
    except ValueError:
        raise SpecError("--since must be a day, as 2026-01-31") from None
    found = records.read(opened, day)
    noted(records=len(found))
    _show_audit(found, as_json=as_json)


def _show_withdrawn(done: Any, *, dry_run: bool, as_json: bool) -> None:
    from .show import print_json

    if as_json:
        print_json({"dry_run": dry_run, **asdict(done)})
        return
    would = "would be" if dry_run else "are"
    items = ", ".join(f"{number} of {dataset}" for dataset, number in done.items.items()) or "none"
    rows = ", ".join(f"{number} of {output}" for output, number in done.rows.items()) or "none"
    print(
        f"{len(done.subjects)} subjects {would} withdrawn: items: {items}; rows: {rows}; items with maps: {done.maps}"
    )
    if not dry_run:
        print(f"  {done.arrays} arrays and packs removed, {done.packs} packs written anew without them")
    if done.statistics:
        print(
            f"  {done.statistics} statistics of their datasets {would} removed; make them anew: diastole stats DATASET"
        )
    if done.unknown:
        print(f"  {done.unknown} of them have no item in this lake; check how they are written")
    if done.shared:
        print(
            f"  {done.shared} of these items have samples of others too; ingest their files again, and they come back "
            "without these"
        )
    if done.damaged:
        print(f"  {done.damaged} items of others could not be read in these packs; heal them: diastole ingest --verify")
    if done.runs:
        print(
            f"  {len(done.runs)} unfinished runs {would} ended: {', '.join(run[:8] for run in done.runs)}; run their jobs"
        )


def _show_audit(found: list[dict[str, Any]], *, as_json: bool) -> None:
    from .show import print_json

    if as_json:
        print_json(found)
        return
    known = ("at", "user", "command", "exit", "damaged")
    for entry in found:
        rest = " ".join(f"{k}={v}" for k, v in entry.items() if k not in (*known, "uid", "host", "pid"))
        print("  ".join(str(entry[k]) for k in known if k in entry), rest)
