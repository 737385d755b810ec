"""Where the work happens; and diastole from Python:

from diastole.cluster import open_lake, run
outcome = run("job.yaml", lake="path/to/lake")
table = open_lake("path/to/lake").predictions(outcome.output).to_pandas()
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from ..lake.layout import Lake
    from .driver import Outcome

__all__ = ["OpenLake", "open_lake", "run"]


class OpenLake:
    """A lake for people in a notebook."""

    def __init__(self, lake: "Lake") -> None:
        self.lake = lake

    def predictions(self, output: str, *, rows: bool = False) -> "pa.Table":
        """The result of each item that its job means now, or with `rows` the detail rows, as an Arrow table."""
        import pyarrow.compute as pc

        from ..lake.predictions import read_current

        return read_current(self.lake, output).to_table(filter=pc.field("level") == ("row" if rows else "item"))

    def items(self, dataset: str) -> "pa.Table":
        """The items of a dataset."""
        from ..lake.items import read_items

        return read_items(self.lake, dataset)

    def array(self, path: str, digest: str) -> Any:
        """An array or a map by its path and digest, as rows name them: (z, y, x) or (channel, time), and its meta."""
        from ..lake.arrays import read_whole

        return read_whole(self.lake, path, digest)


def open_lake(root: str) -> OpenLake:
    """Open a lake. Raises LakeError where there is none."""
    from ..lake.layout import Lake

    return OpenLake(Lake.open(root))


def run(job: "str | Path | dict[str, Any]", lake: str, *, workers: int | None = None) -> "Outcome":
    """Score what a job means and has not been scored: a job file, or the same as a dict. Raises DiastoleError.

    While it runs, this process makes files that only their owner can read, as the command line does.
    """
    from ..jobs.spec import load_job, parse_job
    from ..lake.layout import Lake
    from .driver import run_job

    spec = (parse_job(job) if isinstance(job, dict) else load_job(Path(job))).with_workers(workers)
    before = os.umask(0o077)
    try:
        return run_job(Lake.open(lake), spec)
    finally:
        os.umask(before)
