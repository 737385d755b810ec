"""Object stores: opened so that nothing hangs, asked again where they fail, and their errors in our words."""

import io
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import EnvironmentFailure, LakeError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
RETRY_SECONDS = float(os.environ.get("DIASTOLE_RETRY_SECONDS", "60"))
"""How long what an object store fails at is tried again, before that is an EnvironmentFailure."""
SILENT_SECONDS = float(os.environ.get("DIASTOLE_SILENT_SECONDS", "20"))
"""How long an object store may send nothing before its connection is given up, and the request tried again."""
REQUEST_SECONDS = 600.0
"""What one request may take in all: a shard of 256 MB through a slow line."""
CONNECT_SECONDS = 5.0
RETRIES = 10


class _ObjectFile(io.RawIOBase):
    """An object of a store as Python's own kind of file."""

    def __init__(self, relative: str, reader: Any) -> None:
        self._relative, self._reader = relative, reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: Any) -> int:
        with translated(self._relative):
            data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def open_file(store: Any, relative: str) -> io.BufferedReader:
    """An object as a file of Python's."""
    import obstore

    return io.BufferedReader(_ObjectFile(relative, obstore.open_reader(store, relative)))


def opened(url: str) -> "ObjectStore":
    """What is given up in bounded time. Raises LakeError for a URL that is none, or has keys in it."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    who, at, _ = rest.partition("/")[0].rpartition("@")
    if set("?#") & set(rest) or (at and (":" in who or not scheme.startswith("abfs"))):
        raise LakeError("a lake's URL may have no keys and no options in it; set them in the environment")
    if url.startswith("memory"):
        return from_url(url)
    client: Any = {  # given any, obstore takes none of them from the environment any more
        name: os.environ[said]
        for name in ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes")
        for said in (f"{cloud}_{name.upper()}" for cloud in ("AWS", "GOOGLE", "AZURE"))
        if said in os.environ
    }
    client |= {
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "read_timeout": timedelta(seconds=SILENT_SECONDS),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
    }
    retries: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    try:
        return from_url(url, client_options=client, retry_config=retries)
    except BaseError:
        raise LakeError(f"that is no URL of a store at {scheme}://; write it as in s3://bucket/path") from None


def delta_options() -> dict[str, str]:
    """The same for deltalake, which knows no limit of silence; but nothing of a table is large."""
    return {
        "timeout": f"{3 * SILENT_SECONDS:g}s",
        "connect_timeout": f"{CONNECT_SECONDS:g}s",
        "max_retries": str(RETRIES),
        "retry_timeout": f"{RETRY_SECONDS:g}s",
    }


class translated:  # noqa: N801 - used like a function
    """Object-store errors in our words: not found stays FileNotFoundError, the rest is the environment's."""

    def __init__(self, relative: str) -> None:
        self.relative = relative

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

        lost = error is not None and "NoSuchBucket" in str(error)  # no item's fault
        if isinstance(error, NotFoundError | FileNotFoundError) and not lost:
            raise FileNotFoundError(self.relative) from error
        if error is not None and (lost or (isinstance(error, BaseError) and not isinstance(error, AlreadyExistsError))):
            raise EnvironmentFailure(f"the object store failed at {self.relative}: {reason(error)}") from error


def again(relative: str, act: Callable[[], T]) -> T:
    """What may be done twice, until it is done. obstore does so, too, but not where half an answer came."""
    until, pause = time.monotonic() + RETRY_SECONDS, 0.1
    while True:
        try:
            with translated(relative):
                return act()
        except EnvironmentFailure as failure:
            if time.monotonic() + pause > until or not _passes(failure.__cause__):
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


_STATUS = re.compile(r"\b([45]\d\d) ([A-Z][A-Za-z]+(?: [A-Z][A-Za-z]+)*)")
_AWS = re.compile(r"AWS Error ([A-Z_]+)")


def reason(error: BaseException) -> str:
    """Why storage failed, in few words: a client's own may hold an address, a key's name, or pages of XML."""
    text = str(error).partition("Debug source")[0]
    found = _STATUS.search(text) or _AWS.search(text)
    word = " ".join(found.groups()) if found else ""
    if "NoSuchBucket" in text:
        word = "there is no such bucket"
    if re.search(r"\b40[013]\b|Expired|ACCESS_DENIED|InvalidAccessKey|Unauth|PermissionDenied", f"{text} {error!r}"):
        return f"{word or 'access denied'}; are the keys in the environment still good?"
    if not word and re.search("timed? ?out|sending request", text, re.IGNORECASE):
        word = "no answer"
    if not word and re.search("connect", text, re.IGNORECASE):
        word = "the connection ended"
    return word or type(error).__name__


def _passes(error: BaseException | None) -> bool:
    """Whether what an object store failed with may be over soon."""
    from obstore.exceptions import GenericError

    found = _STATUS.search(str(error))
    return (
        error is not None
        and isinstance(error, GenericError)
        and not (found and found[1].startswith("4") and found[1] != "429")
    )
