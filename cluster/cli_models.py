"""The commands for model packages."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Json, LakeOption, opened_lake
from .recorded import Recorded, noted

models_app = typer.Typer(cls=Recorded, help="Model packages of the lake.", no_args_is_help=True)


@models_app.command("list")
def models_list(lake: LakeOption, as_json: Json = False) -> None:
    """Show the packages of the lake, and the recipes that can be fetched."""
    from .show import show_models

    show_models(opened_lake(lake), as_json=as_json)


@models_app.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(help="Name of a recipe; see diastole models list.")], lake: LakeOption
) -> None:
    """Take a published model out of its package, check it, and put it into the lake."""
    from ..workers.recipes import fetch

    manifest = fetch(opened_lake(lake), name)
    noted(model=manifest.ref, digest=manifest.model_digest)
    print(f"{manifest.ref} is in the lake; licence {manifest.licence}; digest {manifest.model_digest}")


@models_app.command("add")
def models_add(
    folder: Annotated[Path, typer.Argument(help="A folder with model.yaml and its files.")], lake: LakeOption
) -> None:
    """Put a package of your own into the lake."""
    from ..lake.models import add_folder

    manifest = add_folder(opened_lake(lake), folder)
    noted(model=manifest.ref, digest=manifest.model_digest)
    print(f"{manifest.ref} is in the lake; digest {manifest.model_digest}")


@models_app.command("show")
def models_show(ref: Annotated[str, typer.Argument(help="name or name@version")], lake: LakeOption) -> None:
    """Show a package: contract, options, licence, where it came from."""
    from ..lake.models import load
    from .show import print_json

    manifest = load(opened_lake(lake), ref)
    print_json({**manifest.model_dump(mode="json", exclude_defaults=True), "model_digest": manifest.model_digest})


def tune(
    model: Annotated[str, typer.Argument(help="name or name@version")],
    lake: LakeOption,
    dataset: Annotated[str | None, typer.Option(help="Measure on items of this dataset; by default the first.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over the columns of its items.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="So many items; by default as many as take a while.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to measure.")] = "auto",
    forget: Annotated[
        bool, typer.Option("--forget", help="Measure nothing; run the model as its package says.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how a model's networks run best on this machine, within its tolerance, and keep that for plans."""
    from ..workers.process import prepare

    if not forget:
        prepare()  # before libraries that start threads are imported
    from .show import note, print_json
    from .tune import forget as forget_choice
    from .tune import show_tuned, tune

    if forget:
        print(forget_choice(opened_lake(lake), model, device))
        return
    found = tune(opened_lake(lake), model, dataset, where, items, device, note)
    if as_json:
        print_json(found)
    else:
        show_tuned(found)
