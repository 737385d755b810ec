"""Ingest: files into a dataset of the lake. What did not change is not even opened; what cannot be read stops nothing."""

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from diastole.lake import integrity, leases, quarantine, suppressed
from diastole.lake.errors import ItemError
from diastole.lake.ids import sha256_file
from diastole.lake.layout import Lake, check_name

from . import rows
from .decode import Decoded, Decoder
from .formats import Limits, ReadOptions
from .publish import Ledger, OpenSource
from .sources import IngestOptions, Source, find

__all__ = ["IngestOptions", "IngestReport", "ingest"]

Progress = Callable[[int, int], None]
"""Called with the number of files that are done, and of all."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did."""

    files: int
    """Sources found."""
    opened: int
    """Sources that were opened; the others had not changed."""
    added: int
    """Items, like the next three."""
    changed: int
    unchanged: int
    gone: int
    """Items that their source does not hold any more."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Sources that failed in this ingest, by error code."""
    still_quarantined: int = 0
    """Sources that failed earlier, did not change, and were not tried again; `retry` tries them."""
    bytes: int = 0
    """Size of the sources that were opened."""
    seconds: float = 0.0
    healed: int = 0
    """Items whose stored data were damaged or missing and were written anew; `verify` looks."""
    withdrawn: int = 0
    """Sources that were refused with the code `withdrawn`: their subject's consent was. Nothing of them was kept."""


@dataclass(frozen=True)
class _Read:
    """A source after its thread is done with it."""

    source: Source
    open: OpenSource
    claims: list[rows.Claim] = field(default_factory=list)
    decoded: Decoded | None = None
    """Set where sequences or images are still to be taken from it."""
    withdrawn: bool = False
    """Whether it holds what a withdrawn file held."""


def ingest(
    lake: Lake,
    dataset: str,
    paths: Sequence[Path | str],
    options: IngestOptions | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring files and folders into a dataset, so that it holds what they hold now.

    Items whose file was deleted at the source stay as they are: that a file is not there is not noticed yet. A file that
    was moved keeps its item where its key is the same (a manifest's, BIDS entities, the path below the named folder).

    Raises SpecError or LakeError for what the user can mend, EnvironmentFailure where storage fails; a file that
    cannot be read goes to quarantine, and the others go on. Killed anywhere, the next ingest mends it.
    """
    options = options or IngestOptions()
    check_name("dataset", dataset)
    with leases.shared(lake, f"ingest into {dataset}") as held:
        return _ingest(lake, dataset, paths, options, progress, held)


def _ingest(
    lake: Lake,
    dataset: str,
    paths: Sequence[Path | str],
    options: IngestOptions,
    progress: Progress | None,
    held: leases.Held,
) -> IngestReport:
    started = time.monotonic()
    sources, folders = find(paths, options)
    keys = [lake.source_key(str(source.path)) for source in sources]
    run = _Ingest(lake, dataset, options, frozenset(keys), held)
    try:
        for folder in folders:
            run.opened_folder(folder)
        for done, source in enumerate(sources, 1):
            run.take(source, keys[done - 1])
            if progress is not None:
                progress(done - len(run.reading), len(sources))
        run.finish()
    finally:
        run.close()
    if progress is not None:
        progress(len(sources), len(sources))
    c = run.ledger.counts
    counts = (len(sources), run.opened, c.added, c.changed, c.unchanged, c.gone, c.quarantined)
    return IngestReport(*counts, run.still_quarantined, run.bytes, time.monotonic() - started, c.healed, c.withdrawn)


class _Ingest:
    """Threads that each read one source in a decoder of their own, and one ledger that takes them in their order."""

    def __init__(
        self, lake: Lake, dataset: str, options: IngestOptions, found: frozenset[str], held: leases.Held
    ) -> None:
        self._lake, self._dataset, self._options = lake, dataset, options
        self._said = ReadOptions(Limits(options.max_item_bytes), options.alphabet)
        self._recorded = integrity.Recorded(lake) if options.verify else None
        self._gone = suppressed.read(lake)
        self._refused: list[str] = []
        self.ledger = Ledger(lake, dataset, found, self._recorded, held.check)
        self._decoders = [Decoder(deadline_s=options.deadline_s) for _ in range(options.workers)]
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._free.put(decoder)
        self._pool = ThreadPoolExecutor(options.workers, thread_name_prefix="ingest")
        self.reading: deque[Future[_Read]] = deque()
        self.opened = self.bytes = self.still_quarantined = 0

    def opened_folder(self, folder: Path) -> None:
        """A folder that could not be listed once, and now can, leaves the quarantine."""
        key = self._lake.source_key(str(folder))
        known = self.ledger.known(key)
        if known is not None and known["state"] == "quarantined":
            row = _source_row(key, Source(folder, ""), self._options)
            self.ledger.finish(OpenSource(row))

    def take(self, source: Source, key: str) -> None:
        """Pass over a source that did not change; else read it, when there is room."""
        known = self.ledger.known(key)
        if self._gone and self._is_withdrawn(source, key):
            self._refuse(key, known)
            return
        row = _source_row(key, source, self._options)
        if known is not None and not self._changed(known, row, source):
            if known["state"] == "ingested":
                self.ledger.counts.unchanged += len(self.ledger.items_of(key))
            else:
                self.still_quarantined += 1
            return
        while len(self.reading) >= self._options.workers:
            self._enter(self.reading.popleft().result())
        self.opened += 1
        self.bytes += max(row["bytes"], 0)
        self.reading.append(self._pool.submit(self._read, source, row, known))

    def finish(self) -> None:
        """Take in what is still being read, and write the rest."""
        while self.reading:
            self._enter(self.reading.popleft().result())
        self.ledger.settle(last=True)
        if self._refused:
            quarantine.mend(self._lake, self._dataset, self._refused)

    def close(self) -> None:
        """End all threads and decoders."""
        for future in self.reading:
            future.cancel()
        for decoder in self._decoders:
            decoder.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _is_withdrawn(self, source: Source, key: str) -> bool:
        """Whether a source is of a withdrawn subject, before it is opened: by who is said to be its subject, by what it is
        derived from, or, where no subject is said, as its path or its natural key were a withdrawn one's.
        """
        parent = rows.derived_from(self._lake, self._dataset, source.said.get("derived_from"))
        if parent in self._gone.items:
            return True
        if source.subject is not None:
            return self._lake.subject_id(source.subject) in self._gone.subjects
        return key in self._gone.sources or self._lake.item_id(self._dataset, source.natural_key) in self._gone.items

    def _refuse(self, key: str, known: rows.Row | None) -> None:
        """Nothing of it is kept, not even that it once could not be read."""
        self.ledger.counts.withdrawn += 1
        if known is not None and known["state"] == "quarantined":
            self._refused.append(key)

    def _changed(self, known: rows.Row, row: rows.Row, source: Source) -> bool:
        if self._options.verify:
            return True
        if known["state"] == "quarantined":
            row = {**row, "options_digest": source.options_digest(self._options, with_limits=True)}
            if self._options.retry:
                return True
        return any(known[name] != row[name] for name in ("bytes", "modified_ns", "options_digest"))

    def _read(self, source: Source, row: rows.Row, known: rows.Row | None) -> _Read:
        """In a thread: hash, decode and, for arrays, write. A failure of the item is its outcome."""
        opened = OpenSource(row, source.options_digest(self._options, with_limits=True))
        try:
            if source.refused:
                raise ItemError("unreadable", source.refused)
            row["source_digest"] = _sha256(source.path)
            if self._gone.contents and suppressed.content_id(self._lake, row["source_digest"]) in self._gone.contents:
                return _Read(source, opened, withdrawn=True)
            if known is not None and not self._options.verify and self._same(known, row):
                opened.keep = True
                return _Read(source, opened)
            claims, decoded = self._decode(source)
            if _stat(source.path) != (row["bytes"], row["modified_ns"]):
                if decoded is not None:
                    decoded.discard()
                raise ItemError("unreadable", "it changed while it was read; ingest again when it is whole")
            return _Read(source, opened, claims, decoded)
        except ItemError as error:
            opened.failure = (error.code, str(error))
            return _Read(source, opened)

    def _same(self, known: rows.Row, row: rows.Row) -> bool:
        return known["state"] == "ingested" and all(known[k] == row[k] for k in ("source_digest", "options_digest"))

    def _decode(self, source: Source) -> tuple[list[rows.Claim], Decoded | None]:
        decoder = self._free.get()
        try:
            decoded = decoder.decode(source.path, self._options.format, self._said)
        finally:
            self._free.put(decoder)
        if any(entry.get("kind") in ("sequences", "images") for entry in decoded.entries):
            return [], decoded
        try:
            return rows.store_arrays(self._lake, self._dataset, source, self._options, decoded, self._recorded), None
        finally:
            decoded.discard()

    def _enter(self, read: _Read) -> None:
        """Give a source's claims to the ledger."""
        source, opened = read.source, read.open
        if read.withdrawn:
            self._refuse(opened.row["source_key"], self.ledger.known(opened.row["source_key"]))
            return
        if opened.keep:
            self.ledger.counts.unchanged += len(self.ledger.items_of(opened.row["source_key"]))
        for claim in read.claims:
            self.ledger.claim(opened, claim)
        if read.decoded is not None:
            try:
                said = (self._lake, self._dataset, source, self._options, read.decoded)
                for claim in chain(rows.sequence_claims(*said), rows.image_claims(*said)):
                    self.ledger.claim(opened, claim)
            except ItemError as error:
                opened.failure = (error.code, str(error))
            finally:
                read.decoded.discard()
        self.ledger.finish(opened)


def _source_row(key: str, source: Source, options: IngestOptions) -> rows.Row:
    size, modified = (-1, 0) if source.refused else _stat(source.path)  # read as soon as it is not refused any more
    return {
        "source_key": key,
        "bytes": size,
        "modified_ns": modified,
        "source_digest": None,
        "options_digest": source.options_digest(options, with_limits=False),
        "items": [],
        "state": "ingested",
    }


def _stat(path: Path) -> tuple[int, int]:
    """(bytes, modification time in ns), of a link itself where it leads nowhere, (-1, 0) where there is nothing."""
    for follow in (True, False):
        try:
            stat = path.stat(follow_symlinks=follow)
        except OSError:
            continue
        return stat.st_size, stat.st_mtime_ns
    return -1, 0


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ItemError("unreadable", f"it cannot be read: {error.strerror}") from error
