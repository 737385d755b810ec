"""The commands about runs: list them, give one up, show one."""

from typing import Annotated

import typer

from ..lake.errors import LakeError
from . import recorded
from .options import Json, LakeOption, opened_lake

runs_app = typer.Typer(cls=recorded.Recorded, help="Runs of the lake.", invoke_without_command=True)


@runs_app.callback()
def runs_list(
    context: typer.Context,
    lake: Annotated[str, typer.Option("--lake", envvar="DIASTOLE_LAKE", help="The lake.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """List the runs."""
    context.obj = lake
    if context.invoked_subcommand is None:
        from .show import show_runs

        if not lake:
            raise typer.BadParameter("name the lake: --lake or DIASTOLE_LAKE")
        show_runs(opened_lake(lake), as_json=as_json)


@runs_app.command("abandon")
def runs_abandon(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(help="The run, or how its id begins.")],
    lake: Annotated[str, typer.Option("--lake", envvar="DIASTOLE_LAKE", help="The lake.", show_default=False)] = "",
) -> None:
    """Give up an unfinished run: what it has not published is planned anew."""
    from ..jobs import runs as all_runs
    from ..lake import leases
    from .driver import give_up

    if not (lake or context.obj):
        raise typer.BadParameter("name the lake: --lake or DIASTOLE_LAKE")
    opened = opened_lake(lake or context.obj)
    found = all_runs.resolve(opened, run_id)
    recorded.noted(run_id=found)
    record = all_runs.read_record(opened, found)
    if record is not None:
        raise LakeError(f"run {found[:8]} has ended already ({record['state']})")
    with leases.shared(opened, f"giving up run {found[:8]}") as held:
        state = give_up(opened, all_runs.read_plan(opened, found), held.check)
    print(f"gave up run {found[:8]}" if state == "abandoned" else f"run {found[:8]} was published already; it is done")


def show(
    run_id: Annotated[str, typer.Argument(help="The run, or how its id begins.")],
    lake: LakeOption,
    as_json: Json = False,
) -> None:
    """Show one run: what was scored, skipped and failed, and where the time went."""
    from .show import show_run

    recorded.noted(run_id=show_run(opened_lake(lake), run_id, as_json=as_json))
