"""Withdrawal: what a lake has of a subject, gone from every copy.

First the subject is suppressed, at once: no plan, commit or ingest takes it up from then on. The rest has the lake alone.
Each step looks at storage for what is left to do, so that the same call goes on wherever another was killed: ids are
written down with the subject before the rows that tell them go.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from ..lake import crash, delta, integrity, leases, quarantine, statistics, suppressed, variants
from ..lake.errors import BusyError, CommitError
from ..lake.ids import sha256_bytes
from ..lake.items import read_sources
from ..lake.layout import Lake
from ..lake.suppressed import Suppressed
from . import repack, runs
from .erase import WRITTEN_ANEW, count, erase
from .plan import Plan, holds
from .withdraw_rules import by_id, items_rule, sources_of, sources_rule

EndRun = Callable[[Lake, Plan], str]
"""Ends an unfinished run: gives it up, or records it as done where its rows are published."""


@dataclass
class Withdrawn:
    """What a withdrawal did, or would do."""

    subjects: list[str]
    """Subject ids."""
    unknown: int = 0
    """Subjects of which the lake has nothing, and never had: suppressed all the same."""
    items: dict[str, int] = field(default_factory=dict)
    """By dataset."""
    shared: int = 0
    """Those of them that have samples of others too; their files, ingested again, come back without these subjects'."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of predictions, items and details, by output."""
    maps: int = 0
    """Items of which there were maps."""
    arrays: int = 0
    """Arrays and packs that nothing refers to any more."""
    packs: int = 0
    """Packs that were written anew without them."""
    damaged: int = 0
    """Items of others in these that could not be read; `ingest --verify` heals them."""
    statistics: int = 0
    """Of datasets that held them: `diastole stats` makes those of the rest."""
    runs: list[str] = field(default_factory=list)
    """Unfinished runs that held them, and were ended; their jobs are planned anew."""


def withdraw(lake: Lake, subjects: Sequence[str], end_run: EndRun, wait: float = 0.0) -> Withdrawn:
    """Remove all that is of some subjects, by id, and of items derived from theirs; keep it away for good.

    Raises BusyError where a run or an ingest holds the lake for longer than `wait` seconds: the subjects are suppressed
    then, and the same call removes what is there later. Called again it changes nothing.
    """
    found = _Lake(lake, Suppressed(frozenset(subjects)))
    for subject in subjects:
        suppressed.suppress(lake, subject, Suppressed(items=found.items_of([subject])) | found.shared_with([subject]))
    crash.point("withdraw-suppressed")
    try:
        with leases.exclusive(lake, "withdrawal", wait) as lease:
            return _Withdrawal(lake, subjects, end_run, lease.check).run()
    except BusyError as error:
        raise BusyError(
            f"{len(subjects)} subjects are suppressed from now on, and nothing more of them is published; "
            f"what is there is removed by the same command, later: {error}"
        ) from None


def would_withdraw(lake: Lake, subjects: Sequence[str]) -> Withdrawn:
    """What a withdrawal would do; nothing is written."""
    found = _Lake(lake, suppressed.read(lake, subjects))
    done = found.begun(subjects)
    for output in _outputs(lake):
        if rows := count(lake, lake.predictions(output), by_id("item_id", found.items)):
            done.rows[output] = rows
        done.maps += len(_map_folders(lake, output, found.items))
    done.packs = sum(len(holed) for holed in found.holed.values())
    done.statistics = sum(len(statistics.stored(lake, dataset)) for dataset in found.counts)
    done.runs = [plan.run_id for plan in found.to_end]
    return done


class _Lake:
    """What a lake has of subjects, and what it keeps."""

    def __init__(self, lake: Lake, known: Suppressed) -> None:
        self._lake, self._known = lake, known
        self.rows = {dataset: repack.rows_of(lake, dataset) for dataset in lake.datasets()}
        self.gone = known | Suppressed(items=known.items | self.items_of(known.subjects))
        self.gone |= self.shared_with(known.subjects) | self._sources()
        self.items = self.gone.items | self.gone.pending
        """All that go, those also that may come back."""

    def items_of(self, subjects: Collection[str]) -> frozenset[str]:
        """Items of subjects, and what is derived from them, and so on."""
        found: set[str] = set()
        new = self._where("subject_id", subjects)
        while new:
            found |= new
            new = self._where("derived_from", new) - found
        return frozenset(found)

    def shared_with(self, subjects: Collection[str]) -> Suppressed:
        """Items of others, or of nobody, in which subjects are samples. One that cannot be read counts: who knows whose."""
        theirs, wanted = self.gone.items | self.items_of(subjects), frozenset(subjects)
        arrays = {array for array, ids in self._samples.items() if ids is not None and not ids.isdisjoint(wanted)}
        unread = {array for array, ids in self._samples.items() if ids is None}
        items = self._where("array", arrays | unread) - theirs
        return Suppressed(arrays=frozenset(arrays & self._where("item_id", items, "array")), pending=frozenset(items))

    def begun(self, subjects: Sequence[str]) -> Withdrawn:
        """What is known before anything is done."""
        shared = sum(
            pc.sum(by_id("item_id", self.gone.pending).meant(rows)).as_py() or 0 for rows in self.rows.values()
        )
        unknown = sum(not self._is_known(subject) for subject in subjects)
        return Withdrawn(list(subjects), unknown=unknown, items=self.counts, shared=shared)

    @property
    def counts(self) -> dict[str, int]:
        """Items that go, by dataset."""
        found = {dataset: rows.num_rows - self.left(dataset).num_rows for dataset, rows in self.rows.items()}
        return {dataset: number for dataset, number in found.items() if number}

    def left(self, dataset: str) -> pa.Table:
        """Items that stay."""
        return by_id("item_id", self.items).left(self.rows[dataset])

    @cached_property
    def _unfinished(self) -> list[Plan]:
        ids = [r for r in runs.list_runs(self._lake) if runs.read_record(self._lake, r) is None]
        return [runs.read_plan(self._lake, run) for run in ids]

    @cached_property
    def _holding(self) -> list[Plan]:
        return [plan for plan in self._unfinished if pc.any(holds(plan, self.gone)).as_py()]

    @cached_property
    def holed(self) -> dict[str, dict[str, pa.Table]]:
        """Packs that are to be written anew, by dataset, with what stays of each."""
        planned = _planned([plan for plan in self._unfinished if plan not in self._holding])
        return {
            dataset: repack.with_holes(self._lake, self.left(dataset), _below(planned, f"datasets/{dataset}/"))
            for dataset in self.rows
        }

    @cached_property
    def to_end(self) -> list[Plan]:
        """Unfinished runs that hold what goes, or read a pack that is written anew."""
        holed = {pack for packs in self.holed.values() for pack in packs}
        return [p for p in self._unfinished if p in self._holding or not holed.isdisjoint(_arrays(_planned([p])))]

    @cached_property
    def kept(self) -> set[str]:
        """Arrays and packs that runs which go on will read."""
        return _arrays(_planned([plan for plan in self._unfinished if plan not in self.to_end]))

    @cached_property
    def _samples(self) -> dict[str, frozenset[str] | None]:
        arrays = pc.unique(
            pa.chunked_array([c for rows in self.rows.values() for c in rows["array"].chunks], pa.string())
        )
        return variants.samples_of(self._lake, arrays.drop_null().to_pylist())

    def _is_known(self, subject: str) -> bool:
        """Whether it has an item here, or ever had."""
        known = suppressed.read(self._lake, [subject])
        return bool(known.items or known.arrays or self.items_of([subject]) or self.shared_with([subject]).arrays)

    def _where(self, column: str, values: Collection[str], what: str = "item_id") -> set[str]:
        rule = by_id(column, values)
        return {found for rows in self.rows.values() for found in rows.filter(rule.meant(rows))[what].to_pylist()}

    def _sources(self) -> Suppressed:
        """Which files they came from; what is in them, unless another's file holds the same."""
        tables = [read_sources(self._lake, dataset) for dataset in self.rows]
        split = [(rows, sources_of(rows, self.gone)[1]) for rows in tables]
        theirs = [rows.filter(mask) for rows, mask in split]
        keys = {key for rows in theirs for key in rows["source_key"].to_pylist()}
        digests = {digest for rows in theirs for digest in rows["source_digest"].drop_null().to_pylist()}
        same = by_id("source_digest", digests)
        others = [rows.filter(pc.and_(same.meant(rows), pc.invert(mask)))["source_digest"] for rows, mask in split]
        digests -= {digest for column in others for digest in column.to_pylist()}
        return Suppressed(
            sources=frozenset(keys), contents=frozenset(suppressed.content_id(self._lake, d) for d in digests)
        )


class _Withdrawal:
    """One that has the lake alone. `check` raises where it has it no more."""

    def __init__(self, lake: Lake, subjects: Sequence[str], end_run: EndRun, check: Callable[[], None]) -> None:
        self._lake, self._subjects, self._end_run, self._check = lake, subjects, end_run, check
        self._found = _Lake(lake, suppressed.read(lake, subjects))
        self._gone = self._found.gone
        self._items = self._found.items
        self._ids = self._items | self._gone.subjects
        self.done = self._found.begun(subjects)

    def run(self) -> Withdrawn:
        """All steps."""
        for subject in self._subjects:
            suppressed.add(self._lake, subject, self._gone)
        crash.point("withdraw-found")
        self._end_runs()
        crash.point("withdraw-runs")
        self._recorded = integrity.Recorded(self._lake)  # with what a run that has just ended recorded
        for output in _outputs(self._lake):
            self._check()
            self._output(output)
        crash.point("withdraw-outputs")
        used: set[str] = set(self._found.kept)
        for dataset in self._found.rows:
            self._check()
            used |= self._dataset(dataset)
        crash.point("withdraw-datasets")
        by_source = by_id("source_key", self._gone.sources)
        erase(self._lake, quarantine.PATH, by_source, self._ids, self._recorded)
        self._integrity(used)
        _drop_leftovers(self._lake)
        crash.point("withdraw-end")
        for subject in self._subjects:
            suppressed.settle(self._lake, subject)
        return self.done

    def _end_runs(self) -> None:
        for plan in self._found.to_end:
            self.done.runs.append(plan.run_id)
            with suppress(CommitError):  # damaged: what it has published stays, the rest is planned anew
                self._end_run(self._lake, plan)
            runs.write_record(self._lake, plan.run_id, {"state": "abandoned"})  # unless it has its record

    def _output(self, output: str) -> None:
        """Rows of what people query, of what was published and of what never was; then maps."""
        rule = by_id("item_id", self._items)
        erase(self._lake, self._lake.current(output), rule, self._ids, self._recorded)
        path = self._lake.predictions(output)
        erased = erase(self._lake, path, rule, self._ids, self._recorded, history=True)
        integrity.renew(self._lake, _unrecorded(self._lake, path, self._recorded), "withdrawal")
        if erased.rows:
            self.done.rows[output] = erased.rows
        crash.point("withdraw-rows")
        for folder in _map_folders(self._lake, output, self._items):
            repack.remove(self._lake, folder)
            self.done.maps += 1

    def _dataset(self, dataset: str) -> set[str]:
        """Items and sources, then what lies behind them. Arrays and packs that are still in use."""
        lake = self._lake
        if dataset in self.done.items:  # while the rows tell that its statistics cover what goes
            self.done.statistics += statistics.drop(lake, dataset)
            crash.point("withdraw-statistics")
        moved = repack.repack(lake, self._found.holed[dataset])
        integrity.renew(lake, moved.files, "withdrawal")
        crash.point("withdraw-packed")
        erase(lake, lake.dataset(dataset, "items"), items_rule(self._items, moved), self._ids, self._recorded)
        crash.point("withdraw-items")
        erase(lake, lake.dataset(dataset, "sources"), sources_rule(self._gone), self._ids, self._recorded)
        # A pack that was to be written anew goes, also where items of others in it are damaged and could not move.
        used = (_arrays(repack.rows_of(lake, dataset)) - set(self._found.holed[dataset])) | self._found.kept
        self.done.arrays += repack.drop_unused(lake, dataset, used)
        self.done.packs += moved.packs
        self.done.damaged += moved.damaged
        return used

    def _integrity(self, used: Collection[str]) -> None:
        """What is said of files that are gone: of arrays that are not in use, of maps and of parts."""

        def gone(path: str) -> bool:
            room, *rest = path.split("/")
            if room == "maps":
                return not self._items.isdisjoint(rest)
            if room == "datasets":
                return "/".join(path.split("/")[:4]) not in used
            return room in ("predictions", "current") and self._lake.store.size(path) is None and path not in self._live

        paths = {path for path in integrity.read(self._lake)["path"].to_pylist() if gone(path)}
        erase(self._lake, integrity.PATH, by_id("path", paths), self._ids, self._recorded)

    @cached_property
    def _live(self) -> set[str]:
        """Part files of present tables: that one of them is missing must stay known."""
        outputs = _outputs(self._lake)
        paths = [path(output) for output in outputs for path in (self._lake.predictions, self._lake.current)]
        return {
            f"{p}/{file['path']}" for p in paths if (t := delta.open_table(self._lake, p)) for file in delta.files_of(t)
        }


def _planned(plans: Iterable[Plan]) -> pa.Table:
    """Arrays and packs that plans will read: `PLACES`."""
    chunks = [pc.list_flatten(chunk) for plan in plans for chunk in plan.units["inputs"].chunks]
    columns = [[chunk.field(name) for chunk in chunks] for name in repack.PLACES.names]
    return pa.table([pa.chunked_array(c, f.type) for c, f in zip(columns, repack.PLACES, strict=True)], repack.PLACES)


def _below(places: pa.Table, prefix: str) -> pa.Table:
    return places.filter(pc.starts_with(places["array"], prefix))


def _arrays(places: pa.Table) -> set[str]:
    return set(pc.unique(places["array"]).to_pylist())


def _outputs(lake: Lake) -> list[str]:
    return sorted({o for room in ("predictions", "current", "maps") for o in lake.store.folders(room)})


def _map_folders(lake: Lake, output: str, gone: Collection[str]) -> list[str]:
    """Folders of items' maps, maps/OUTPUT/RUN/SHARD.N/ITEM: also of runs that never published."""
    top = lake.maps(output)
    if lake.store.local is not None:  # a folder's name tells the item even where nothing is in it
        found = {p.relative_to(lake.store.local).as_posix() for p in lake.store.path(top).glob("*/*/*")}
    else:
        found = {"/".join(path.split("/")[:5]) for path, _ in lake.store.list(top)}
    return sorted(path for path in found if path.rsplit("/", 1)[1] in gone)


def _unrecorded(lake: Lake, path: str, recorded: integrity.Recorded) -> list[integrity.FileRecord]:
    """Files that a withdrawal has put into a table, this one or one that was killed then, hashed."""
    table = delta.open_table(lake, path)
    live = [] if table is None else [f"{path}/{file['path']}" for file in delta.files_of(table)]
    new = [file for file in live if WRITTEN_ANEW.search(file) and recorded.get(file) is None]
    return [
        integrity.FileRecord(file, len(data), sha256_bytes(data)) for file in new for data in [lake.store.get(file)]
    ]


def _drop_leftovers(lake: Lake) -> None:
    """What writers that were killed left half-written, under names of its own."""
    if lake.store.local is None:
        return  # object stores have no such thing
    for room in ("datasets", "predictions", "current", "maps"):
        for path in lake.store.path(room).rglob(".part-*"):
            path.unlink(missing_ok=True)
