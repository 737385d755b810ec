"""What a model or a task that is not ours may raise, held against the item that it raised it on."""

from pathlib import PurePath
from types import TracebackType

from ..lake.errors import DiastoleError, ItemError
from .models.runtime import OutOfMemory


class blamed:  # noqa: N801 - used like a function; a class, since it is entered three times for each unit
    """What a model or a task raises on an item is held against the item, so that the rest of the cohort goes on."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, (DiastoleError, OSError)):
            return  # nothing, an interrupt, or known already or the environment's
        if isinstance(error, (OutOfMemory, MemoryError)):
            raise ItemError("out_of_memory", "it does not fit the memory, even alone") from error
        raise ItemError(f"{self._what}_error", f"the {self._what} failed on it: {said(error)}") from error


def said(error: BaseException) -> str:
    """What was raised and where, without its text: that may quote the item's data, and errors are kept and shown."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "" if frame is None else f" in {PurePath(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno}"
    return f"{type(error).__name__}{where}"
