"""Digests and opaque ids, all of 128 bits, written as 32 hexadecimal characters."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """The one way in which a value is written before it is hashed: sorted keys, no spaces, UTF-8."""
    return _ENCODER.encode(value).encode()


def digest(value: Any) -> str:
    """Digest of a JSON-like value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def begun_digest(header: Mapping[str, Any]) -> "hashlib._Hash":
    """The digest of what an item is, up to its bytes: to be copied for each of many that have one header."""
    return hashlib.sha256(canonical_json(header) + b"\0")


def content_digest(header: Mapping[str, Any], data: Any) -> str:
    """Digest of what an item is: a canonical header (shape, dtype, geometry, signal) and its raw bytes in C order."""
    running = begun_digest(header)
    running.update(data)
    return running.hexdigest()[:32]


def content_digests(header: Mapping[str, Any], rows: Iterable[Any]) -> Iterator[str]:
    """As `content_digest` of each of many that have one header, which is encoded once."""
    start = begun_digest(header)
    for data in rows:
        running = start.copy()
        running.update(data)
        yield running.hexdigest()[:32]


def keyed(key: bytes, kind: str, *parts: str) -> str:
    """An id that tells nothing without the lake's key: HMAC-SHA256 over the kind and its parts."""
    message = "\0".join((kind, *parts)).encode("utf-8", "surrogateescape")  # file names need not be UTF-8
    return hmac.digest(key, message, "sha256").hex()[:32]


def sha256_file(path: Path) -> str:
    """SHA-256 of a local file, read in pieces of 1 MiB, as 64 hexadecimal characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()
