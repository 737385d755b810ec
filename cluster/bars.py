"""Progress bars, with rate and time left."""

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ..jobs.plan import Plan
from ..jobs.receipts import Receipt
from ..lake import integrity
from ..lake.layout import Lake
from .driver import Progress


class _Bar:
    """A progress bar on standard error, with rate and time left; nothing where standard error is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        rate = TextColumn("{task.fields[rate]}")
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()]
        self._bars = Bars(
            *columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True
        )
        self._bar: Any = None

    def __enter__(self) -> Any:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self._bars.add_task(what, total=total, completed=done, rate="")
        speed = self._bars.tasks[self._bar].speed
        self._bars.update(self._bar, completed=done, total=total, rate=f"{speed:.1f}/s" if speed else "")


class IngestBar(_Bar):
    """Progress of an ingest, in sources."""

    def update(self, done: int, total: int) -> None:
        """So many sources of all are done."""
        self._show("ingest", done, total)


class CheckBar(_Bar):
    """Progress of a check, in files."""

    def __init__(self, lake: Lake, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._total = integrity.count(lake) if not self._bars.disable else 0

    def update(self, done: int) -> None:
        """So many files were looked at."""
        self._show("check", done, self._total)


class RunBar(_Bar, Progress):
    """Progress of a run, in units."""

    def planned(self, plan: Plan, done: int, *, resumed: bool) -> None:
        """A run begins."""
        self._done, self._total = done, plan.units.num_rows
        if resumed:
            print(f"resuming run {plan.run_id[:8]}: {done} of {self._total} units are done", file=sys.stderr)
        self._show(plan.job["name"], done, self._total)

    def advanced(self, receipt: Receipt) -> None:
        """A shard is done."""
        self._done += receipt.scored + receipt.failed
        self._show("", self._done, self._total)

    def noted(self, text: str) -> None:
        """A line of its own."""
        print(f"note: {text}", file=sys.stderr)
