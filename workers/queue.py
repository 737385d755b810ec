"""A queue bounded in bytes, between two stages; closing it ends both."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from ..lake.errors import EnvironmentFailure

T = TypeVar("T")

PATIENCE = 3600.0
"""Seconds without any sign of life of the engine before a stage that waits says that another hangs."""


class Pulse:
    """When the stages of an engine last got on with something: an entry passed on, a batch computed."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        """Say that something got on."""
        self._last = time.monotonic()

    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last


class Closed(Exception):  # noqa: N818 - a signal, not an error
    """The other side is gone; the stage ends."""


def nbytes_of(value: Any) -> float:
    """Bytes of the arrays in a value: an array, or a mapping, list or tuple of such."""
    own = getattr(value, "nbytes", None)
    if own is not None:
        return float(own)
    if isinstance(value, dict | Mapping):
        return sum(map(nbytes_of, value.values()))
    return sum(map(nbytes_of, value)) if isinstance(value, list | tuple) else 0.0


class ByteQueue(Generic[T]):
    """First in, first out. What is larger than the bound enters once nothing of weight is in; words always enter."""

    def __init__(self, limit: float, pulse: Pulse | None = None) -> None:
        self.limit = limit
        """Bytes that it holds at most."""
        self._bytes, self._pulse = 0.0, pulse or Pulse()
        self.peak = 0.0
        """The most bytes that it ever held."""
        self._entries: deque[tuple[T, float]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, entry: T, nbytes: float = 0.0) -> None:
        """Wait for room and append. Raises Closed once the queue is closed."""
        with self._changed:
            self._wait(lambda: not nbytes or not self._bytes or self._bytes + nbytes <= self.limit)
            self._entries.append((entry, nbytes))
            self._bytes += nbytes
            self.peak = max(self.peak, self._bytes)
            self._changed.notify_all()

    def get(self, unless: threading.Event | None = None) -> T | None:
        """Wait for an entry and take it; None where `unless` is set before one comes. Raises Closed once it is closed."""
        with self._changed:
            self._wait(lambda: bool(self._entries) or (unless is not None and unless.is_set()))
            return self._take() if self._entries else None

    def wake(self) -> None:
        """Have those that wait look again, since an event was set."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End both sides; what is in the queue is dropped."""
        with self._changed:
            self._closed = True
            self._entries.clear()
            self._changed.notify_all()

    def _take(self) -> T:
        entry, nbytes = self._entries.popleft()
        self._bytes -= nbytes
        self._changed.notify_all()
        return entry

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not self._changed.wait_for(lambda: self._closed or ready(), min(PATIENCE, 10.0)):
            if self._pulse.age() > PATIENCE:
                raise EnvironmentFailure(f"the engine did not get on for {PATIENCE:.0f} s")
        self._pulse.beat()
        if self._closed:
            raise Closed


class Outbox(Generic[T]):
    """Puts small entries into a queue many at a time, since each put wakes the other side."""

    ENTRIES, BYTES = 64, 2**20

    def __init__(self, queue: "ByteQueue[list[T]]") -> None:
        self._queue, self._most = queue, min(self.BYTES, queue.limit / 8)
        self._entries: list[T] = []
        self._bytes = 0.0

    def put(self, entry: T, nbytes: float = 0.0) -> None:
        """Append; raises Closed once the queue is closed."""
        if self._bytes and self._bytes + nbytes > self._most:
            self.flush()
        self._entries.append(entry)
        self._bytes += nbytes
        if len(self._entries) >= self.ENTRIES or self._bytes > self._most:
            self.flush()

    def flush(self) -> None:
        """Put what was appended."""
        if self._entries:
            self._queue.put(self._entries, self._bytes)
            self._entries, self._bytes = [], 0.0
