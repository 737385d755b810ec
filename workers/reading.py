"""Threads that each read one source at a time, in a decoder of their own: fetch, hash, decode and, for arrays, write."""

import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from diastole.lake import suppressed
from diastole.lake.errors import ItemError
from diastole.lake.ids import digest, sha256_file
from diastole.lake.integrity import Recorded
from diastole.lake.layout import Lake

from . import rows
from .bucket import fetch, is_remote
from .compare import Comparison
from .decode import Decoded, Decoder, Told
from .formats import Limits, ReadOptions
from .listing import stat_of
from .publish import OpenSource
from .sources import IngestOptions, Source
from .survey import Together


@dataclass(frozen=True)
class Task:
    """A source to be read."""

    together: Together
    open: OpenSource


@dataclass(frozen=True)
class Read:
    """A source after its thread is done with it."""

    task: Task
    claims: list[rows.Claim] = field(default_factory=list)
    decoded: Decoded | None = None
    """Set where sequences or images are still to be taken from it."""
    withdrawn: bool = False
    """Whether it holds what a withdrawn file held."""

    @property
    def is_original(self) -> bool:
        """Whether another file that holds the same is a copy of it: it is one file, and no key of its own was given."""
        return is_original(self.task.together) and self.task.open.row["source_digest"] is not None

    @property
    def content(self) -> tuple[str, str]:
        """What is the same for copies: what they hold, and what is said of them."""
        return self.task.open.row["source_digest"], self.task.open.row["options_digest"]

    def discard(self) -> None:
        """Remove what was decoded."""
        if self.decoded is not None:
            self.decoded.discard()


class Readers:
    """The threads of one ingest."""

    def __init__(
        self,
        lake: Lake,
        dataset: str,
        options: IngestOptions,
        recorded: Recorded | None,
        withdrawn: suppressed.Suppressed,
        compared: Comparison,
    ) -> None:
        self._lake, self._dataset, self._options = lake, dataset, options
        self._recorded, self._withdrawn, self._compared = recorded, withdrawn, compared
        self._decoders = [Decoder(deadline_s=options.deadline_s) for _ in range(options.workers)]
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._free.put(decoder)
        self.pool = ThreadPoolExecutor(options.workers, thread_name_prefix="ingest")

    def with_decoder(self, act: Callable[[Decoder], list[Told]]) -> list[Told]:
        """Call a function with a decoder that is free."""
        decoder = self._free.get()
        try:
            return act(decoder)
        finally:
            self._free.put(decoder)

    def submit(self, task: Task) -> Future[Read]:
        """Read a source in a thread."""
        return self.pool.submit(self._read, task)

    def close(self, reading: Iterable[Future[Read]]) -> None:
        """End all threads and decoders."""
        for future in reading:
            future.cancel()
        for decoder in self._decoders:
            decoder.stop()
        self.pool.shutdown(wait=True, cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _read(self, task: Task) -> Read:
        """A failure of the source is its outcome."""
        try:
            if task.together.failure is not None:
                raise task.together.failure
            if not any(is_remote(source.path) for source in task.together.sources):
                return self._whole(task, [Path(source.path) for source in task.together.sources])
            with TemporaryDirectory(prefix="diastole-fetch-") as folder:
                return self._whole(task, [_fetched(s, Path(folder)) for s in task.together.sources])
        except ItemError as error:
            task.open.failure = (error.code, str(error))
            return Read(task)

    def _whole(self, task: Task, paths: list[Path]) -> Read:
        for row, path in zip(task.open.rows, paths, strict=True):
            row["source_digest"] = _sha256(path)
            content = suppressed.content_id(self._lake, row["source_digest"]) if self._withdrawn.contents else None
            if content in self._withdrawn.contents:
                return Read(task, withdrawn=True)
        if not self._options.verify:
            if self._is_known(task):
                task.open.keep = True
                return Read(task)
            if is_original(task.together) and self._compared.row(task.open.row["source_key"]) is None:
                task.open.items = self._compared.twin(task.open.row)
                if task.open.items is not None:
                    return Read(task)
        claims, decoded = self._decode(task.together, paths)
        if any(not _unchanged(s, path) for s, path in zip(task.together.sources, paths, strict=True)):
            if decoded is not None:
                decoded.discard()
            raise ItemError("unreadable", "it changed while it was read; ingest again when it is whole")
        return Read(task, claims, decoded)

    def _is_known(self, task: Task) -> bool:
        """Whether all files hold what they held, and were all of their source."""
        if task.open.before:
            return False
        for row in task.open.rows:
            known = self._compared.known_row(row["source_key"])
            if known is None or known["state"] != "ingested":
                return False
            if any(known[name] != row[name] for name in ("source_digest", "options_digest", "part_of")):
                return False
        return True

    def _decode(self, together: Together, paths: list[Path]) -> tuple[list[rows.Claim], Decoded | None]:
        source, options = together.sources[0], self._options
        parts = tuple(paths) if len(paths) > 1 or together.part_of else ()
        limits = Limits(options.max_item_bytes)
        said = ReadOptions(limits, options.alphabet, options.allow_burned_in, parts)
        decoder = self._free.get()
        try:
            decoded = decoder.decode(paths[0], options.format or together.format, said)
        finally:
            self._free.put(decoder)
        more = False
        try:
            claims = rows.store_arrays(self._lake, self._dataset, source, options, decoded, self._recorded)
            more = any(entry.get("kind") in rows.PACKED for entry in decoded.entries)
            return claims, decoded if more else None
        finally:
            if not more:
                decoded.discard()


def is_original(together: Together) -> bool:
    """Whether a source is one file that nothing but its path tells from its copies."""
    return together.part_of is None and not together.sources[0].said.get("key")


def _fetched(source: Source, folder: Path) -> Path:
    """A copy of an object under its own name, since files of a source name each other."""
    parent, _, name = source.path.rpartition("/")
    target = folder / digest(parent) / name
    target.parent.mkdir(exist_ok=True)
    fetch(source.path, target)
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
