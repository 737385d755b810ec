"""Options that several commands have, and the lake that they name."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import recorded

LakeOption = Annotated[
    str,
    typer.Option(
        "--lake", envvar="DIASTOLE_LAKE", help="The lake: a folder, or s3://, gs://, az://", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output, nothing else.")]
JobFile = Annotated[Path, typer.Argument(help="The job file (YAML); see examples/ and diastole schema.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many units.")]
Rows = Annotated[int | None, typer.Option("--limit", min=1, help="Rows to show; without it 20, and all with --json.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this item id; may be given again.")]
Retry = Annotated[bool, typer.Option("--retry", help="Also score what failed before.")]
IgnoreErrors = Annotated[bool, typer.Option("--ignore-errors", help="Go on whatever share of the units fails.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Over the job's; 0 is this process.")]
DatasetArgument = Annotated[str, typer.Argument(help="Name of the dataset.")]


def opened_lake(root: str) -> Any:
    """The lake at a root. The command that opens it is recorded there as it ends."""
    from ..lake.layout import Lake

    lake = Lake.open(root)
    recorded.begin(lake)
    return lake
