"""What a model or a task that is not ours may raise, held against the item that it raised it on."""

import errno
import os
import traceback
from types import TracebackType

from ..lake.errors import DiastoleError, ItemError, kind_and_place
from .models.runtime import OutOfMemory

SHOWN = "DIASTOLE_TRACEBACK"
"""Set where somebody looks for the reason at one item: what was raised goes to standard error, whole, and nowhere else."""


def starved(error: BaseException) -> bool:
    """Whether an error says that this process gets no more memory; a thread that does not start wants it for its stack."""
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return no_memory or "can't start new thread" in str(error)


class blamed:  # noqa: N801 - used like a function; a class, since it is entered three times for each unit
    """What a model or a task raises on an item is held against the item, so that the rest of the cohort goes on."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, (KeyboardInterrupt, GeneratorExit, DiastoleError)):
            return  # nothing, an interrupt, or known already
        if isinstance(error, OutOfMemory) or starved(error):
            raise ItemError("out_of_memory", "it does not fit the memory, even alone") from error
        if isinstance(error, OSError):
            return  # the environment's
        if os.environ.get(SHOWN):
            traceback.print_exception(error)
        raise ItemError(f"{self._what}_error", f"the {self._what} failed on it: {kind_and_place(error)}") from error
