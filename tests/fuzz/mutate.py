"""Edits that make hostile files out of sound ones; each is three numbers, so that hypothesis can shrink what it finds."""

import copy
import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Edit = tuple[int, int, int]
"""What, where, and with which value."""
LONG = 2**16
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1.5, 1e308, float("inf"), float("nan"), "", "x", "../../etc/passwd",
    "/etc/passwd", "a\\b", "file:///etc/passwd", "http://169.254.169.254/", "\u0000", "\ud800", "\u202e", "²", "9" * 400, "A" * 5000, "1e999", [], {}, [[]],
    [None], {"": None}, {"a": {"b": [1]}}, [0] * 100, "2020-13-45", "int8", "O", "pickle", "level=item/", "..",
)  # fmt: skip
WORDS = (b"&a [*a]", b"!!python/object/apply:os.system ['true']", b"<<: ", b"*a", b"? [a]: b", b"\n- ", b": ", b"{", b"[" * 2000, b"]", b'"', b"'", b"\0", b"\xff\xfe",
         b"\xed\xa0\x80", b"1:" * 50, b".nan", b".inf", b"2020-13-45", b"0x" + b"f" * 300, b"9" * 5000, b"!!binary x", b"|\n", b"%TAG", b"---\n", b"...\n", b",", b"\r",
         b"0001-01-01T00:00:00+23:59", b">", b"-1", b"nan", b"1e400", b"\xc2\xb2")  # fmt: skip


def mutate(data: bytes, edits: Sequence[Edit], others: Sequence[bytes] = ()) -> bytes:
    """Bytes with each edit done to them, one after the other."""
    for what, where, value in edits:
        data = _EDITS[what % len(_EDITS)](data, where, value, others)
    return data[: 2**22]


def mutate_json(data: bytes, edits: Sequence[Edit], others: Sequence[bytes] = ()) -> bytes:
    """JSON whose values are exchanged, removed or added; a few bytes of it where an edit says so."""
    tree = json.loads(data)
    raw = []
    for what, where, value in edits:
        if what % 5 == 4:
            raw.append((what // 5, where, value))
            continue
        holder, key = _places(tree)[where % len(_places(tree))]
        if what % 5 == 3 and isinstance(holder, dict):
            holder[str(HOSTILE[value % len(HOSTILE)])] = copy.deepcopy(holder[key])
        elif what % 5 == 2 and len(holder) > 0 and holder is not tree:
            del holder[key]
        elif what % 5 == 1 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += (-1, 1, 1000, 2**31, -(2**31))[value % 5]
        else:
            holder[key] = copy.deepcopy(HOSTILE[value % len(HOSTILE)])
        if not isinstance(tree, dict | list) or not tree:
            break
        if not _places(tree):
            break
    return mutate(json.dumps(tree).encode("utf-8", "surrogatepass"), raw, others)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found, todo = [], [tree]
    while todo:
        one = todo.pop()
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        for key, value in pairs:
            found.append((one, key))
            if isinstance(value, dict | list):
                todo.append(value)
    return found


def within_gzip(data: bytes, edits: Sequence[Edit], others: Sequence[bytes] = ()) -> bytes:
    """What a gzip file holds is edited, and packed again; with an odd first edit the gzip file itself."""
    if edits and edits[0][0] & 1:
        return mutate(data, edits, others)
    return gzip.compress(mutate(gzip.decompress(data), edits), 1, mtime=0)


def with_png_sums(data: bytes, edits: Sequence[Edit], others: Sequence[bytes] = ()) -> bytes:
    """A PNG that is edited and whose chunks have the right checksums again, as far as chunks are there."""
    data = mutate(data, edits, others)
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        if len(body) < size + 4:
            break
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += size + 12
    return bytes(out + data[at:])


def with_index_sum(data: bytes, edits: Sequence[Edit], chunks: int) -> bytes:
    """A shard of Zarr whose index is edited, and has the right checksum again."""
    import google_crc32c

    table = len(data) - 16 * chunks - 4
    if edits and edits[0][0] & 1:
        return mutate(data, edits)
    index = bytearray(data[table:-4])
    for what, where, value in edits:
        at = 8 * (where % (len(index) // 8))
        old = int.from_bytes(index[at : at + 8], "little")
        new = NUMBERS[value % len(NUMBERS)] if what & 2 else (old + (-1, 1, 8, -8, 2**32, len(data))[value % 6])
        index[at : at + 8] = (new % 2**64).to_bytes(8, "little")
    return data[:table] + bytes(index) + google_crc32c.value(bytes(index)).to_bytes(4, "little")


def _flip(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    out = bytearray(data or b"\0")
    out[where % len(out)] ^= 1 << value % 8
    return bytes(out)


def _set(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    out = bytearray(data or b"\0")
    out[where % len(out)] = value % 256
    return bytes(out)


def _number(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    size, order = (1, 2, 4, 8)[value % 4], ("little", "big")[value // 4 % 2]
    number = NUMBERS[value // 8 % len(NUMBERS)] % 2 ** (8 * size)
    at = where % max(len(data), 1)
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _cut(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    return data[: where % (len(data) + 1)]


def _drop(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + data[at + 1 + value % 64 :]


def _repeat(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    at, size = where % (len(data) + 1), 1 + value % 256
    return data[: at + size] + data[at : at + size] * (1 + value // 256 % 32) + data[at + size :]


def _word(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + WORDS[value % len(WORDS)] + data[at + value // len(WORDS) % 8 :]


def _splice(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    other = others[value % len(others)] if others else data
    at = where % (len(data) + 1)
    return data[:at] + other[value % (len(other) + 1) :]


def _digits(data: bytes, where: int, value: int, others: Sequence[bytes]) -> bytes:
    """The next run of digits becomes another number of as many letters."""
    at = next((n for n in range(where % (len(data) + 1), len(data)) if data[n : n + 1].isdigit()), None)
    if at is None:
        return data
    end = at
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    text = (b"9" * (end - at), b"0" * (end - at), str(value).encode()[: end - at].ljust(end - at), b"-" * (end - at))
    return data[:at] + text[value % 4] + data[end:]


_EDITS: tuple[Callable[[bytes, int, int, Sequence[bytes]], bytes], ...] = (
    _flip, _set, _number, _number, _cut, _drop, _repeat, _word, _word, _splice, _digits,
)  # fmt: skip
