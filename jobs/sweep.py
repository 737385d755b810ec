"""Sweep: what nothing refers to any more is removed, when it is old enough. The lake is held alone meanwhile.

Of each place first the fence of the table is raised whose writers could refer to what lies there: one who slept past its
lease then fails to commit, opens the table anew, and is told (leases.Held). Only then it is looked at again, and removed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from ..lake import crash, delta, integrity, leases
from ..lake.errors import EnvironmentFailure, LakeError
from ..lake.layout import Lake
from .orphans import Orphan, Place, needed, places, size, why

GRACE = 7 * 86400.0
"""Seconds for which what nothing refers to stays: time travel, and readers of what a compaction has replaced."""
KINDS = ("predictions", "current", "maps", "arrays", "packs", "tables", "unfinished")
LOOK_SECONDS = 1.0
"""Between two looks at the lease."""
EMPTIED = ("datasets", "predictions", "current", "maps")
"""Where removing leaves empty folders."""


@dataclass
class Swept:
    """What a sweep removed, or would remove."""

    removed: dict[str, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(KINDS, (0, 0)))
    """(files, bytes) by kind. A file in `current/` may be the same bytes as one in `predictions/`."""
    left: dict[str, str] = field(default_factory=dict)
    """Places that were left as they are, and why."""

    def add(self, kind: str, orphans: Sequence[Orphan]) -> None:
        """Count in."""
        (files, total), (more, more_bytes) = self.removed[kind], size(orphans)
        self.removed[kind] = (files + more, total + more_bytes)


def sweep(lake: Lake, grace: float = GRACE, *, dry_run: bool = False, wait: float = 0.0) -> Swept:
    """Remove what nothing refers to and what was last modified, or given up by its table, `grace` seconds ago or before.

    Raises BusyError while a run, an ingest or another that wants the lake alone holds it for longer than `wait`
    seconds; LakeError where it cannot be said what unfinished runs need.
    """
    # pyo3 turns what it cannot name into its own errors, so a damaged log may raise any of these.
    from deltalake.exceptions import DeltaError

    swept = Swept()
    with leases.exclusive(lake, "sweep", wait) as lease:
        before, kept = time.time() - grace, needed(lake)
        for place in places(lake, kept, before):
            try:
                dead = place.find()
                if dead and not dry_run:
                    dead = _remove(lake, place, lease)
                swept.add(place.kind, dead)
            except (LakeError, EnvironmentFailure, DeltaError, OSError, ValueError, pa.ArrowException) as error:
                swept.left[place.path] = why(error)
        if not dry_run:
            lease.check()
            for room in EMPTIED:
                lake.store.prune(room)
    return swept


def _remove(lake: Lake, place: Place, lease: leases.Lease) -> list[Orphan]:
    """Remove a place's orphans, as they are once nobody can refer to them any more."""
    crash.point("sweep-begin")
    lease.check()
    if place.table is not None:
        delta.raise_fence(lake, place.table)
    crash.point("sweep-fenced")
    dead = place.find()
    lease.check()
    paths = [file.path for orphan in dead for file in orphan.files]
    if place.kind == "predictions":
        _hand_over(lake, place.path, paths)
    integrity.forget(lake, paths)  # before the files: killed in between, `check` misses nothing
    crash.point("sweep-forgotten")
    looked = time.monotonic()
    lease.check()
    for orphan in dead:
        for file in orphan.order:
            if time.monotonic() - looked > LOOK_SECONDS:
                lease.check()
                looked = time.monotonic()
            lake.store.delete(file.path)
            crash.point("sweep-removing")
    crash.point("sweep-removed")
    return dead


def _hand_over(lake: Lake, path: str, gone: Sequence[str]) -> None:
    """A file that `current/` still shows is recorded under its name there, now that its name in `predictions/` goes."""
    output = path.partition("/")[2]
    table = delta.open_table(lake, lake.current(output))
    shown = {file["path"] for file in delta.files_of(table)} if table is not None else set()
    both = [name for name in (p.removeprefix(f"{path}/") for p in gone) if name in shown]
    if both:
        recorded = integrity.Recorded(lake)
        known = [(name, file) for name in both if (file := recorded.get(f"{path}/{name}")) is not None]
        files = [integrity.FileRecord(f"{lake.current(output)}/{n}", f.bytes, f.sha256) for n, f in known]
        integrity.renew(lake, files, "sweep")
