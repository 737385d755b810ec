"""Ingest: files into a dataset of the lake. What did not change is not even opened; what cannot be read stops nothing.

A listing is compared with what is known, a survey finds what belongs together among the rest, threads read each in a
decoder of its own, and one ledger takes what they found in the order of the listing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from diastole.lake import integrity, items, leases, quarantine, suppressed
from diastole.lake.errors import ItemError, SpecError
from diastole.lake.layout import Lake, check_name

from . import rows
from .compare import Comparison
from .formats import Part
from .listing import Listing, absolute
from .publish import IF_FAILED, Ledger, OpenSource
from .reading import Answer, Read, Readers, SourceReader, Task, Threads, is_original
from .sources import IngestOptions, Source, not_in, read_manifest
from .survey import INDEX, Survey, Together

__all__ = ["IngestOptions", "IngestReport", "ingest", "refresh"]

Progress = Callable[[int, int], None]
"""Called with the number of files that are done, and of all."""
FEW, SHARE = 10, 0.5
"""A refresh stops where more than so many, and more than this share, of the known sources would be gone."""
Hire = Callable[[SourceReader], Readers]
"""Where sources are read, other than in threads of this process."""
Said = Mapping[str, tuple[int, Mapping[str, str]]]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did."""

    files: int
    """Files found."""
    opened: int
    """Files that were opened; the others had not changed."""
    added: int
    """Items, like the next three."""
    changed: int
    unchanged: int
    gone: int
    """Items that their source does not hold any more, or whose source is not there any more."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Sources that failed in this ingest, by error code."""
    still_quarantined: int = 0
    """Sources that failed earlier, did not change, and were not tried again; `retry` tries them."""
    bytes: int = 0
    """Size of the files that were opened."""
    seconds: float = 0.0
    healed: int = 0
    """Items whose stored data were damaged or missing and were written anew; `verify` looks."""
    withdrawn: int = 0
    """Sources that were refused with the code `withdrawn`: their subject's consent was. Nothing of them was kept."""
    copies: int = 0
    """Files that hold what another of the dataset held already, as they were moved or copied: no new item."""
    missing: int = 0
    """Files that were not found again by a refresh."""


def ingest(
    lake: Lake,
    dataset: str,
    paths: Sequence[Path | str],
    options: IngestOptions | None = None,
    progress: Progress | None = None,
    hire: Hire | None = None,
) -> IngestReport:
    """Bring files and folders into a dataset, so that it holds what they hold now.

    Items whose file was deleted at the source stay as they are: `refresh` notices that. A file that was moved keeps its
    item.

    Raises SpecError or LakeError for what the user can mend, EnvironmentFailure where storage fails; a file that
    cannot be read goes to quarantine, and the others go on. Killed anywhere, the next ingest mends it.
    """
    check_name("dataset", dataset)
    with leases.shared(lake, f"ingest into {dataset}") as held:
        return _Ingest(lake, dataset, options or IngestOptions(), held, hire=hire).run(paths, progress)


def refresh(
    lake: Lake,
    dataset: str,
    paths: Sequence[Path | str],
    options: IngestOptions | None = None,
    progress: Progress | None = None,
    *,
    allow_gone: bool = False,
    hire: Hire | None = None,
) -> IngestReport:
    """As `ingest`, and items whose files are not below these paths any more become `gone`: they are planned no more.

    Raises SpecError where more than half of what is known would be gone, which a folder that is not mounted looks like;
    `allow_gone` says that it is meant.
    """
    check_name("dataset", dataset)
    with leases.shared(lake, f"refresh of {dataset}") as held:
        run = _Ingest(lake, dataset, options or IngestOptions(), held, gone=True, allow_gone=allow_gone, hire=hire)
        return run.run(paths, progress)


class _Ingest:
    """One ingest."""

    def __init__(
        self,
        lake: Lake,
        dataset: str,
        options: IngestOptions,
        held: leases.Held,
        *,
        gone: bool = False,
        allow_gone: bool = False,
        hire: Hire | None = None,
    ) -> None:
        self._hire = hire
        self._lake, self._dataset, self._options = lake, dataset, options
        self._look_for_gone, self._allow_gone, self._check = gone, allow_gone, held.check
        self._recorded = integrity.Recorded(lake) if options.verify else None
        self._withdrawn = suppressed.read(lake)
        self._refused: list[str] = []
        self._left: set[str] = set()
        self._reading: deque[tuple[Task, Answer]] = deque()
        self._opened = self._bytes = self._copies = self._done = 0
        self._originals: dict[tuple[str, str], OpenSource] = {}
        self._progress: Callable[[int], None] = lambda _: None

    def run(self, paths: Sequence[Path | str], progress: Progress | None) -> IngestReport:
        """List, compare, survey, read, write."""
        started = time.monotonic()
        self._compared, listing = self._compare(paths)
        missing = self._missing(listing)
        absent = int(missing.sum())
        files = self._compared.files
        if progress is not None:
            self._progress = lambda done: progress(done, files)
        self._ledger = Ledger(self._lake, self._dataset, self._compared.known, self._found, self._recorded, self._check)
        self._done = files - len(self._compared.changed)
        self._reader = SourceReader(
            self._lake, self._dataset, self._options, self._withdrawn, self._recorded, self._compared.twin
        )
        self._readers = (self._hire or Threads)(self._reader)
        try:
            self._open_folders(listing)
            survey = Survey(self._compared, np.flatnonzero(missing).tolist())
            for together in survey.run(self._readers.ask):
                self._take(together)
            missing[survey.orphans] = True
            self._finish(missing)
        finally:
            self._readers.close(answer for _, answer in self._reading)
        self._progress(files)
        c = self._ledger.counts
        counts = (files, self._opened, c.added, c.changed, c.unchanged, c.gone, c.quarantined)
        still = self._compared.still_quarantined()
        rest = (still, self._bytes, time.monotonic() - started, c.healed, c.withdrawn, self._copies)
        return IngestReport(*counts, *rest, absent)

    def _compare(self, paths: Sequence[Path | str]) -> tuple[Comparison, Listing]:
        manifest = None if self._options.manifest is None else absolute(self._options.manifest)
        listing = Listing.of(paths, without=manifest)
        said: Said = {} if manifest is None else read_manifest(manifest, listing.roots)
        known = items.read_sources(self._lake, self._dataset)
        compared = Comparison(self._lake, self._options, known, said)
        left = set(said)
        compared.take_all(_with_said(listing, said, left))
        if left:
            raise not_in(min(said[path][0] for path in left))
        if not compared.files and not self._allow_gone:
            raise SpecError("there is no file to ingest at these paths; hidden files are left out")
        return compared, listing

    def _found(self, key: str) -> bool:
        if key in self._compared.changed:
            return True
        row = self._compared.row(key)
        return row is not None and bool(self._compared.seen[row])

    def _missing(self, listing: Listing) -> np.ndarray:
        """Known sources that are not there any more; (n,) bool."""
        if not self._look_for_gone:
            return np.zeros(len(self._compared.known), bool)
        missing = self._compared.missing(root for root in listing.roots if root not in listing.closed)
        count, all_ = int(missing.sum()), int((missing | self._compared.seen).sum())
        if count > FEW and count > SHARE * all_ and not self._allow_gone:
            raise SpecError(
                f"{count} of {all_} known files are not there any more; is everything mounted? If they are gone for good, "
                "say --allow-gone"
            )
        return missing

    def _open_folders(self, listing: Listing) -> None:
        """Folders that could not be listed once, and now can, leave the quarantine."""
        failed = self._compared.unseen_failures()
        if failed:
            for folder in listing.folders:
                key = self._lake.source_key(folder)
                if key in failed:
                    row = _row(self._compared, key, Source(folder, "", folder, -1, 0), None)
                    self._ledger.finish(OpenSource(row))

    def _take(self, together: Together) -> None:
        """Give what is read together to a reader, when there is room."""
        keys = [self._lake.source_key(source.path) for source in together.sources]
        made = [_row(self._compared, key, s, together.part_of) for key, s in zip(keys, together.sources, strict=True)]
        at = {key: self._compared.row(key) for key in keys}
        self._ledger.learn(at)
        self._compared.same[[row for row in at.values() if row is not None]] = False
        self._left |= together.before
        if self._withdrawn and self._is_withdrawn(together, keys):
            self._refuse(keys)
            return
        opened = OpenSource(made[0], others=made[1:], before=together.before, forgets=together.forgets)
        if together.failure is not None and together.failure.code == INDEX:
            self._advance(len(keys))
            self._ledger.finish(opened)
            return
        while len(self._reading) >= self._readers.most:
            self._enter(*self._reading.popleft())
        self._opened += len(keys)
        self._bytes += sum(max(source.size, 0) for source in together.sources)
        known = tuple(None if row is None else self._compared.known_row(key) for key, row in at.items())
        task = Task(replace(together, part=Part()), opened, known)
        self._reading.append((task, self._readers.submit(task)))

    def _finish(self, missing: np.ndarray) -> None:
        """Take in what is still being read, and write the rest."""
        while self._reading:
            self._enter(*self._reading.popleft())
        self._ledger.counts.unchanged += self._compared.unchanged_items()
        for row in np.flatnonzero(missing).tolist():
            known = self._compared.known.slice(row, 1).to_pylist()[0]
            if known["source_key"] not in self._left:
                self._ledger.finish(OpenSource(known, vanished=True))
        self._ledger.move(self._compared.moved)
        self._ledger.settle(last=True)
        if self._refused:
            quarantine.mend(self._lake, self._dataset, self._refused)

    def _is_withdrawn(self, together: Together, keys: list[str]) -> bool:
        """Whether a source is of a withdrawn subject, before it is decoded: by who is said to be its subject, by what it is
        derived from, or, where no subject is said, as its path or its natural key were a withdrawn one's.
        """
        source, part, gone = together.sources[0], together.part, self._withdrawn
        parent = rows.derived_from(self._lake, self._dataset, source.said.get("derived_from"))
        if parent in gone.items:
            return True
        subject = source.subject or part.subject
        if subject is not None:
            return self._lake.subject_id(subject) in gone.subjects
        natural = source.said.get("key") or part.key or source.natural_key
        return not gone.sources.isdisjoint(keys) or self._lake.item_id(self._dataset, natural) in gone.items

    def _refuse(self, keys: list[str]) -> None:
        """Nothing of it is kept, not even that it once could not be read."""
        self._ledger.counts.withdrawn += 1
        self._advance(len(keys))
        known = (self._compared.known_row(key) for key in keys)
        self._refused += [row["source_key"] for row in known if row is not None and row["state"] == "quarantined"]

    def _enter(self, task: Task, answer: Answer) -> None:
        """Give a source's claims to the ledger."""
        read = answer.result()
        opened = read.open
        if read.withdrawn:
            self._refuse([row["source_key"] for row in opened.rows])
            return
        self._advance(len(opened.rows))
        if opened.keep:
            self._ledger.counts.unchanged += len(self._ledger.items_of(opened.row["source_key"]))
        original = not self._options.each_file and is_original(task.together) and bool(opened.row["source_digest"])
        if original and task.known == (None,) and opened.failure is None and opened.items is None:
            opened.items = self._compared.twin(opened.row)  # readers on Ray do not know of twins
            opened.copy_of = self._originals.get(read.content)
        try:
            if opened.items is not None or opened.copy_of is not None:
                self._copies += 1
            else:
                self._claim(task, read)
        finally:
            read.discard()
        if original and opened.failure is None and opened.copy_of is None and opened.items is None:
            self._originals[read.content] = opened
        self._ledger.finish(opened)

    def _claim(self, task: Task, read: Read) -> None:
        for claim in read.claims:
            self._ledger.claim(read.open, claim)
        try:
            for claim in self._reader.claims(task, read):
                self._ledger.claim(read.open, claim)
        except ItemError as error:
            read.open.failure = (error.code, str(error))

    def _advance(self, files: int) -> None:
        self._done += files
        self._progress(min(self._done, self._compared.files))


def _with_said(listing: Listing, said: Said, left: set[str]) -> Iterator[Source]:
    """Sources with their rows of the manifest, which are taken from `left`."""
    for source in listing:
        if source.path in said:
            left.discard(source.path)
            yield Source(
                source.path, source.relative, source.root, source.size, source.modified, source.refused,
                said[source.path][1], source.sidecar,
            )  # fmt: skip
        else:
            yield source


def _row(compared: Comparison, key: str, source: Source, part_of: str | None) -> rows.Row:
    return {
        "source_key": key,
        "bytes": source.size,
        "modified_ns": source.modified,
        "source_digest": None,
        "options_digest": compared.digests.of(source, with_limits=False),
        IF_FAILED: compared.digests.of(source, with_limits=True),
        "items": [],
        "state": "ingested",
        "root": compared.root_key(source.root),
        "part_of": part_of,
    }
