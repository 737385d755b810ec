"""Sequences of a lake: Parquet packs with page checksums, written once, at a path that holds their digest."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import ItemError
from .ids import begun_digest, content_digest, digest, sha256_bytes
from .integrity import FileRecord, how_to_heal
from .layout import Lake

PACK_BYTES = 64 * 2**20
"""Letters in one pack at most, unless one sequence is longer."""
GROUP_BYTES = 2**20
"""Letters in one row group at about: what is read to get at one sequence."""

BAD = (OSError, ValueError, LookupError, TypeError, NotImplementedError)
"""What Arrow raises of a damaged file, beside what it is meant to raise (ArrowInvalid is a ValueError)."""

ALPHABETS = ("protein", "dna")

SCHEMA = pa.schema([pa.field("content_digest", pa.string()), pa.field("sequence", pa.large_binary())])


def sequence_digest(alphabet: str, sequence: bytes) -> str:
    """Digest of a sequence: its alphabet and its letters, without gaps."""
    return content_digest({"alphabet": alphabet}, sequence)


_BEGUN = {alphabet: begun_digest({"alphabet": alphabet}) for alphabet in ALPHABETS}


def write_pack(
    lake: Lake, prefix: str, digests: Sequence[str], sequences: Sequence[bytes], *, anew: bool = False
) -> tuple[str, FileRecord]:
    """Write sequences into one pack; the row of each is its place in the list. `anew` replaces a damaged one."""
    path = pack_path(prefix, digests)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd", write_page_checksum=True, use_dictionary=False) as writer:
        start = 0
        while start < len(sequences):
            stop, size = start, 0
            while stop < len(sequences) and (stop == start or size + len(sequences[stop]) <= GROUP_BYTES):
                size += len(sequences[stop])
                stop += 1
            writer.write_table(pa.table([list(digests[start:stop]), list(sequences[start:stop])], schema=SCHEMA))
            start = stop
    data = buffer.getvalue()
    if anew:
        lake.store.put(path, data)
    else:
        lake.store.put_if_absent(path, data)
    return path, FileRecord(path, len(data), sha256_bytes(data))


def pack_path(prefix: str, digests: Sequence[str]) -> str:
    """Where a pack of these sequences lies."""
    return f"{prefix}/{digest(list(digests))}.parquet"


def read_rows(lake: Lake, path: str, rows: Sequence[int]) -> dict[int, bytes]:
    """row → letters, reading only the row groups that hold them.

    A row whose page is damaged is left out, the others are there. Raises ItemError where the pack cannot be opened,
    EnvironmentFailure where storage fails.
    """
    found: dict[int, bytes] = {}
    try:
        with lake.store.reading(path):  # a file, not mapped memory: there, a failing disk would kill the process
            source = (
                pa.OSFile(str(lake.store.path(path))) if lake.store.local else pa.BufferReader(lake.store.get(path))
            )
            pack = pq.ParquetFile(source, page_checksum_verification=True)
    except MemoryError as error:
        raise _too_large() from error
    except BAD as error:
        raise ItemError(
            "pack_unreadable", f"its pack of sequences is missing or damaged; {how_to_heal(path)}"
        ) from error
    first = 0
    wanted = sorted(rows)
    with pack:
        for group in range(pack.num_row_groups):
            count = pack.metadata.row_group(group).num_rows
            here = [row for row in wanted if first <= row < first + count]
            if here:
                try:
                    with lake.store.reading(path):
                        column = pack.read_row_group(group, columns=["sequence"])[0]
                    found.update({row: column[row - first].as_py() for row in here})
                except MemoryError as error:
                    raise _too_large() from error
                except BAD:
                    pass  # what is left is Arrow's own: a checksum or an encoding that does not hold
            first += count
    return found


def _too_large() -> ItemError:
    return ItemError(
        "out_of_memory", "its pack of sequences does not fit the memory; if it should: diastole check --deep"
    )


def verified(expected_digest: str, letters: bytes) -> str:
    """The alphabet of a sequence whose letters are those that were planned. Raises ItemError."""
    for alphabet, begun in _BEGUN.items():
        running = begun.copy()
        running.update(letters)
        if running.hexdigest()[:32] == expected_digest:
            return alphabet
    raise ItemError(
        "digest_mismatch",
        "its sequence is not what was planned; heal it with: diastole ingest DATASET SOURCES --verify",
    )
