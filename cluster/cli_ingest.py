"""Commands that take sources into the lake: ingest, refresh."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..lake.errors import SpecError
from . import recorded
from .options import DatasetArgument, Json, LakeOption, opened_lake

Format = Annotated[str | None, typer.Option(help="Reader, by name; else found by content.")]
Modality = Annotated[str | None, typer.Option(help="MR, CT, EEG, …, where the source does not say it.")]
Alphabet = Annotated[str | None, typer.Option(help="dna or protein; else found by content.")]
Assembly = Annotated[str | None, typer.Option(help="Name of the genome assembly of a FASTA file.")]
Public = Annotated[bool, typer.Option("--public", help="Sources are public: keep their names.")]
Manifest = Annotated[Path | None, typer.Option(help="CSV: path, and any of key, name, subject, session, …")]
Licence = Annotated[str | None, typer.Option(help="Licence of the data.")]
PermittedUse = Annotated[str | None, typer.Option(help="What the data may be used for.")]
Dates = Annotated[
    str, typer.Option(help="Times that sources give: shift (by some days, alike for a subject), keep, or drop.")
]
BurnedIn = Annotated[
    bool, typer.Option("--allow-burned-in", help="Take pictures that may have names written into their pixels.")
]
EachFile = Annotated[
    bool, typer.Option("--each-file", help="A file that holds what another does is an item of its own.")
]
Decoders = Annotated[int, typer.Option("--workers", min=1, help="Decoders at a time.")]
On = Annotated[str, typer.Option("--on", help="Where sources are read: local (this process), or ray.")]
MaxItem = Annotated[float, typer.Option(help="Largest item, decoded, in GB.")]
Deadline = Annotated[float, typer.Option(help="Seconds that one source may take.")]
Again = Annotated[bool, typer.Option("--retry", help="Try again what is quarantined.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read all again, and write anew what is damaged or missing in the lake.")
]
AllowGone = Annotated[bool, typer.Option("--allow-gone", help="Also where more than half of the files are gone.")]


def ingest(
    dataset: DatasetArgument,
    paths: Annotated[list[str], typer.Argument(help="Files, folders, or URLs of object stores.", show_default=False)],
    lake: LakeOption,
    format: Format = None,  # noqa: A002
    modality: Modality = None,
    alphabet: Alphabet = None,
    assembly: Assembly = None,
    public: Public = False,
    manifest: Manifest = None,
    licence: Licence = None,
    permitted_use: PermittedUse = None,
    dates: Dates = "shift",
    allow_burned_in: BurnedIn = False,
    each_file: EachFile = False,
    workers: Decoders = 2,
    on: On = "local",
    max_item_gb: MaxItem = 4.0,
    deadline: Deadline = 300.0,
    retry: Again = False,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Take files into a dataset; what is unchanged is not read again, what is broken is quarantined.

    Files that were deleted at the source are not noticed: their items stay. `refresh` looks for them.
    """
    from ..workers.ingest import IngestOptions
    from ..workers.ingest import ingest as run_ingest
    from ..workers.remembered import remember

    options = IngestOptions(
        format=format,
        modality=modality,
        alphabet=alphabet,
        assembly=assembly,
        public=public,
        manifest=manifest,
        licence=licence,
        permitted_use=permitted_use,
        dates=dates,
        allow_burned_in=allow_burned_in,
        each_file=each_file,
        workers=workers,
        max_item_bytes=int(max_item_gb * 2**30),
        deadline_s=deadline,
        retry=retry,
        verify=verify,
    )
    opened = opened_lake(lake)
    with _hired(on, workers) as hire, _bar(as_json) as bar:
        report = run_ingest(opened, dataset, paths, options, bar.update, hire)
    remember(opened, dataset, paths, options)
    _end(dataset, [report], as_json=as_json)


def refresh(
    dataset: DatasetArgument,
    lake: LakeOption,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="All of where it comes from; else as at the last ingest.", show_default=False),
    ] = None,
    workers: Decoders = 2,
    on: On = "local",
    retry: Again = False,
    allow_gone: AllowGone = False,
    as_json: Json = False,
) -> None:
    """Bring a dataset up to date with where it came from: what is new, what changed, and what is not there any more.

    Options are those that were given when these paths were ingested. Items whose files are gone are planned no more;
    what was predicted of them stays.
    """
    from dataclasses import replace

    from ..workers.ingest import refresh as run_refresh
    from ..workers.remembered import remembered

    opened, reports = opened_lake(lake), []
    with _hired(on, workers) as hire:
        for known, options in remembered(opened, dataset, workers, paths):
            said = replace(options, retry=retry)
            with _bar(as_json) as bar:
                more = run_refresh(opened, dataset, known, said, bar.update, allow_gone=allow_gone, hire=hire)
            reports.append(more)
    _end(dataset, reports, as_json=as_json)


@contextmanager
def _hired(on: str, workers: int) -> Iterator[Any]:
    """Where sources are read. Raises SpecError for a place that is none."""
    if on not in ("local", "ray"):
        raise SpecError(f"--on {on!r} is none of: local, ray")
    if on == "local":
        yield None
        return
    from .private_ray import private_ray

    with private_ray(workers):
        from .ingest_crew import Crew  # Ray reads its settings as it is imported

        yield Crew


def _bar(as_json: bool) -> Any:
    from .bars import IngestBar

    return IngestBar(quiet=as_json)


def _end(dataset: str, reports: Iterable[Any], *, as_json: bool) -> None:
    """Say what was done, of all paths together."""
    from .show import ingest_report

    report = _sum(list(reports))
    recorded.noted(**{n: getattr(report, n) for n in ("files", "added", "changed", "gone", "withdrawn")})
    recorded.noted(quarantined=sum(report.quarantined.values()))
    ingest_report(dataset, report, as_json=as_json)
    if report.quarantined:
        raise typer.Exit(1)


def _sum(reports: list[Any]) -> Any:
    from ..workers.ingest import IngestReport

    whole = {field.name: getattr(reports[0], field.name) for field in fields(IngestReport)}
    for report in reports[1:]:
        for name in whole:
            if name == "quarantined":
                there = whole[name]
                whole[name] = {c: there.get(c, 0) + report.quarantined.get(c, 0) for c in {*there, *report.quarantined}}
            else:
                whole[name] += getattr(report, name)
    return IngestReport(**whole)
