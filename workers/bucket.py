"""Sources in an object store: listed where they lie, and copied here one by one when they are read."""

import errno
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from diastole.lake.errors import ItemError, LakeError, SpecError
from diastole.lake.remote import again, opened
from diastole.lake.store import SCHEMES

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

AT_ONCE = 50
"""Answers of a listing, of a thousand objects each, that are kept: where one is lost, these are asked for again."""
PIECE = 8 * 2**20
"""Bytes that are fetched at a time."""


def is_remote(path: Path | str) -> bool:
    """Whether a path is a URL of an object store. Raises SpecError for other URLs: they could reach any service."""
    scheme, separator, _ = str(path).partition("://")
    if isinstance(path, Path) or not separator:
        return False
    if scheme not in SCHEMES:
        raise SpecError(f"sources cannot be read from {scheme}://; use a folder or one of {', '.join(SCHEMES)}")
    return True


class Bucket:
    """What lies at and below a URL."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        self._store = _store(self._root)

    def list(self) -> Iterator[tuple[str, int, int]]:
        """(URL, bytes, modification time in ns) of each object, sorted; a URL of one object is that one.

        Raises EnvironmentFailure where it cannot be listed to its end.
        """
        last: str | None = None
        while some := again("the sources", partial(self._after, last)):
            for meta in some:
                yield f"{self._root}/{meta['path']}", int(meta["size"]), int(meta["last_modified"].timestamp() * 1e9)
            last = str(some[-1]["path"])
        if last is None:
            yield from self._itself()

    def _after(self, last: str | None) -> "Sequence[ObjectMeta]":
        """Some objects whose paths are behind one."""
        import obstore

        batches = obstore.list(self._store, offset=last, chunk_size=1000)
        return [meta for batch in islice(batches, AT_ONCE) for meta in batch]

    def _itself(self) -> Iterator[tuple[str, int, int]]:
        if self._root.count("/") > 2:  # else it is the bucket itself, which is empty
            size, modified = stat_remote(self._root, self._root)
            if size >= 0:
                yield self._root, size, modified


def stat_remote(root: str, url: str) -> tuple[int, int]:
    """(bytes, modification time in ns) of an object, (-1, 0) where it is not there."""
    import obstore

    store, name = _place(root, url)
    try:
        meta = again("a source", lambda: obstore.head(store, name))
    except FileNotFoundError:
        return -1, 0
    return int(meta["size"]), int(meta["last_modified"].timestamp() * 1e9)


def fetch(root: str, url: str, target: Path, most: int | None = None) -> None:
    """Copy an object that was listed at or below `root`, or its first bytes, into a file.

    Raises ItemError where it is gone, EnvironmentFailure where storage fails.
    """
    import obstore

    store, name = _place(root, url)

    def copy() -> None:
        with target.open("wb") as out:
            for piece in obstore.get(store, name).stream(PIECE):
                out.write(memoryview(piece))

    def begin() -> None:
        length = min(most or 0, int(obstore.head(store, name)["size"]))
        data = obstore.get_range(store, name, start=0, length=length) if length else b""
        target.write_bytes(memoryview(data))

    try:
        again("a source", copy if most is None else begin)
    except FileNotFoundError as error:
        raise ItemError("unreadable", "it is not there any more") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.EISDIR):
            raise ItemError("unreadable", "its name cannot be that of a file here; rename it") from error
        raise


def _place(root: str, url: str) -> tuple["ObjectStore", str]:
    """A store and the path in it. Only what the user typed is taken for a URL: names of objects may hold any letters."""
    if not url.startswith(f"{root}/"):  # it is the one that was named, or lies beside it
        root = url.rpartition("/")[0]
    return _store(root), url[len(root) + 1 :]


@cache
def _store(url: str) -> "ObjectStore":
    try:
        return opened(url)
    except LakeError as error:
        raise SpecError(str(error).replace("a lake's URL", "a URL of sources")) from None
