"""What a model or a task that is not ours may raise, held against the item that it raised it on."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..lake.errors import DiastoleError, ItemError
from .models.runtime import OutOfMemory


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """What a model or a task raises on an item is held against the item, so that the rest of the cohort goes on."""
    try:
        yield
    except (DiastoleError, OSError):  # known already, or the environment's
        raise
    except (OutOfMemory, MemoryError) as error:
        raise ItemError("out_of_memory", "it does not fit the memory, even alone") from error
    except Exception as error:  # any class may come from a network or a task that is not ours
        lines = str(error).strip().splitlines() or [""]
        raise ItemError(
            f"{what}_error", f"the {what} failed on it: {type(error).__name__}: {lines[-1][:160]}"
        ) from error
