"""The commands that tell of a dataset as a whole: what it holds, and its statistics."""

import sys
from contextlib import redirect_stdout
from enum import StrEnum
from typing import Annotated

import typer

from . import recorded
from .options import DatasetArgument, Json, LakeOption, opened_lake


class By(StrEnum):
    """What statistics are split by."""

    site = "site"


def describe(dataset: DatasetArgument, lake: LakeOption, as_json: Json = False) -> None:
    """Tell what a dataset holds, and which items stand out or cannot be; from its table, without reading any item.

    Exit code 1 where an item's geometry, rate or units cannot be.
    """
    from ..jobs.describe import describe as look
    from .show_cohort import show_description

    found = look(opened_lake(lake), dataset)
    recorded.noted(dataset=dataset, items=sum(found.states.values()), unsound=len(found.unsound))
    show_description(found, as_json=as_json)
    if found.unsound:
        raise typer.Exit(1)


def stats(
    dataset: DatasetArgument,
    lake: LakeOption,
    by: Annotated[By | None, typer.Option(help="Split by this.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0: threads of this process.")] = 0,
    as_json: Json = False,
) -> None:
    """Statistics of a dataset as it is now: intensities, power spectra, letters and k-mers. Made once, then read.

    Exit code 1 where items could not be read: then nothing is stored.
    """
    from ..workers.process import prepare

    prepare()
    from .cohort import dataset_statistics
    from .show_cohort import progress_to, show_statistics

    opened = opened_lake(lake)
    with redirect_stdout(sys.stderr):  # Ray prints what it notices
        found = dataset_statistics(opened, dataset, by and by.value, workers, progress_to(sys.stderr, quiet=as_json))
    recorded.noted(dataset=dataset, items=found.found["items"], made=found.made)
    show_statistics(found, as_json=as_json)
    if found.left_out:
        raise typer.Exit(1)
