"""What survives a loss of power: files, and folders in those above them."""

import os
import threading
from pathlib import Path

from .errors import EnvironmentFailure

FOLDERS = 10_000
"""Folders that are known to be durable, at most."""
_known: set[Path] = set()
_lock = threading.Lock()


def sync(path: Path) -> None:
    """Have a file, or what is in a folder, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make(folder: Path, root: Path, *, now: bool = True) -> None:
    """Make a folder below a root, and those above it; durable at once, or not before `tell`.

    Raises EnvironmentFailure where it cannot be made.
    """
    with _lock:
        told = folder in _known
    if told and folder.is_dir():
        return
    try:
        gone = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailure(f"cannot write to {folder}: {error.strerror}") from error
    with _lock:
        _known.difference_update(gone)
    if now:
        tell(folder, root)


def tell(folder: Path, root: Path) -> None:
    """Make it durable that a folder is there, which is for the one above it to say: once, whoever made it."""
    for one in (folder, *folder.parents):
        with _lock:
            if one in _known or one == root:
                return
        sync(one.parent)
        with _lock:
            if len(_known) >= FOLDERS:
                _known.clear()
            _known.add(one)
