"""Which files there are at the paths that are ingested, one after the other: a million of them fit the memory."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diastole.lake.errors import SpecError

from .bucket import Bucket, is_remote
from .sources import Source

SIDECARS = (".json", ".tsv", ".bval", ".bvec")
"""BIDS puts these beside images and recordings. In a folder they are no sources by themselves; named one by one, they
are tried."""


def absolute(path: Path | str) -> str:
    """The path that a source's key is made of: absolute, without '..', links as they are; a URL as it is."""
    if is_remote(path):
        return str(path).rstrip("/")
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - absolute() keeps '..'


@dataclass
class Listing:
    """The files at and below some paths, sorted within each, each once; what may not be opened says why."""

    roots: list[str]
    folders: list[str] = field(default_factory=list)
    """Folders that could be listed so far."""
    closed: set[str] = field(default_factory=set)
    """Roots of folders that could not."""
    without: str | None = None
    """A file that is left out: the manifest."""
    _seen: set[str] | None = None

    @classmethod
    def of(cls, paths: Sequence[Path | str], without: str | None = None) -> "Listing":
        """A listing of paths that exist. Raises SpecError for others; messages hold no paths."""
        roots = list(dict.fromkeys(absolute(path) for path in paths))
        for number, root in enumerate(roots, 1):
            _check(root, f"path {number} of {len(roots)}")
        return cls(roots, without=without, _seen=set() if len(roots) > 1 else None)

    def __iter__(self) -> Iterator[Source]:
        for root in self.roots:
            for source in self._below(root):
                if source.path == self.without:
                    continue
                if self._seen is not None:
                    if source.path in self._seen:
                        continue
                    self._seen.add(source.path)
                yield source

    def _below(self, root: str) -> Iterator[Source]:
        if is_remote(root):
            for path, size, modified in Bucket(root).list():
                relative = path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]
                if not any(part.startswith(".") for part in relative.split("/")):
                    yield Source(path, plain(relative), root, size, modified, sidecar=relative.endswith(SIDECARS))
        elif os.path.isfile(root):  # noqa: PTH113
            size, modified = stat_of(root)
            yield Source(root, plain(os.path.basename(root)), root, size, modified)  # noqa: PTH119
        else:
            yield from self._walk(root, root, os.path.realpath(root))

    def _walk(self, folder: str, root: str, real_root: str) -> Iterator[Source]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    (e for e in entries if not e.name.startswith(".")), key=lambda entry: os.fsencode(entry.name)
                )
        except OSError as error:
            why = f"it is a folder that cannot be listed ({error.strerror}); check its permissions"
            self.closed.add(root)
            yield _refused(folder, root, why)
            return
        self.folders.append(folder)
        below = []
        for entry in found:
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    yield from _entry(entry, root, real_root)
            except OSError as error:
                why = f"it cannot be looked at ({error.strerror}); check the permissions of its folder"
                yield _refused(entry.path, root, why)
        for path in below:
            yield from self._walk(path, root, real_root)


def plain(relative: str) -> str:
    """Without `.gz` and one extension of letters, so that `scan.v2` keeps its version."""
    return _EXTENSION.sub("", relative.removesuffix(".gz"))


def stat_of(path: str) -> tuple[int, int]:
    """(bytes, modification time in ns), of a link itself where it leads nowhere, (-1, 0) where there is nothing."""
    for follow in (True, False):
        try:
            found = os.stat(path, follow_symlinks=follow)  # noqa: PTH116
        except OSError:
            continue
        return found.st_size, found.st_mtime_ns
    return -1, 0


_EXTENSION = re.compile(r"(?<=[^/])\.[A-Za-z]{2,5}$")


def _check(root: str, which: str) -> None:
    if is_remote(root):
        return
    try:
        there = Path(root).exists()
    except OSError as error:
        raise SpecError(f"{which} cannot be looked at ({error.strerror}); check the permissions there") from None
    if not there:
        raise SpecError(f"{which} does not exist; check how it is written")


def _entry(entry: os.DirEntry[str], root: str, real_root: str) -> Iterator[Source]:
    sidecar = entry.name.endswith(SIDECARS)
    if entry.is_symlink():
        if why := _link_refusal(entry.path, real_root):
            if not sidecar:
                yield _refused(entry.path, root, why)
        elif entry.is_file():
            yield _source(entry.path, root, *stat_of(entry.path), sidecar=sidecar)
        return
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(found.st_mode):
        yield _source(entry.path, root, found.st_size, found.st_mtime_ns, sidecar=sidecar)
    elif not sidecar:
        yield _refused(entry.path, root, "it is not a plain file")


def _source(path: str, root: str, size: int, modified: int, *, sidecar: bool) -> Source:
    return Source(path, plain(path[len(root) :].lstrip("/")), root, size, modified, sidecar=sidecar)


def _refused(path: str, root: str, why: str) -> Source:
    return Source(path, plain(path[len(root) :].lstrip("/")), root, -1, 0, refused=why)  # read when it is no longer


def _link_refusal(path: str, real_root: str) -> str | None:
    try:
        real = Path(path).resolve()
        if not real.is_relative_to(real_root):
            return "it is a link that leaves the ingested folder; name what it leads to, or copy it here"
        return None if real.exists() else "it is a link to something that is not there; fetch its content"
    except RuntimeError:  # before Python 3.13, of `resolve`
        return "it is a link that leads to itself; remove it"
