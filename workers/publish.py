"""What an ingest is about to write, collected over many sources, judged against what is there, and written in order.

Order: files into `integrity`, then items, then quarantine, then sources. A source is done only by its row in
`sources`, so a kill anywhere leaves sources that the next ingest reads again, and finds their items there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from diastole.lake import crash, delta, integrity, items, packs, quarantine, sequences, suppressed, variants
from diastole.lake.layout import Lake

from .packs import DamagedPacks, put_images, put_letters
from .rows import Claim, Row

if TYPE_CHECKING:
    from deltalake import DeltaTable

CLAIMS, SOURCES, BYTES = 20_000, 200, 256 * 2**20
"""Claims, sources, or bytes of arrays and letters after which what was collected is written."""
IMAGES, IMAGE_SOURCES = 2**16, 5_000
"""Claims and sources likewise where they are of images: small ones wait for a pack that is worth its files."""
IF_FAILED = "options_if_failed"
_STORED = ("array", "row", "ingested_at")
"""Columns that say where and when, not what."""


@dataclass
class Counts:
    """Items by what became of them, and sources that failed by code."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    healed: int = 0
    withdrawn: int = 0
    """Sources of withdrawn subjects."""
    quarantined: dict[str, int] = field(default_factory=dict)


@dataclass
class OpenSource:
    """A source whose claims come in: its row of `sources`, and what it claimed so far."""

    row: Row
    """Of its first file. What is under IF_FAILED stands for its `options_digest` if it fails: with the limits, since
    raising them may mend it."""
    others: list[Row] = field(default_factory=list)
    """Rows of its other files, where it has several."""
    before: frozenset[str] = frozenset()
    """Keys of files that were parts of it, and are not any more."""
    seen: dict[str, str] = field(default_factory=dict)
    """item_id → content_digest of each claim."""
    conflicts: int = 0
    failure: tuple[str, str] | None = None
    images: bool = False
    """Whether it has images."""
    keep: bool = False
    """Whether its items stay as they were, since it was not decoded."""
    items: list[str] | None = None
    """Its items where they are those of another source that holds the same."""
    copy_of: "OpenSource | None" = None
    """That source, where this ingest has read it, before this one: its items are known when it is done."""
    forgets: bool = False
    """Whether the items that it had are not its own any more: it was a part of a source that is no more."""
    withdrawn: bool = False
    """Whether its subject was withdrawn since the ingest began."""
    vanished: bool = False
    """Whether it is not there any more."""

    @property
    def rows(self) -> list[Row]:
        """Of all of its files."""
        return [self.row, *self.others]

    @property
    def refused(self) -> bool:
        """Whether nothing may be kept of it."""
        return self.withdrawn or (self.copy_of is not None and self.copy_of.withdrawn)

    @property
    def keys(self) -> set[str]:
        """Of all of its files, also of those that it had before."""
        return {row["source_key"] for row in self.rows} | self.before


class Ledger:
    """Claims and finished sources of one dataset; `settle` writes them. Used by one thread."""

    def __init__(
        self,
        lake: Lake,
        dataset: str,
        known: pa.Table | None = None,
        found: Callable[[str], bool] = lambda _: False,
        recorded: integrity.Recorded | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self.found = found
        """Whether this ingest has found a source, by its key."""
        self.packs = None if recorded is None else DamagedPacks(lake, recorded)
        """Set where what is stored is verified."""
        self.check = check
        """Raises where what was stored may have been swept before a row refers to it."""
        self._lake, self._dataset = lake, dataset
        self._known = items.read_sources(lake, dataset) if known is None else known
        self._fresh: dict[str, list[str]] = {}  # source_key → items of what was written since
        self._changed: dict[str, Row] = {}  # rows of those of them that were not read
        self._holders: dict[str, set[str]] = {}  # item_id → keys of those of them that claim it
        self._at: dict[str, int | None] = {}
        self._events: list[tuple[OpenSource, Claim | None]] = []
        self._bytes, self._done = 0, 0.0

    def items_of(self, source_key: str) -> list[str]:
        """The items that a source gave when it was last read."""
        if source_key in self._fresh:
            return self._fresh[source_key]
        row = self.row(source_key)
        return [] if row is None else row["items"] or []

    def claim(self, source: OpenSource, claim: Claim) -> None:
        """Take in an item of a source."""
        nbytes = claim.row["nbytes"]
        if claim.image is not None and self._bytes + nbytes > packs.PACK_BYTES:
            self.settle()  # before it, so that packs are full and no image is left over
        self._events.append((source, claim))
        self._bytes += nbytes
        source.images |= claim.image is not None
        claims = CLAIMS if claim.image is None else IMAGES
        if len(self._events) >= claims or self._bytes >= min(BYTES, sequences.PACK_BYTES if claim.letters else BYTES):
            self.settle()

    def finish(self, source: OpenSource) -> None:
        """All claims of a source are in, or it failed."""
        self._events.append((source, None))
        self._done += 1.0 / (IMAGE_SOURCES if source.images else SOURCES)
        if self._done >= 1.0:
            self.settle()

    def row(self, source_key: str) -> Row | None:
        """A source's row of `sources` as it was before this ingest, or was changed without being read; None if there is none."""
        if source_key in self._changed:
            return self._changed[source_key]
        if source_key not in self._at:
            at = pc.index(self._known["source_key"], source_key).as_py() if len(self._known) else -1
            self._at[source_key] = None if at < 0 else at
        at = self._at[source_key]
        return None if at is None else {name: self._known[name][at].as_py() for name in items.SOURCES.names}

    def learn(self, rows: Mapping[str, int | None]) -> None:
        """Where the rows of sources are in `known`, None for those that have none, so that they need not be searched."""
        self._at |= rows

    def move(self, roots: Mapping[int, str]) -> None:
        """Rows of `known` that were found below another path than before: they are looked for there from now on."""
        there = {row: root for row, root in roots.items() if self._known["source_key"][row].as_py() not in self._fresh}
        if there:
            rows = self._known.take(pa.array(list(there), pa.int64()))
            at = rows.column_names.index("root")
            items.write_sources(self._lake, self._dataset, rows.set_column(at, "root", pa.array(list(there.values()))))

    def settle(self, *, last: bool = False) -> None:
        """Write what was collected; with the `last`, also what waits for the rest of its pack."""
        events, self._events = self._events, []
        self._bytes, self._done = 0, 0.0
        if not events and not (last and self.packs):
            return
        events = self._allowed(events)
        batch = _Batch(self, self._lake, self._dataset, [c for _, c in events if c is not None])
        for source, claim in events:
            if claim is None:
                batch.finish(source)
            else:
                batch.judge(source, claim)
        for key, row in batch.write(last=last).items():
            for item_id in self._fresh.get(key, ()):
                self._holders[item_id].discard(key)
            self._fresh[key] = row["items"]
            for item_id in row["items"]:
                self._holders.setdefault(item_id, set()).add(key)
            if row["state"] == "gone" or row["source_digest"] is None:
                self._changed[key] = row

    def _allowed(self, events: list[tuple[OpenSource, Claim | None]]) -> list[tuple[OpenSource, Claim | None]]:
        """Without sources whose subject was withdrawn since this ingest began: one that slept may not bring it back."""
        gone = suppressed.subjects(self._lake)
        claims = [(source, claim.row) for source, claim in events if claim is not None] if gone else []
        samples = variants.samples_of(self._lake, (row["array"] or "" for _, row in claims))
        with_them = {path for path, ids in samples.items() if ids is None or not ids.isdisjoint(gone)}
        for source, row in claims:
            if (row["subject_id"] in gone or row["array"] in with_them) and not source.withdrawn:
                source.withdrawn = True
                self.counts.withdrawn += 1
        return [(source, claim) for source, claim in events if not source.refused]

    def owners(self, item_ids: Iterable[str]) -> dict[str, set[str]]:
        """item_id → keys of the sources that claim it, for those that any does."""
        wanted = set(item_ids)
        found = {item_id: set(self._holders[item_id]) for item_id in wanted if self._holders.get(item_id)}
        column = self._known["items"].combine_chunks()
        if wanted and len(column):
            flat, parents = pc.list_flatten(column), pc.list_parent_indices(column)
            mask = pc.is_in(flat, value_set=pa.array(wanted, pa.string()))
            keys = self._known["source_key"].take(parents.filter(mask)).to_pylist()
            for item_id, key in zip(flat.filter(mask).to_pylist(), keys, strict=True):
                if key not in self._fresh:  # else this row is older
                    found.setdefault(item_id, set()).add(key)
        return found


class _Batch:
    """One settling: the claims, what the tables have of them, and what is to be written."""

    def __init__(self, ledger: Ledger, lake: Lake, dataset: str, claims: list[Claim]) -> None:
        self._ledger, self._lake, self._dataset = ledger, lake, dataset
        self._counts = ledger.counts
        table = delta.open_table(lake, lake.dataset(dataset, "items"))
        self._version = None if table is None else table.version()
        self._there = self._rows({claim.row["item_id"] for claim in claims}, table)
        self._owners = ledger.owners(self._there)
        known = [claim for claim in claims if claim.row["item_id"] in self._there]
        plain = pa.Table.from_pylist(
            [claim.row for claim in known], items.ITEMS
        ).to_pylist()  # as it would be read back
        self._plain = {id(claim): row for claim, row in zip(known, plain, strict=True)}
        self._claimed: dict[str, str] = {}  # item_id → content_digest, of all that were taken
        self._new: dict[str, Claim] = {}  # item_id → claim to be written
        self._gone: dict[str, Row] = {}
        self._healed: dict[str, integrity.FileRecord] = {}
        self._failures: dict[str, tuple[str, str]] = {}
        self._mended: list[str] = []
        self._done: dict[str, Row] = {}
        self._held: set[str] = set()  # items of sources that are done
        self._let_go: dict[str, set[str]] = {}  # item_id → sources that held it, and in this batch do no more

    def judge(self, source: OpenSource, claim: Claim) -> None:
        """Decide whether a claim is a new item, a change, nothing new, or a conflict with another."""
        item_id, digest = claim.row["item_id"], claim.row["content_digest"]
        if claim.healed:
            self._counts.healed += 1
            self._healed |= {file.path: file for file in claim.files}
        rival = source.seen.get(item_id) or self._claimed.get(item_id)
        there = self._there.get(item_id)
        owners = self._owners.get(item_id, set())
        others = owners - source.keys
        changed = there is not None and there["state"] == "live" and there["content_digest"] != digest
        mine = bool(owners & source.keys)
        lost = {key for key in others if not self._ledger.found(key)} if changed and mine else set()
        if (changed and others - lost) or rival not in (None, digest):
            source.conflicts += 1
            return
        for key in lost:
            self._take_over(item_id, key)
        source.seen[item_id] = self._claimed[item_id] = digest
        if self._gone.pop(item_id, None) is not None:
            self._counts.gone -= 1
        if rival is not None:
            self._counts.unchanged += 1
        elif there is None:
            self._counts.added += 1
            self._new[item_id] = claim
        else:
            self._compare(claim, there, others_only=bool(others) and not mine)

    def _take_over(self, item_id: str, key: str) -> None:
        """A source that this ingest did not find, as its folder was moved, has no say in what its item becomes.

        Its row forgets the item, and that it was read: should it come back, it is read again.
        """
        row = self._done.get(key) or self._ledger.row(key)
        if row is not None:
            kept = [other for other in row["items"] if other != item_id]
            self._done[key] = {**row, "items": kept, "bytes": -1, "source_digest": None}

    def _compare(self, claim: Claim, there: Row, *, others_only: bool) -> None:
        """Keep what is there where nothing changed, and its array where only what is said of it changed."""
        row = claim.row
        same_content = there["state"] == "live" and there["content_digest"] == row["content_digest"]
        if same_content and self._ledger.packs is not None and there["row"] is not None:
            self._ledger.packs.look(claim, there)
        if same_content and (others_only or _what(self._plain[id(claim)]) == _what(there)):
            self._counts.unchanged += 1
            return
        self._counts.changed += 1
        if same_content:
            claim = Claim({**row, "array": there["array"], "row": there["row"]}, healed=claim.healed)
        self._new[row["item_id"]] = claim

    def finish(self, source: OpenSource) -> None:
        """Decide what becomes of a source, and of the items that it had and has no more."""
        if source.vanished:
            self._vanish(source)
            return
        key, keys = source.row["source_key"], source.keys
        before = list(dict.fromkeys(item for part in sorted(keys) for item in self._ledger.items_of(part)))
        failure, conflicts = source.failure, source.conflicts
        if source.copy_of is not None:
            source.items, conflicts = list(source.copy_of.seen), source.copy_of.conflicts
        if failure is None and conflicts:
            failure = (
                "id_conflict",
                f"{conflicts} of its items have the id of another item with other content; "
                "give it a key of its own in a manifest (column key), or make its record ids unique",
            )
        self._claimed.update(source.seen)  # also those that an earlier batch wrote
        now = list(source.seen) if source.items is None else source.items
        self._held.update(now)
        if failure is None and not source.keep:
            self._mended += sorted(keys)
        if source.forgets or (failure is None and not source.keep):
            self._lose(keys, set(before) - set(now))
            before = []
        if failure is not None:
            self._mended += sorted(keys - {key})
            self._failures[key] = failure
            self._counts.quarantined[failure[0]] = self._counts.quarantined.get(failure[0], 0) + 1
            for row in source.rows:
                row |= {"state": "quarantined", "options_digest": row.get(IF_FAILED, "")}
        if source.keep or failure:
            now = list(dict.fromkeys([*before, *now]))
        for row in source.rows:
            self._done[row["source_key"]] = {**row, "items": now}
        self._leave(source.before)

    def _vanish(self, source: OpenSource) -> None:
        """Decide what becomes of the items of a source that is not there any more."""
        key = source.row["source_key"]
        self._mended.append(key)
        self._lose({key}, set(self._ledger.items_of(key)))
        self._leave([key])

    def _leave(self, keys: Iterable[str]) -> None:
        for key in keys:
            row = self._done.get(key) or self._ledger.row(key)
            if row is not None:
                self._done[key] = {**row, "items": [], "state": "gone"}

    def write(self, *, last: bool = False) -> dict[str, Row]:
        """Write everything, in order, and give the rows of the sources that are done, by key."""
        files = {file.path: file for claim in self._new.values() for file in claim.files}
        renewed = dict(self._healed)
        if self._ledger.packs is not None:
            renewed |= {file.path: file for file in self._ledger.packs.put()}
            if last:
                self._move(self._ledger.packs.rest())
            self._counts.healed += self._ledger.packs.healed
            self._ledger.packs.healed = 0
        new = list(self._new.values())
        packed = [
            *put_letters(self._lake, self._dataset, new),
            *put_images(self._lake, self._dataset, new, self._ledger.packs),
        ]
        files |= {file.path: file for file in packed}
        crash.point("ingest-stored")
        self._record(files, renewed)
        crash.point("ingest-integrity")
        now = datetime.now(UTC)
        rows = [{**row, "ingested_at": now} for row in [*(c.row for c in self._new.values()), *self._gone.values()]]
        delta.ensure_table(self._lake, self._lake.dataset(self._dataset, "items"), items.ITEMS)  # also where all failed
        none_in = None if self._there or self._gone else self._version
        new_rows = pa.Table.from_pylist(rows, items.ITEMS)
        items.write_items(self._lake, self._dataset, new_rows, none_in=none_in, check=self._ledger.check)
        crash.point("ingest-items")
        if self._failures:
            quarantine.record(self._lake, self._dataset, self._failures)
        if self._mended:
            quarantine.mend(self._lake, self._dataset, self._mended)
        crash.point("ingest-quarantine")
        done = pa.Table.from_pylist(list(self._done.values()), items.SOURCES)
        self._ledger.check()
        items.write_sources(self._lake, self._dataset, done)
        return self._done

    def _record(self, files: dict[str, integrity.FileRecord], renewed: dict[str, integrity.FileRecord]) -> None:
        """Add new files to `integrity`, and put those that were written anew in place of what was recorded."""
        recorded = self._recorded({**files, **renewed})
        new = [file for path, file in {**files, **renewed}.items() if path not in recorded]
        integrity.record(self._lake, new, "ingest")
        other = [file for path, file in renewed.items() if path in recorded and recorded[path] != file.sha256]
        integrity.renew(self._lake, other, "ingest")

    def _move(self, rest: dict[str, Claim]) -> None:
        """Items of packs that could not be made whole, as sources of others of them are not here, get a new one."""
        known = self._rows(set(rest))
        self._there |= known
        for item_id, row in known.items():
            self._new.setdefault(item_id, Claim(row, letters=rest[item_id].letters, image=rest[item_id].image))

    def _lose(self, keys: set[str], item_ids: set[str]) -> None:
        """Items that their only sources do not hold any more are gone."""
        owners = self._ledger.owners(item_ids)
        left = {i for i in item_ids if not owners.get(i, set()) - keys - self._let_go.get(i, set())}
        for item_id in item_ids:
            self._let_go.setdefault(item_id, set()).update(keys)
        for item_id, row in self._rows(left).items():
            if row["state"] == "live" and item_id not in self._claimed and item_id not in self._held:
                self._counts.gone += 1
                self._gone[item_id] = {**row, "state": "gone"}

    def _rows(self, item_ids: set[str], table: "DeltaTable | None" = None) -> dict[str, Row]:
        rows = self._matching(self._lake.dataset(self._dataset, "items"), "item_id", item_ids, table)
        return {row["item_id"]: row for row in rows}

    def _recorded(self, files: dict[str, integrity.FileRecord]) -> dict[str, str]:
        """path → sha256 of what an ingest that was killed has recorded, or another item with the same content."""
        return {row["path"]: row["sha256"] for row in self._matching(integrity.PATH, "path", set(files))}

    def _matching(
        self, path: str, column: str, values: set[str], table: "DeltaTable | None" = None
    ) -> list[dict[str, Any]]:
        table = table or (delta.open_table(self._lake, path) if values else None)
        if table is None or not values:
            return []
        # Not `to_table(filter=…)`: deltalake 1.6.6 gives statistics as string_view after a merge, and pyarrow 26
        # cannot compare those with strings. New data match nothing, so one narrow column mostly answers.
        dataset, wanted = delta.dataset(table), pa.array(values, pa.string())
        with delta.storage(path):
            if not pc.any(pc.is_in(dataset.to_table([column])[column], value_set=wanted)).as_py():
                return []
            batches = (b.filter(pc.is_in(b[column], value_set=wanted)) for b in dataset.to_batches())
            return [row for batch in batches if batch.num_rows for row in batch.to_pylist()]


def _what(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in _STORED}
