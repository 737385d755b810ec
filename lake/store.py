"""One class for where a lake lies: a folder, or any URL that obstore opens (s3://, gs://, az://, memory://)."""

import io
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from .errors import EnvironmentFailure, LakeError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "memory")
"""What may be opened. `http` is not: a lake's URL must not reach a cloud's metadata service."""

SYNCS = 8
"""Files that are made durable, or copied, at a time."""
REQUESTS = 8
"""Parts of an object that are asked for at a time: one stream of an object store is slow."""


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
            from obstore.store import from_url

            self._remote = from_url(root)  # credentials come from the environment, and are never written down
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

            return bytes(obstore.get(self._obstore, _check(relative)).bytes())

    def open(self, relative: str) -> Any:
        """A file to read parts of, as a context. Raises FileNotFoundError; EnvironmentFailure where storage fails."""
        with self.reading(relative):
            if self.local is not None:
                return self.path(relative).open("rb")
            import obstore

            return io.BufferedReader(_Object(obstore.open_reader(self._obstore, _check(relative))))

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

            def get(place: tuple[int, np.ndarray]) -> bool:
                offset, into = place
                part = obstore.get_range(self._obstore, _check(relative), start=offset, length=len(into))
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

                return int(obstore.head(self._obstore, _check(relative))["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def reading(self, relative: str) -> Iterator[None]:
        """What storage fails with is the environment's: EnvironmentFailure. What is not there stays FileNotFoundError.

        An OSError without a number is no failure of storage, but of a library that found other bytes than it expected.
        """
        try:
            with _translated(relative):
                yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if error.errno is None:
                raise
            raise EnvironmentFailure(f"storage failed at {relative}: {error.strerror}") from error

    def put(self, relative: str, data: bytes, *, durable: bool = True) -> None:
        """Write whole, replacing what was there. In a folder, what is not `durable` is so only after `sync`."""
        if self.local is None:
            import obstore

            with _translated(relative):
                obstore.put(self._obstore, _check(relative), data)
            return
        path = self.path(relative)
        part = _write_aside(path, data, durable=durable)
        part.replace(path)
        if durable:
            _sync(path.parent)

    def put_if_absent(self, relative: str, data: bytes) -> bool:
        """Write whole unless something is there already; False if it was. Atomic between processes and machines."""
        if self.local is None:
            import obstore
            from obstore.exceptions import AlreadyExistsError

            try:
                with _translated(relative):
                    obstore.put(self._obstore, _check(relative), data, mode="create")
            except AlreadyExistsError:
                return False
            return True
        path = self.path(relative)
        part = _write_aside(path, data)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        _sync(path.parent)
        return True

    def link(self, paths: Mapping[str, str]) -> None:
        """Let what is at each source, and never changes, be at its target too: a link where the folder has them, else a copy."""
        if self.local is None:
            with ThreadPoolExecutor(SYNCS, thread_name_prefix="diastole-copy") as threads:
                list(threads.map(self._copy, paths, paths.values()))
            return
        folders = dict.fromkeys(self.path(target).parent for target in paths.values())
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for source, target in paths.items():
            try:
                os.link(self.path(source), self.path(target))
            except FileExistsError:
                continue
            except OSError:  # not of this file system
                self.put_if_absent(target, self.get(source))
        for folder in folders:  # once, not after each: a disk takes milliseconds for it
            _sync(folder)

    def _copy(self, source: str, target: str) -> None:
        import obstore

        with _translated(source):
            obstore.copy(self._obstore, _check(source), _check(target))

    def delete(self, relative: str) -> None:
        """Remove one file, if it is there."""
        if self.local is not None:
            self.path(relative).unlink(missing_ok=True)
            return
        import obstore

        with _translated(relative):
            obstore.delete(self._obstore, _check(relative))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(relative path, bytes) of all files below a folder, sorted."""
        if self.local is not None:
            top = self.path(prefix)
            for path in sorted(p for p in top.rglob("*") if p.is_file() and not p.name.startswith(".part-")):
                yield path.relative_to(self.local).as_posix(), path.stat().st_size
            return
        import obstore

        with _translated(prefix):
            found = [(str(m["path"]), int(m["size"])) for b in obstore.list(self._obstore, _check(prefix)) for m in b]
        yield from sorted(found)

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

        with _translated(prefix):
            for found in obstore.list(self._obstore, _check(prefix)):
                yield from (name for m in found if "/" not in (name := str(m["path"]).removeprefix(f"{prefix}/")))

    def folders(self, prefix: str) -> Iterator[str]:
        """Names of the folders directly below a folder, sorted."""
        if self.local is not None:
            top = self.path(prefix)
            yield from sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ()
            return
        import obstore

        with _translated(prefix):
            found = obstore.list_with_delimiter(self._obstore, _check(prefix))["common_prefixes"]
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
            found |= dict.fromkeys([top.parent, top, *top.rglob("*")])
        with ThreadPoolExecutor(SYNCS, thread_name_prefix="diastole-sync") as threads:
            list(threads.map(_sync, found))

    def zarr(self, relative: str, *, read_only: bool) -> Any:
        """A zarr store rooted at `relative`."""
        if self.local is not None:
            from zarr.storage import LocalStore

            return LocalStore(self.path(relative), read_only=read_only)
        from obstore.store import from_url
        from zarr.storage import ObjectStore as ZarrObjectStore

        return ZarrObjectStore(from_url(self.uri(relative)), read_only=read_only)

    @property
    def _obstore(self) -> Any:
        return self._remote


class _Object(io.RawIOBase):
    """An object of a store as Python's own kind of file."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: Any) -> int:
        data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


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


def _write_aside(path: Path, data: bytes, *, durable: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".part-{uuid.uuid4().hex}"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EnvironmentFailure(f"cannot write to {path.parent}: {error.strerror}") from error
    return part


def _sync(path: Path) -> None:
    """Of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _translated:  # noqa: N801 - used like a function
    """Object-store errors in our words: not found stays FileNotFoundError, the rest is the environment's."""

    def __init__(self, relative: str) -> None:
        self.relative = relative

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

        if isinstance(error, NotFoundError):
            raise FileNotFoundError(self.relative) from error
        if isinstance(error, BaseError) and not isinstance(error, AlreadyExistsError):
            raise EnvironmentFailure(f"the object store failed at {self.relative}: {type(error).__name__}") from error
