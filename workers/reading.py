"""Reads one source: fetch, hash, decode, write. In threads of this process, each with a decoder of its own; or elsewhere."""

import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from diastole.lake import sequences, suppressed
from diastole.lake.errors import ItemError
from diastole.lake.ids import digest, sha256_file
from diastole.lake.integrity import Recorded
from diastole.lake.layout import Lake

from . import rows
from .bucket import fetch, is_remote
from .decode import Decoded, Decoder, Told
from .formats import Limits, ReadOptions
from .listing import stat_of
from .packs import put_images, put_letters
from .publish import OpenSource
from .sources import IngestOptions, Source
from .survey import Together, ask_about


@dataclass(frozen=True)
class Task:
    """A source to be read."""

    together: Together
    open: OpenSource
    known: tuple[rows.Row | None, ...]
    """What is known of each of its files, as lake.items.SOURCES."""


@dataclass(frozen=True)
class Read:
    """A source that was read, or why it could not be (in `open.failure`)."""

    open: OpenSource
    claims: list[rows.Claim] = field(default_factory=list)
    decoded: Decoded | None = None
    """Set where sequences or images are still to be taken from it."""
    withdrawn: bool = False
    """Whether it holds what a withdrawn file held."""

    @property
    def content(self) -> tuple[str, str]:
        """What is the same for copies: what they hold, and what is said of them."""
        return self.open.row["source_digest"], self.open.row["options_digest"]

    def discard(self) -> None:
        """Remove what was decoded."""
        if self.decoded is not None:
            self.decoded.discard()


class Answer(Protocol):
    """A source that is being read."""

    def result(self) -> Read:
        """Wait for it. Raises EnvironmentFailure."""

    def cancel(self) -> Any:
        """Nobody waits for it any more."""


class Readers(Protocol):
    """Where sources are read: in this process, or on Ray."""

    most: int
    """Sources that may wait to be read, or to be entered."""

    def ask(self, batches: Sequence[Sequence[Source]]) -> Iterable[list[Told]]:
        """What the files of each batch are."""

    def submit(self, task: Task) -> Answer:
        """Read a source, soon."""

    def close(self, reading: Iterable[Answer]) -> None:
        """End everything."""


Twins = Callable[[rows.Row], "list[str] | None"]
"""Finds the items of a known file that holds what a new one does."""


def no_twin(_: rows.Row) -> list[str] | None:
    """Where nobody looks for one."""
    return None


@dataclass(frozen=True)
class SourceReader:
    """Reads sources of one ingest. Any number of threads may use it."""

    lake: Lake
    dataset: str
    options: IngestOptions
    withdrawn: suppressed.Suppressed
    recorded: Recorded | None = None
    twin: Twins = no_twin

    def read(self, task: Task, decoder: Decoder) -> Read:
        """A failure of the source is its outcome. Raises EnvironmentFailure."""
        sources = task.together.sources
        try:
            if task.together.failure is not None:
                raise task.together.failure
            if not any(is_remote(source.path) for source in sources):
                return self._whole(task, [Path(source.path) for source in sources], decoder)
            with TemporaryDirectory(prefix="diastole-fetch-") as folder:
                return self._whole(task, [_fetched(source, Path(folder)) for source in sources], decoder)
        except ItemError as error:
            if error.code == suppressed.WITHDRAWN:
                return Read(task.open, withdrawn=True)
            task.open.failure = (error.code, str(error))
            return Read(task.open)

    def claims(self, task: Task, read: Read) -> Iterable[rows.Claim]:
        """What is still to be taken from what was decoded. Raises ItemError."""
        if read.decoded is not None:
            said = (self.lake, self.dataset, task.together.sources[0], self.options, read.decoded)
            yield from chain(rows.sequence_claims(*said), rows.image_claims(*said))

    def _whole(self, task: Task, paths: list[Path], decoder: Decoder) -> Read:
        for row, path in zip(task.open.rows, paths, strict=True):
            row["source_digest"] = _sha256(path)
            content = suppressed.content_id(self.lake, row["source_digest"]) if self.withdrawn.contents else None
            if content in self.withdrawn.contents:
                return Read(task.open, withdrawn=True)
        if not self.options.verify:
            if _is_known(task):
                task.open.keep = True
                return Read(task.open)
            if not self.options.each_file and is_original(task.together) and task.known == (None,):
                task.open.items = self.twin(task.open.row)
                if task.open.items is not None:
                    return Read(task.open)
        claims, decoded = self._decode(task.together, paths, decoder)
        if any(not _unchanged(s, path) for s, path in zip(task.together.sources, paths, strict=True)):
            if decoded is not None:
                decoded.discard()
            raise ItemError("unreadable", "it changed while it was read; ingest again when it is whole")
        return Read(task.open, claims, decoded)

    def _allowed(self, source: Source, decoded: Decoded) -> Decoded:
        """Without what is of withdrawn subjects in an archive. Raises ItemError where nothing is left."""
        if not self.withdrawn or not any("within" in entry for entry in decoded.entries):
            return decoded
        where = (self.lake, self.dataset, source)
        left = [entry for entry in decoded.entries if not rows.is_withdrawn(*where, entry, self.withdrawn)]
        if not left:
            decoded.discard()
            raise ItemError(suppressed.WITHDRAWN, "consent was withdrawn for all that is in it")
        return replace(decoded, entries=left)

    def _decode(
        self, together: Together, paths: list[Path], decoder: Decoder
    ) -> tuple[list[rows.Claim], Decoded | None]:
        source, options = together.sources[0], self.options
        parts = tuple(paths) if len(paths) > 1 or together.part_of else ()
        limits = Limits(options.max_item_bytes)
        said = ReadOptions(limits, options.alphabet, options.allow_burned_in, parts)
        decoded = self._allowed(source, decoder.decode(paths[0], options.format or together.format, said))
        more = False
        try:
            claims = rows.store_arrays(self.lake, self.dataset, source, options, decoded, self.recorded)
            more = any(entry.get("kind") in rows.PACKED for entry in decoded.entries)
            return claims, decoded if more else None
        finally:
            if not more:
                decoded.discard()


def read_all(reader: SourceReader, tasks: Iterable[Task], decoder: Decoder) -> list[Read]:
    """Read some sources and write all that they hold, packs too: nothing but rows and the names of files comes back."""
    done: list[Read] = []
    packs = _Packs(reader)
    try:
        for task in tasks:
            read = reader.read(task, decoder)
            packs.open.append(read)
            claims = list(read.claims)
            done.append(Read(read.open, claims, withdrawn=read.withdrawn))
            try:
                for claim in reader.claims(task, read):
                    packs.add(claim, claims)
            except ItemError as error:
                task.open.failure = (error.code, str(error))
        packs.put()
        return done
    finally:
        packs.discard()


class _Packs:
    """Letters and images that wait until they fill a pack, and the files in which they lie meanwhile."""

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self.open: list[Read] = []
        self._waiting: list[tuple[rows.Claim, list[rows.Claim]]] = []
        self._bytes = 0

    def add(self, claim: rows.Claim, claims: list[rows.Claim]) -> None:
        """Put a claim into `claims`, once its pack is written."""
        self._waiting.append((claim, claims))
        self._bytes += claim.row["nbytes"]
        if self._bytes >= sequences.PACK_BYTES:
            self.put()

    def put(self) -> None:
        """Write the packs."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        loose, where = [claim for claim, _ in waiting], (self._reader.lake, self._reader.dataset)
        files = [*put_letters(*where, loose), *put_images(*where, loose)]
        for claim, claims in waiting:
            claims.append(
                replace(
                    claim, files=[f for f in files if f.path.startswith(claim.row["array"])], letters=None, image=None
                )
            )

    def discard(self) -> None:
        """Remove what was decoded."""
        for read in self.open:
            read.discard()


class Threads:
    """The readers of this process."""

    def __init__(self, reader: SourceReader) -> None:
        options = reader.options
        self._reader, self.most = reader, options.workers
        self._decoders = [Decoder(deadline_s=options.deadline_s) for _ in range(options.workers)]
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._free.put(decoder)
        self._pool = ThreadPoolExecutor(options.workers, thread_name_prefix="ingest")

    def ask(self, batches: Sequence[Sequence[Source]]) -> Iterable[list[Told]]:
        """What the files of each batch are."""
        return self._pool.map(
            lambda batch: self._with(lambda decoder: ask_about(batch, self._reader.options.format, decoder)), batches
        )

    def submit(self, task: Task) -> Answer:
        """Read a source in a thread."""
        return self._pool.submit(self._with, lambda decoder: self._reader.read(task, decoder))

    def close(self, reading: Iterable[Answer]) -> None:
        """End all threads and decoders."""
        for answer in reading:
            answer.cancel()
        for decoder in self._decoders:
            decoder.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _with(self, act: Callable[[Decoder], Any]) -> Any:
        decoder = self._free.get()
        try:
            return act(decoder)
        finally:
            self._free.put(decoder)


def is_original(together: Together) -> bool:
    """Whether another file that holds the same is a copy of it: it is one file, and no key of its own was given."""
    return together.part_of is None and not together.sources[0].said.get("key")


def _is_known(task: Task) -> bool:
    """Whether all files hold what they held, and were all of their source."""
    if task.open.before:
        return False
    for row, known in zip(task.open.rows, task.known, strict=True):
        if known is None or known["state"] != "ingested":
            return False
        if any(known[name] != row[name] for name in ("source_digest", "options_digest", "part_of")):
            return False
    return True


def _fetched(source: Source, folder: Path) -> Path:
    """A copy of an object under its own name, since files of a source name each other."""
    parent, _, name = source.path.rpartition("/")
    target = folder / digest(parent) / name
    target.parent.mkdir(exist_ok=True)
    fetch(source.root, source.path, target)
    return target


def _unchanged(source: Source, path: Path) -> bool:
    if is_remote(source.path):
        return path.stat().st_size == source.size  # an object is got whole
    return stat_of(source.path) == (source.size, source.modified)


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ItemError("unreadable", f"it cannot be read: {error.strerror}") from error
