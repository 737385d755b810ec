"""Lanes: threads that take one batch each through the network, side by side, in one process with one model.

A lane computes on threads of its own, so that no lane waits at the barriers of another. Which windows share a batch is
decided before it comes here: results do not depend on how many lanes there are.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


class Lanes:
    """The lanes of one worker."""

    def __init__(self, task: Task, networks: Networks) -> None:
        self._task, self._networks = task, networks
        self._threads = ThreadPoolExecutor(networks.lanes, "diastole-lane", initializer=networks.enter)
        self._sent: list[Future[Ran]] = []
        self._too_large: dict[int, float] = {}
        """By step: bytes of the smallest batch that did not fit the memory, so that the next ones are halved at once."""
        self.on_end: Callable[[], None] = lambda: None
        """Called, in the lane, whenever a batch has ended."""

    def windows(self, step: int, ready: Sequence[Any]) -> "Future[Ran]":
        """Take a batch of prepared windows through the network of a step."""
        return self._send(self._windows, step, ready)

    def block(self, data: np.ndarray, meta: Mapping[str, Any]) -> "Future[Ran]":
        """Take items of a pack, (n, …) as stored, through the network."""
        return self._send(self._block, data, meta)

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
            results = run(*arguments)
            return Ran(results, time.perf_counter() - begun)

        self._sent = [sent for sent in self._sent if not sent.done()]
        sent = self._threads.submit(timed)
        self._sent.append(sent)
        sent.add_done_callback(lambda _: self.on_end())
        return sent

    def _windows(self, step: int, ready: Sequence[Any]) -> list[Any]:
        """A batch that fails is halved; a window that fails alone fails its unit."""
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
                return [error]
            self._remember(error, step, nbytes)
            return self._windows(step, ready[:half]) + self._windows(step, ready[half:])
        lost = ItemError("non_finite_output", NON_FINITE)
        return [one if fine else lost for one, fine in zip(found, finite, strict=True)]

    def _block(self, data: np.ndarray, meta: Mapping[str, Any], first: int = 0) -> list[Any]:
        places, half = np.arange(first, first + len(data)), len(data) // 2
        if half and data.nbytes >= self._too_large.get(0, inf):
            return self._block(data[:half], meta, first) + self._block(data[half:], meta, first + half)
        try:
            with blamed("model"), device_errors():
                outputs = self._networks.forward(0, self._task.encode_block(data, meta, self._networks.device))
                finite = np.asarray(self._networks.finite(outputs, len(data)))
                found = {name: value.cpu() for name, value in outputs.items()}
            if finite.all():
                return [(places, found)]
            kept = np.flatnonzero(finite)
            lost = (places[~finite], ItemError("non_finite_output", NON_FINITE))
            fine = {name: value[kept] for name, value in found.items()}
            return [lost, (places[kept], fine)] if len(kept) else [lost]
        except ItemError as error:
            if len(data) == 1:
                return [(places, error)]
            self._remember(error, 0, data.nbytes)
            return self._block(data[:half], meta, first) + self._block(data[half:], meta, first + half)

    def _remember(self, error: ItemError, step: int, nbytes: float) -> None:
        if error.code == "out_of_memory":
            self._too_large[step] = min(nbytes, self._too_large.get(step, inf))
