"""All that was written into a folder, as bytes that can be searched: names, files, Parquet's values, what zstd holds."""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ZSTD = b"\x28\xb5\x2f\xfd"
MOST = 2**26


def everything(root: Path) -> Iterator[tuple[str, bytes]]:
    """(path, bytes): of each name, of each file, and of what is packed in it."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        yield name, name.encode()
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        yield name, data
        if path.suffix == ".parquet":
            table = pq.read_table(io.BytesIO(data))
            yield name, str(table.to_pylist()).encode() + str(table.schema.metadata).encode()
        else:
            yield from ((name, text) for text in frames(data))


def frames(data: bytes) -> Iterator[bytes]:
    """What each zstd frame holds that tells its size, as all do that the lake writes."""
    at = -1
    while (at := data.find(ZSTD, at + 1)) >= 0:
        said = data[at + 4 : at + 18]
        if len(said) < 14 or not (size := _size(said)):
            continue
        try:
            with pa.input_stream(pa.BufferReader(data[at:]), compression="zstd") as stream:
                yield stream.read(min(size, MOST))
        except OSError:  # these four bytes began no frame
            continue


def _size(said: bytes) -> int:
    """Of what a frame holds, by its header; 0 where it does not tell."""
    flag, single = said[0] >> 6, said[0] >> 5 & 1
    at = 1 + (not single) + (0, 1, 2, 4)[said[0] & 3]
    width = (single, 2, 4, 8)[flag]
    return int.from_bytes(said[at : at + width], "little") + (256 if flag == 1 else 0)


def hits(root: Path, words: list[str]) -> set[tuple[str, str]]:
    """(path, word) wherever one of some words is, in any case, as UTF-8 or UTF-16."""
    forms = {word: [form.lower() for form in (word.encode(), word.encode("utf-16-le"))] for word in words}
    found = set()
    for path, data in everything(root):
        low = data.lower()
        found |= {(path, word) for word, some in forms.items() if any(form in low for form in some)}
    return found
