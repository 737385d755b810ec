"""Lanes: threads that take one batch each through the network, side by side, in one process with one model.

A lane computes on threads of its own, so that no lane waits at the barriers of another. Which windows share a batch is
decided before it comes here: results do not depend on how many lanes there are.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from ..jobs.task import Task
from ..lake.errors import ItemError
from .faults import blamed
from .models.runtime import Networks, device_errors
from .queue import nbytes_of

NON_FINITE = "the network's output for it has NaN or infinite values"


@dataclass
class Ran:
    """What became of a batch."""

    results: list[Any]
    """For each window its outputs by name, or the ItemError that it fails with. Of a block: pairs of places in it and
    the outputs of these, on the CPU, or the ItemError of these."""
    seconds: float
    """In the lane: encoding, network, checks."""


class _Room:
    """The memory of a worker: batches share it, and what does not fit beside others is tried once more without them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Compute beside others, once nobody wants to be alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self, *, inside: bool) -> Iterator[None]:
        """Wait until the others have left, and keep them out meanwhile; one that is inside is inside again afterwards."""
        with self._changed:
            self._waiting += 1
            self._inside -= inside
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._inside)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._inside -= not inside
                self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()


class Lanes:
    """The lanes of one worker."""

    def __init__(self, task: Task, networks: Networks) -> None:
        self._task, self._networks = task, networks
        self._threads = ThreadPoolExecutor(networks.lanes, "diastole-lane", initializer=networks.enter)
        self._sent: list[Future[Ran]] = []
        self._room = _Room()
        self._too_large: dict[int, float] = {}
        """By step: bytes of the smallest batch that did not fit the memory, so that the next ones are halved at once."""
        self.filled = False
        """Whether a batch ever took all the memory that there is: what else fails then, may fail for that."""
        self.on_end: Callable[[], None] = lambda: None
        """Called, in the lane, whenever a batch has ended."""

    def windows(self, step: int, ready: Sequence[Any]) -> "Future[Ran]":
        """Take a batch of prepared windows through the network of a step."""
        return self._send(self._windows, step, ready)

    def block(self, data: np.ndarray, meta: Mapping[str, Any]) -> "Future[Ran]":
        """Take items of a pack, (n, …) as stored, through the network."""
        return self._send(self._block, data, meta)

    def still(self) -> AbstractContextManager[None]:
        """While it is entered no batch computes, so that none has memory that another stage wants."""
        return self._room.alone(inside=False)

    def quiet(self) -> None:
        """Drop what waits and let what runs end: nothing computes after it."""
        for sent in self._sent:
            sent.cancel()
        for sent in self._sent:
            if not sent.cancelled():
                sent.exception()
        self._sent.clear()

    def _send(self, run: Any, *arguments: Any) -> "Future[Ran]":
        def timed() -> Ran:
            begun = time.perf_counter()
            with self._room.shared():
                results = run(*arguments)
            return Ran(results, time.perf_counter() - begun)

        self._sent = [sent for sent in self._sent if not sent.done()]
        sent = self._threads.submit(timed)
        self._sent.append(sent)
        sent.add_done_callback(lambda _: self.on_end())
        return sent

    def _windows(self, step: int, ready: Sequence[Any], *, again: bool = False) -> list[Any]:
        """A batch that fails is halved; a window that fails alone fails its unit.

        What does not fit the memory alone is tried `again` while no other lane computes: it may have been theirs.
        """
        half, nbytes = len(ready) // 2, nbytes_of(ready)
        if half and nbytes >= self._too_large.get(step, inf):
            return self._windows(step, ready[:half]) + self._windows(step, ready[half:])
        try:
            with blamed("model"), device_errors():
                inputs = self._task.encode(step, ready, self._networks.device)
                outputs = self._networks.forward(step, inputs)
                finite = self._networks.finite(outputs, len(ready))
                decoded = self._task.decode(step, outputs)
                found = [{name: value[place] for name, value in decoded.items()} for place in range(len(ready))]
        except ItemError as error:
            if len(ready) == 1:
                if not self._crowded(error) or again:
                    return [ItemError(error.code, str(error))]  # without the frames that hold what was computed
            else:
                self._remember(error, step, nbytes)
        else:
            lost = ItemError("non_finite_output", NON_FINITE)
            return [one if fine else lost for one, fine in zip(found, finite, strict=True)]
        # Outside of the handler, where the error would hold all that the network had computed.
        if len(ready) == 1:
            with self._room.alone(inside=True):
                return self._windows(step, ready, again=True)
        return self._windows(step, ready[:half]) + self._windows(step, ready[half:])

    def _block(self, data: np.ndarray, meta: Mapping[str, Any], first: int = 0, *, again: bool = False) -> list[Any]:
        places, half = np.arange(first, first + len(data)), len(data) // 2
        if half and data.nbytes >= self._too_large.get(0, inf):
            return self._block(data[:half], meta, first) + self._block(data[half:], meta, first + half)
        try:
            with blamed("model"), device_errors():
                outputs = self._networks.forward(0, self._task.encode_block(data, meta, self._networks.device))
                finite = np.asarray(self._networks.finite(outputs, len(data)))
                found = {name: value.cpu() for name, value in outputs.items()}
        except ItemError as error:
            if len(data) == 1:
                if not self._crowded(error) or again:
                    return [(places, ItemError(error.code, str(error)))]
            else:
                self._remember(error, 0, data.nbytes)
        else:
            if finite.all():
                return [(places, found)]
            kept = np.flatnonzero(finite)
            lost = (places[~finite], ItemError("non_finite_output", NON_FINITE))
            fine = {name: value[kept] for name, value in found.items()}
            return [lost, (places[kept], fine)] if len(kept) else [lost]
        if len(data) == 1:
            with self._room.alone(inside=True):
                return self._block(data, meta, first, again=True)
        return self._block(data[:half], meta, first) + self._block(data[half:], meta, first + half)

    def _crowded(self, error: ItemError) -> bool:
        """Whether it may be for want of the memory that another lane had."""
        self.filled |= error.code == "out_of_memory"
        return error.code == "out_of_memory" and self._networks.lanes > 1

    def _remember(self, error: ItemError, step: int, nbytes: float) -> None:
        if error.code == "out_of_memory":
            self.filled = True
            self._too_large[step] = min(nbytes, self._too_large.get(step, inf))
