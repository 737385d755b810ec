"""Ingest on Ray: actors that each read sources in a decoder of their own. Bytes go from the source to storage, never here."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray

from ..lake.errors import DiastoleError, EnvironmentFailure, LakeError
from ..lake.layout import Lake
from ..lake.suppressed import Suppressed
from ..workers.decode import Decoder, Told
from ..workers.reading import Answer, Read, SourceReader, Task, read_all
from ..workers.sources import IngestOptions, Source
from ..workers.survey import ask_about
from . import head

BATCH, BYTES = 256, 128 * 2**20
"""Sources, or bytes of them, that an actor is given at once: a pack is written by one of them."""
AHEAD = 2
"""Batches that an actor has, or is about to get."""
TRIES = 2
"""How often a batch is given to another actor when one dies: its decoder is capped, so it is not the batch's fault."""


class Reading:
    """What runs in an actor."""

    def __init__(self, root: str, lake_id: str, dataset: str, options: IngestOptions, withdrawn: Suppressed) -> None:
        os.umask(0o077)
        head.end_with(ray.get_runtime_context().gcs_address)
        self._root, self._lake_id = root, lake_id
        self._said = dataset, options, withdrawn
        self._reader: SourceReader | None = None
        self._decoder = Decoder(deadline_s=options.deadline_s)

    def ask(self, sources: Sequence[Source]) -> list[Told] | str:
        """What files are, or why the environment failed."""
        return self._done(lambda reader: ask_about(sources, reader.options.format, self._decoder))

    def read(self, tasks: Sequence[Task]) -> list[Read] | str:
        """Read sources and write what they hold, or why the environment failed."""
        return self._done(lambda reader: read_all(reader, tasks, self._decoder))

    def _done(self, act: Callable[[SourceReader], list[Any]]) -> list[Any] | str:
        try:
            return act(self._opened())
        except DiastoleError as error:
            return str(error)
        except OSError as error:
            return f"the system failed: {error.strerror}"

    def _opened(self) -> SourceReader:
        if self._reader is None:
            lake = Lake.open(self._root)
            if lake.lake_id != self._lake_id or not lake.key:  # ids are made here
                raise LakeError("a worker found another lake at the same place; is its storage shared?")
            self._reader = SourceReader(lake, *self._said)
        return self._reader


class Crew:
    """The actors of one ingest."""

    def __init__(self, reader: SourceReader) -> None:
        options = reader.options
        if options.verify:
            raise LakeError("what is stored is verified by this process alone: leave out --on ray, or --verify")
        self.most = options.workers * AHEAD * BATCH
        self._kind: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Reading)
        self._arguments = (reader.lake.store.root, reader.lake.lake_id, reader.dataset, options, reader.withdrawn)
        self._actors: list[Any] = [self._kind.remote(*self._arguments) for _ in range(options.workers)]
        self._next = 0
        self._batch: _Batch | None = None

    def ask(self, batches: Sequence[Sequence[Source]]) -> Iterable[list[Told]]:
        """What the files of each batch are."""
        for start in range(0, len(batches), ahead := len(self._actors) * AHEAD):
            sent = [_Sent(self, "ask", batch) for batch in batches[start : start + ahead]]
            for one in sent:
                yield one.result()

    def submit(self, task: Task) -> Answer:
        """Read a source with some others."""
        if self._batch is None or self._batch.full:
            self._batch = _Batch(self)
        return self._batch.add(task)

    def close(self, reading: Iterable[Answer]) -> None:
        """End all actors."""
        del reading
        for actor in self._actors:
            ray.kill(actor)

    def send(self, method: str, what: Any) -> tuple[Any, Any]:
        """The next actor in turn, and what it is going to answer."""
        actor = self._actors[self._next % len(self._actors)]
        self._next += 1
        return actor, getattr(actor, method).remote(what)

    def replace(self, actor: Any) -> None:
        """One has died."""
        if actor in self._actors:
            self._actors[self._actors.index(actor)] = self._kind.remote(*self._arguments)


class _Sent:
    """What was sent to an actor, and its answer."""

    def __init__(self, crew: Crew, method: str, what: Any) -> None:
        self._crew, self._method, self._what = crew, method, what
        self._actor, self._reference = crew.send(method, what)

    def result(self) -> Any:
        """Wait for it. Raises EnvironmentFailure where the environment failed, or actors die again and again."""
        for _ in range(TRIES):
            try:
                answer = ray.get(self._reference)
                if isinstance(answer, str):
                    raise EnvironmentFailure(answer)
                return answer
            except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
                why = type(error).__name__
                self._crew.replace(self._actor)
                self._actor, self._reference = self._crew.send(self._method, self._what)
        raise EnvironmentFailure(
            f"processes that read sources died ({why}), {TRIES} times in a row; is there memory for them? Then ingest again"
        )


class _Batch:
    """Sources that are read together."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._tasks: list[Task] = []
        self._bytes = 0
        self._sent: _Sent | None = None
        self._reads: list[Read] | None = None

    @property
    def full(self) -> bool:
        """Whether it was sent."""
        return self._sent is not None

    def add(self, task: Task) -> "_Place":
        """Add a source; send all when it is full."""
        self._tasks.append(task)
        self._bytes += sum(max(source.size, 0) for source in task.together.sources)
        place = _Place(self, len(self._tasks) - 1)
        if len(self._tasks) >= BATCH or self._bytes >= BYTES:
            self._send()
        return place

    def read(self, place: int) -> Read:
        """Wait for one of them."""
        if self._reads is None:
            self._reads = self._send().result()
        return self._reads[place]

    def _send(self) -> _Sent:
        if self._sent is None:
            self._sent = _Sent(self._crew, "read", self._tasks)
        return self._sent


class _Place:
    """One source of a batch."""

    def __init__(self, batch: _Batch, place: int) -> None:
        self._batch, self._place = batch, place

    def result(self) -> Read:
        """Wait for it."""
        return self._batch.read(self._place)

    def cancel(self) -> None:
        """It is ended with its actor."""
