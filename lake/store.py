"""One class for where a lake lies: a folder, or any URL that obstore opens (s3://, gs://, az://, memory://)."""

import hashlib
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from . import disk, remote
from .errors import EnvironmentFailure, LakeError
from .remote import again, open_file, opened, translated

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "memory")
"""What may be opened. `http` is not: a lake's URL must not reach a cloud's metadata service."""

SYNCS = 8
"""Files that are made durable, or copied, at a time."""
REQUESTS = 8
"""Parts of an object that are asked for at a time: one stream of an object store is slow."""
PIECE = 8 * 2**20
"""Bytes that are read at a time where a file is only hashed."""
WRITER = "diastole-writer"
"""What is said of an object that was put if absent: by which call. So one whose answer was lost knows its own."""


_BUFFERS = (bytes, bytearray, memoryview)


class Found(NamedTuple):
    """A file as a listing shows it."""

    path: str
    bytes: int
    modified: float
    """Seconds since 1970, by the storage's clock."""


class Store:
    """Bytes by relative path. Writes are whole and durable; `put_if_absent` is what the commit protocol rests on."""

    def __init__(self, root: str) -> None:
        scheme, separator, _ = root.partition("://")
        self.local: Path | None = None
        self._remote: ObjectStore | None = None
        if not separator or scheme == "file":
            self.local = Path(root.removeprefix("file://")).expanduser().absolute()
            self.root = str(self.local)
        elif scheme in SCHEMES:
            self._remote = opened(
                root
            )  # credentials come from the environment: a lake's URL is shown and sent to workers
            self.root = root.rstrip("/")
        else:
            raise LakeError(f"a lake cannot be at {scheme}://; use a folder or one of {', '.join(SCHEMES)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.root,))  # a pickled obstore would carry its keys

    def path(self, relative: str) -> Path:
        """The local path of `relative`; refuses what leaves the root, also by a symbolic link."""
        if self.local is None:
            raise LakeError(f"{self.root} is not a folder on this machine")
        _check(relative)
        full, here = self.local / relative, self.root
        for name in relative.split("/"):
            here = f"{here}/{name}"
            if os.path.islink(here):  # noqa: PTH114 - a Path for each of them took longer than reading a small file
                if not full.resolve().is_relative_to(self.local.resolve()):
                    raise LakeError(f"{relative} leads out of the lake; remove the link")
                break
        return full

    def uri(self, relative: str) -> str:
        """What deltalake opens."""
        _check(relative)
        return f"{self.root}/{relative}"

    def get(self, relative: str) -> bytes:
        """All bytes. Raises FileNotFoundError; EnvironmentFailure where storage fails."""
        with self.reading(relative):
            if self.local is not None:
                return self.path(relative).read_bytes()
            import obstore

            _check(relative)
            return again(relative, lambda: bytes(obstore.get(self._obstore, relative).bytes()))

    def sha256(self, relative: str) -> str:
        """Of all bytes, which are never held together. Raises FileNotFoundError; EnvironmentFailure where storage fails."""
        with self.reading(relative):
            if self.local is not None:
                with self.path(relative).open("rb", buffering=0) as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            import obstore

            _check(relative)

            def hashed() -> str:
                running = hashlib.sha256()
                for piece in obstore.get(self._obstore, relative).stream(PIECE):
                    running.update(memoryview(piece))
                return running.hexdigest()

            return again(relative, hashed)

    def open(self, relative: str) -> Any:
        """A file to read parts of, as a context. Raises FileNotFoundError; EnvironmentFailure where storage fails."""
        with self.reading(relative):
            if self.local is not None:
                return self.path(relative).open("rb")
            return open_file(self._obstore, _check(relative))

    def fill(self, relative: str, places: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """Read parts of one file straight into buffers: each, (bytes,) uint8, from its offset.

        Which of them were filled, (n,) bool: not those that reach beyond the end of a file in a folder. Raises
        FileNotFoundError; EnvironmentFailure where storage fails.
        """
        with self.reading(relative):
            if self.local is not None:
                with self.path(relative).open("rb", buffering=0) as file:
                    return np.array([_filled(file, *place) for place in places], bool)
            import obstore

            _check(relative)

            def get(place: tuple[int, np.ndarray]) -> bool:
                offset, into = place
                part = again(
                    relative, lambda: obstore.get_range(self._obstore, relative, start=offset, length=len(into))
                )
                into[: len(part)] = np.frombuffer(memoryview(part), np.uint8)
                return len(part) == len(into)

            with ThreadPoolExecutor(REQUESTS, thread_name_prefix="diastole-get") as threads:
                return np.array(list(threads.map(get, places)), bool)

    def size(self, relative: str) -> int | None:
        """Size in bytes, or None where there is nothing."""
        try:
            with self.reading(relative):
                if self.local is not None:
                    path = self.path(relative)
                    return path.stat().st_size if path.is_file() else None
                import obstore

                _check(relative)
                return int(again(relative, lambda: obstore.head(self._obstore, relative)["size"]))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def reading(self, relative: str) -> Iterator[None]:
        """What storage fails with is the environment's: EnvironmentFailure. What is not there stays FileNotFoundError.

        An OSError without a number is no failure of storage, but of a library that found other bytes than it expected.
        """
        try:
            with translated(relative):
                yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if error.errno is None:
                raise
            raise EnvironmentFailure(f"storage failed at {relative}: {error.strerror}") from error

    def put(self, relative: str, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:
        """Write whole, replacing what was there. In a folder, what is not `durable` is so only after `sync`.

        `data` may be pieces: in a folder they are written as they come, an object store gets them at once.
        """
        if self.local is None:
            import obstore

            _check(relative)
            whole = data if isinstance(data, _BUFFERS) else b"".join(data)
            again(relative, lambda: obstore.put(self._obstore, relative, whole))
            return
        path = self.path(relative)
        disk.make(path.parent, self.local, now=durable)
        part = _write_aside(path, data, durable=durable)
        part.replace(path)
        if durable:
            disk.sync(path.parent)

    def put_if_absent(self, relative: str, data: bytes) -> bool:
        """Write whole unless something is there already; False if it was. Atomic between processes and machines.

        Where an object store wrote it and its answer was lost, it is known as this call's own.
        """
        if self.local is None:
            return self._create(relative, data)
        path = self.path(relative)
        disk.make(path.parent, self.local)
        part = _write_aside(path, data)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        disk.sync(path.parent)
        return True

    def _create(self, relative: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        own, until = uuid.uuid4().hex, time.monotonic() + remote.RETRY_SECONDS
        _check(relative)

        def create() -> None:
            obstore.put(self._obstore, relative, data, mode="create", attributes={WRITER: own})

        def writer() -> str | None:
            return obstore.get(self._obstore, relative, options={"head": True}).attributes.get(WRITER)

        while True:
            try:
                again(relative, create)  # a client alone does not try again when its connection ends
                return True
            except AlreadyExistsError:
                with suppress(FileNotFoundError):
                    return bool(again(relative, writer) == own)
            if time.monotonic() > until:  # deleted, or of two that came at once neither was kept: again
                raise EnvironmentFailure(f"the object store says of {relative} that it is there, and is not")
            time.sleep(0.1)

    def link(self, paths: Mapping[str, str]) -> None:
        """Let what is at each source, and never changes, be at its target too: a link where the folder has them, else a copy."""
        if self.local is None:
            with ThreadPoolExecutor(SYNCS, thread_name_prefix="diastole-copy") as threads:
                list(threads.map(self._copy, paths, paths.values()))
            return
        folders = dict.fromkeys(self.path(target).parent for target in paths.values())
        for folder in folders:
            disk.make(folder, self.local)
        for source, target in paths.items():
            try:
                os.link(self.path(source), self.path(target))
            except FileExistsError:
                continue
            except OSError:  # not of this file system
                self.put_if_absent(target, self.get(source))
        for folder in folders:  # once, not after each: a disk takes milliseconds for it
            disk.sync(folder)

    def _copy(self, source: str, target: str) -> None:
        import obstore

        _check(source), _check(target)
        again(source, lambda: obstore.copy(self._obstore, source, target))

    def delete(self, relative: str) -> None:
        """Remove one file, if it is there."""
        if self.local is not None:
            self.path(relative).unlink(missing_ok=True)
            return
        import obstore

        _check(relative)
        again(relative, lambda: obstore.delete(self._obstore, relative))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(relative path, bytes) of all files below a folder, sorted."""
        if self.local is not None:
            top = self.path(prefix)
            for path in sorted(p for p in top.rglob("*") if p.is_file() and not p.name.startswith(".part-")):
                yield path.relative_to(self.local).as_posix(), path.stat().st_size
            return
        import obstore

        _check(prefix)

        def found() -> list[tuple[str, int]]:
            return [(str(m["path"]), int(m["size"])) for b in obstore.list(self._obstore, prefix) for m in b]

        yield from sorted(again(prefix, found))

    def found(self, prefix: str) -> Iterator[Found]:
        """All files below a folder, in no order, also those that are being written; links are passed over.

        Raises EnvironmentFailure where any folder cannot be listed: what is not listed is not: not there.
        """
        with self.reading(prefix):
            if self.local is not None:
                yield from _walked(self.local, self.path(prefix))
                return
            import obstore

            for batch in obstore.list(self._obstore, _check(prefix)):
                yield from (Found(str(m["path"]), int(m["size"]), m["last_modified"].timestamp()) for m in batch)

    def prune(self, prefix: str) -> None:
        """Remove the folders below a folder that have nothing in them."""
        if self.local is None:
            return
        top = self.path(prefix)
        for folder, _, _ in os.walk(top, topdown=False):
            if Path(folder) != top:
                with suppress(OSError):  # there is something in it
                    Path(folder).rmdir()

    def names(self, prefix: str) -> Iterator[str]:
        """Names of the files directly below a folder, in no order; of a million, one at a time."""
        if self.local is not None:
            with suppress(FileNotFoundError), os.scandir(self.path(prefix)) as entries:
                yield from (e.name for e in entries if not e.name.startswith(".part-") and e.is_file())
            return
        import obstore

        with translated(prefix):
            for found in obstore.list(self._obstore, _check(prefix)):
                yield from (name for m in found if "/" not in (name := str(m["path"]).removeprefix(f"{prefix}/")))

    def folders(self, prefix: str) -> Iterator[str]:
        """Names of the folders directly below a folder, sorted."""
        if self.local is not None:
            top = self.path(prefix)
            yield from sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ()
            return
        import obstore

        _check(prefix)
        found = again(prefix, lambda: obstore.list_with_delimiter(self._obstore, prefix)["common_prefixes"])
        yield from sorted(PurePosixPath(name).name for name in found)

    def sync(self, *prefixes: str) -> None:
        """Make files below folders durable, and these in their own. Object stores are durable as they answer.

        Many at a time: a file system writes down together what is asked for together.
        """
        if self.local is None:
            return
        found: dict[Path, None] = {}
        for prefix in prefixes:
            top = self.path(prefix)
            disk.tell(top, self.local)
            found |= dict.fromkeys([top.parent, top, *top.rglob("*")])
        with ThreadPoolExecutor(SYNCS, thread_name_prefix="diastole-sync") as threads:
            list(threads.map(disk.sync, found))

    def zarr(self, relative: str, *, read_only: bool) -> Any:
        """A zarr store rooted at `relative`."""
        if self.local is not None:
            from zarr.storage import LocalStore

            return LocalStore(self.path(relative), read_only=read_only)
        from zarr.storage import ObjectStore as ZarrObjectStore

        return ZarrObjectStore(opened(self.uri(relative)), read_only=read_only)

    @property
    def options(self) -> dict[str, str] | None:
        """How deltalake is to try again, and when to give up."""
        if self.local is not None or self.root.startswith("memory"):
            return None
        return remote.delta_options()

    @property
    def _obstore(self) -> Any:
        return self._remote


def _check(relative: str) -> str:
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\\" in relative:
        raise LakeError(f"{relative!r} is not a path inside a lake")
    return relative


def _walked(root: Path, top: Path) -> Iterator[Found]:
    def failed(error: OSError) -> NoReturn:
        raise error

    if not top.is_dir():
        return
    for folder, _, names in os.walk(top, onerror=failed):
        for name in names:
            path = Path(folder) / name
            try:
                info = path.lstat()
            except FileNotFoundError:  # another removed it just now
                continue
            if stat.S_ISREG(info.st_mode):
                yield Found(path.relative_to(root).as_posix(), info.st_size, info.st_mtime)


def _filled(file: Any, offset: int, into: np.ndarray) -> bool:
    """Whether an open file, unbuffered, has as many bytes there as go into the buffer."""
    file.seek(offset)
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])
        if not count:
            return False
        done += count
    return True


def _write_aside(path: Path, data: bytes | Iterable[bytes], *, durable: bool = True) -> Path:
    part = path.parent / f".part-{uuid.uuid4().hex}"
    try:
        with part.open("xb") as file:
            file.writelines([data] if isinstance(data, _BUFFERS) else data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EnvironmentFailure(f"cannot write to {path.parent}: {error.strerror}") from error
    except BaseException:  # of whoever makes the pieces
        part.unlink(missing_ok=True)
        raise
    return part
