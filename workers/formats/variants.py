"""VCF and BCF, plain, gzip or bgzip, as the arrays of the VCF Zarr specification.

cyvcf2 (htslib) parses. Its records come one by one; columns go to disk in blocks, so that neither the number of records
nor that of samples must fit the memory. Of INFO and FORMAT only fields of an allow-list are kept, with the dtype that the
header declares; of names and texts only what `variant_names` lets through.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source
from .variant_columns import KEPT, Table
from .variant_names import genome

name = "variants"

HEADER_BYTES, LINE_BYTES = 2**24, 2**26
"""Most bytes of a header and of one record as text."""
TEXT_TIMES = 8
"""How many times the limit of an item its text may have: `0/0:12,0:12:36` is 8 bytes in arrays."""

_RECORD = re.compile(rb"[^\t]+\t[0-9]{1,10}\t[^\t]+\t[^\t]+\t[^\t]+\t")


def sniff(head: bytes) -> bool:
    """Whether it begins as VCF or BCF do."""
    return head.startswith((b"##fileformat=VCF", b"BCF\2"))


def preflight(path: Path, limits: Limits) -> None:
    """Read all of it once: its checksums and its end, the length of its header and of each line, and of all of it."""
    with source.opened(path, limits.item_bytes * TEXT_TIMES) as stream:
        head = stream.read(16)
        if not sniff(head):
            raise ItemError("unreadable", "it begins neither as VCF nor as BCF does")
        if not head.startswith(b"BCF"):
            _lines(head, stream, plain=not source.is_gzip(path))
        elif int.from_bytes(head[5:9], "little") > HEADER_BYTES:
            raise ItemError("too_large", f"its header has more than {HEADER_BYTES} bytes")
        else:
            stream.drain()
    source.check_bgzip_end(path)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Write a .npy file for each array, and describe them: `arrays` maps a name to its file and dimensions.

    Texts have their lengths in the .npy file and their letters in `text`. Names of samples lie in the file `samples`, one
    JSON string a line, for the parent to make keyed ids of.
    """
    records = _opened(path)
    try:
        table, contigs, said = _table(records, folder, options.limits)
    except UnicodeError as error:
        raise ItemError("unreadable", "it has text that is not UTF-8; convert it with iconv") from error
    arrays = table.finish({contig: length for contig, length in contigs.items() if length is not None})
    with (folder / "samples.jsonl").open("x", encoding="utf-8") as lines:
        lines.writelines(json.dumps(sample) + "\n" for sample in records.samples)
    attributes = {
        "format": "bcf" if source.head(path, 3) == b"BCF" else "vcf",
        "variants": table.rows,
        "samples": len(records.samples),
        "contigs": len(table.contigs),
        "assembly": genome(contigs.items(), said),
        **table.changed,
    }
    entry: dict[str, Any] = {"kind": "variants", "arrays": arrays, "samples": "samples.jsonl", "suffix": ""}
    if len(records.samples) == 1:
        entry["subject"] = records.samples[0]
    return [{**entry, "meta": {"assembly": attributes["assembly"]}, "attributes": attributes, "modality": "variants"}]


def _table(records: Any, folder: Path, limits: Limits) -> tuple[Table, dict[str, int | None], list[str]]:
    """All records, and what the header says of contigs and the genome."""
    contigs, said = _contigs(records.raw_header)
    table = Table(folder, limits.item_bytes, len(records.samples), _fields(records), list(contigs))
    for record in _records(records):
        table.add(record)
    if not table.rows:
        raise ItemError("unreadable", "it holds no record")
    return table, contigs, said


def _opened(path: Path) -> Any:
    """A file as cyvcf2 reads it. Raises ItemError where its header is not one."""
    with path.open("rb") as file:
        handle = os.dup(file.fileno())  # a number cannot be an address or '-'; htslib closes it
    try:
        return _cyvcf2().VCF(handle)
    except Exception as error:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise ItemError("unreadable", "its header cannot be parsed; see bcftools view -h") from error


def _records(records: Any) -> Iterator[Any]:
    number = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except MemoryError:
            raise
        except Exception as error:
            raise ItemError("unreadable", f"record {number + 1} cannot be parsed; see bcftools view") from error
        number += 1
        yield record


def _fields(records: Any) -> dict[str, str]:
    """Of the fields that may be kept, those that the header declares: INFO/DP → Integer."""
    found = {}
    for line in records.header_iter():
        said = line.info()  # of a broken line any of these is missing
        kind, declared, key = (said.get(one) for one in ("HeaderType", "Type", "ID"))
        if f"{kind}/{declared}/{key}" in KEPT:
            found[f"{kind}/{key}"] = declared
    return found


def _contigs(header: str) -> tuple[dict[str, int | None], list[str]]:
    """The contigs that are declared, with their lengths, and what the header says of the genome. cyvcf2 gives neither."""
    contigs: dict[str, int | None] = {}
    said = []
    for line in header.splitlines():
        if line.startswith("##reference"):
            said.append(line)
        elif line.startswith("##contig=<") and (named := re.search(r"[<,]ID=([^,>]+)", line)):
            length = re.search(r"[<,]length=(\d{1,10})\b", line, re.ASCII)
            contigs[named[1]] = min(int(length[1]), 2**31 - 1) if length else None
            said += re.findall(r"[<,]assembly=([^,>]+)", line)
    return contigs, said


def _lines(head: bytes, stream: source.Stream, *, plain: bool) -> None:
    """Hold a VCF to the length of its header and lines, and each record to the columns that the header names.

    The last line of a `plain` file needs an end: nothing else tells that it was not cut there.
    """
    line, columns, number = head, None, 0
    while piece := stream.read():
        *ended, rest = piece.split(b"\n")
        if not ended:
            line += rest
        for one in ended:
            columns, number = _column_check(line + one, columns, number)
            line = b""
        line = rest if ended else line
        if len(line) > LINE_BYTES:
            raise ItemError("too_large", f"a line has more than {LINE_BYTES} bytes")
        if columns is None and stream.count > HEADER_BYTES:
            raise ItemError("too_large", f"its header has more than {HEADER_BYTES} bytes")
    if line:
        _column_check(line, columns, number)
        if plain:
            raise ItemError("truncated", "its last line has no end; copy it again, or end the line if it is whole")


def _column_check(line: bytes, columns: int | None, number: int) -> tuple[int | None, int]:
    """Columns as the header has them, and records so far, after one more line. htslib dies of some that have too few."""
    if columns is None:
        if line.startswith(b"#CHROM"):
            columns = line.count(b"\t")
        elif not line.startswith(b"#"):
            raise ItemError("unreadable", "its header has no line of columns")
        return columns, number
    if line.count(b"\t") != columns:
        found = line.count(b"\t") + 1
        text = f"record {number + 1} has {found} columns, its header {columns + 1}"
        raise ItemError("unreadable", f"{text}; they are set apart by tabs")
    if _RECORD.match(line) is None or b"\0" in line:
        raise ItemError("unreadable", f"record {number + 1} has no contig, position or allele where they should be")
    return columns, number + 1


def _cyvcf2() -> Any:
    """Imported where it is needed, so that naming the formats stays fast; Any, since it is not typed."""
    import cyvcf2

    return cyvcf2
