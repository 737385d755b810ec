"""A source file as a stream of bytes, gunzipped where it is gzip, with a limit on what comes out."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from diastole.lake.errors import ItemError

PIECE = 2**20
"""Bytes read at once."""
_GZIP = b"\x1f\x8b"


class Stream:
    """Bytes of a source, at most `limit` of them. Raises ItemError `too_large` for one more."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self.count = 0
        """Bytes read so far, after gunzip."""

    def read(self, size: int = PIECE) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        data = self._file.read(size)
        self.count += len(data)
        if self.count > self._limit:
            raise ItemError("too_large", f"it decodes to more than {self._limit} bytes; raise max_item_bytes if it may")
        return data

    def drain(self) -> None:
        """Read to the end, so that the checksum of a gzip file is checked."""
        while self.read():
            pass


@contextmanager
def opened(path: Path, limit: int) -> Iterator[Stream]:
    """Open a source. Raises ItemError: unreadable, truncated, checksum, too_large."""
    try:
        with path.open("rb") as plain:
            if plain.peek(2)[:2] != _GZIP:
                yield Stream(plain, limit)
                return
            with gzip.GzipFile(fileobj=plain) as unzipped:
                yield Stream(cast(BinaryIO, unzipped), limit)
    except EOFError as error:
        raise ItemError("truncated", "its gzip stream ends too early; copy it again") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ItemError("checksum", "its gzip stream is damaged; copy it again") from error
    except PermissionError as error:
        raise ItemError("unreadable", "it cannot be opened; check its permissions") from error
    except FileNotFoundError as error:
        raise ItemError("unreadable", "it is not there any more") from error


def head(path: Path, size: int) -> bytes:
    """The first bytes, after gunzip."""
    with opened(path, size) as stream:
        return stream.read(size)


BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends a bgzip file: its blocks are gzip files, so that nothing else tells of one that is missing."""


def check_bgzip_end(path: Path) -> None:
    """Raise ItemError `truncated` where a file is bgzip and does not end as one."""
    with path.open("rb") as file:
        head = file.read(16)
        if len(head) < 16 or head[:4] != BGZIP_END[:4] or head[12:16] != BGZIP_END[12:16]:
            return
        file.seek(max(0, path.stat().st_size - len(BGZIP_END)))
        if file.read() != BGZIP_END:
            raise ItemError("truncated", "the block that ends a bgzip file is missing; copy it again")


def is_gzip(path: Path) -> bool:
    """Whether the file itself is gzip."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP
