"""The command line. Heavy libraries are imported by the command that needs them, so that --help answers at once.

Exit codes: 0 done, also where units of a run failed: their rows say why; 1 something is wrong with the data (sources
were quarantined, `check` or `doctor` found something); 2 a user's mistake, or a model on which most units failed, said in
one line; 3 the environment failed (storage, workers), or what was about to be published is not what was planned: nothing
is lost, run again; 130 interrupted.
"""

import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..lake.errors import CommitError, EnvironmentFailure, ItemError, UserError
from ..workers.process import collect_seldom
from . import cli_care, cli_cohort, cli_ingest, cli_models, cli_privacy, cli_runs, recorded
from .options import (
    IgnoreErrors,
    JobFile,
    Json,
    LakeOption,
    Limit,
    Only,
    Retry,
    Rows,
    Workers,
    opened_lake,
)

app = typer.Typer(
    name="diastole",
    cls=recorded.Recorded,
    help="Score biomedical cohorts with deep learning, in batch, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130
"""What typer, too, makes of Ctrl-C."""


def main() -> NoReturn:
    """The entry point."""
    collect_seldom()
    code = answer()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Arrow's threads may still have files of Python to close; as the interpreter ends, that would abort the process.
    os._exit(code)


def answer() -> int:
    """Do what the command line says, and record it in the lake. Returns the exit code."""
    os.umask(0o077)
    recorded.forget()
    code = _answer()
    recorded.end(code)
    return code


def _answer() -> int:
    """What a user can mend is one line, without a traceback."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            return _told(_INTERRUPTED, INTERRUPTED)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        return _told(str(error), 2)
    except ItemError as error:
        return _told(str(error), 1)
    except (CommitError, EnvironmentFailure) as error:
        return _told(str(error), 3)
    except OSError as error:  # without its file's name, which may be a patient's
        return _told(f"the system failed: {error.strerror or _first_line(error)}; run again", 3)
    except KeyboardInterrupt:
        return _told(_INTERRUPTED, INTERRUPTED)
    except _table_errors() as error:
        return _told(f"a table of the lake failed: {_first_line(error)}; run again", 3)
    return 0


_INTERRUPTED = "interrupted; the same command goes on where it stopped"


def _table_errors() -> type[BaseException]:
    """What deltalake raises; it is imported only where something was raised that is nothing of the above."""
    from deltalake.exceptions import DeltaError

    return DeltaError


def _first_line(error: BaseException) -> str:
    """What a library says, without what it draws below."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _told(message: str, code: int) -> int:
    print(f"diastole: {message}", file=sys.stderr)
    return code


@app.command()
def init(root: Annotated[str, typer.Argument(help="Where: a folder, or s3://bucket/path.")]) -> None:
    """Make an empty lake, and its key outside of it."""
    from ..lake import keys
    from ..lake.layout import Lake

    lake = Lake.create(root)
    recorded.begin(lake)
    print(f"made a lake at {lake.store.root}")
    print(f"its key is in {keys.folder()}: keep a copy; without it new data get other ids")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job file, for editors."""
    from ..jobs.spec import job_schema
    from .show import print_json

    print_json(job_schema())


for take_in in (cli_ingest.ingest, cli_ingest.refresh):
    app.command()(take_in)


@app.command()
def items(
    lake: LakeOption,
    dataset: Annotated[str | None, typer.Argument(help="Name of the dataset; without it, all are counted.")] = None,
    limit: Rows = None,
    as_json: Json = False,
) -> None:
    """Show datasets, or the items of one."""
    from .show import show_datasets, show_items

    if dataset is None:
        show_datasets(opened_lake(lake), as_json=as_json)
    else:
        recorded.noted(rows=show_items(opened_lake(lake), dataset, limit, as_json=as_json))


@app.command()
def plan(
    job: JobFile,
    lake: LakeOption,
    limit: Limit = None,
    only: Only = None,
    retry: Retry = False,
    workers: Workers = None,
    with_estimate: Annotated[
        bool, typer.Option("--estimate", help="Probe some units, and say what time, memory and price to expect.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run would score, why, and at what cost. Writes nothing, but an --estimate, which the run is held to."""
    from ..jobs.spec import load_job
    from .driver import Choice, plan_job, threads_of
    from .show import note, show_plan

    spec, opened = load_job(job).with_workers(workers), opened_lake(lake)
    recorded.noted(job=spec.name, output=spec.output, model=spec.model)
    planned, _, _ = plan_job(opened, spec, Choice(limit, only or (), retry), note)
    found = None
    if with_estimate:
        from .estimate import estimate

        found = estimate(opened, planned, spec, threads_of(spec))
    show_plan(planned, found, as_json=as_json)


@app.command()
def run(
    job: JobFile,
    lake: LakeOption,
    limit: Limit = None,
    only: Only = None,
    retry: Retry = False,
    replan: Annotated[bool, typer.Option("--replan", help="Give up an unfinished run and plan anew.")] = False,
    ignore_errors: IgnoreErrors = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Score what is new or changed, exactly once. The same command resumes a run that was stopped."""
    from ..workers.process import prepare

    prepare()  # before libraries that start threads are imported
    from ..jobs.spec import load_job
    from .bars import RunBar
    from .driver import Choice, run_job
    from .show import show_outcome

    spec = load_job(job).with_workers(workers)
    opened = opened_lake(lake)
    recorded.noted(job=spec.name, output=spec.output, model=spec.model)
    if only and spec.resources.workers == 0:
        os.environ["DIASTOLE_TRACEBACK"] = "1"  # what a model raises may quote the item, so it is shown here alone
    with RunBar(quiet=as_json) as bar, redirect_stdout(sys.stderr):  # Ray prints what it notices
        outcome = run_job(opened, spec, Choice(limit, only or (), retry, replan, ignore_errors), bar)
    recorded.noted(run_id=outcome.run_id, scored=outcome.scored, failed=outcome.failed)
    show_outcome(outcome, as_json=as_json)


@app.command()
def predictions(
    output: Annotated[str, typer.Argument(help="Name of the output.")],
    lake: LakeOption,
    rows: Annotated[bool, typer.Option("--rows", help="Detail rows instead of item rows.")] = False,
    limit: Rows = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all of them to this CSV file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Show the result of each item that its job means now."""
    from .show import show_predictions

    shown = show_predictions(opened_lake(lake), output, "row" if rows else "item", limit, csv, as_json=as_json)
    recorded.noted(**{"rows" if csv is None else "exported": shown})


app.add_typer(cli_models.models_app, name="models")
app.add_typer(cli_runs.runs_app, name="runs")
for command in (
    cli_models.tune,
    cli_runs.show,
    cli_cohort.describe,
    cli_cohort.stats,
    cli_care.quarantine,
    cli_care.check,
    cli_care.sweep,
    cli_care.compact,
    cli_privacy.withdraw,
    cli_privacy.audit,
    cli_care.doctor,
):
    app.command()(command)
