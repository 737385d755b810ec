"""Records of a VCF as the columns of the VCF Zarr specification, in blocks of rows."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from . import variant_names as names
from .columns import Column, Columns, TextColumn

_KEPT = {
    "INFO/Integer": "AC AN DP END NS SVLEN MQ0 CIPOS CIEND MQ QD FS HWE",
    "INFO/Float": "AF EAS_AF EUR_AF AFR_AF AMR_AF SAS_AF MAF R2 DR2 MQ QD FS SOR MQRankSum ReadPosRankSum BaseQRankSum HWE",
    "INFO/Flag": "DB",
    "INFO/String": "SVTYPE",
    "FORMAT/String": "GT",
    "FORMAT/Integer": "DP AD ADF ADR GQ RGQ PL MIN_DP HQ MQ SB PS",
    "FORMAT/Float": "GQ GL GP DS MQ",
}
"""Fields that are kept, by where they are and the type that the header declares them with."""
KEPT = frozenset(f"{kind}/{key}" for kind, keys in _KEPT.items() for key in keys.split())
"""INFO/Integer/AC, …"""
_PER = {
    "alt_alleles": {"AC", "AF", "DS", "SVLEN", "EAS_AF", "EUR_AF", "AFR_AF", "AMR_AF", "SAS_AF"},
    "alleles": {"AD", "ADF", "ADR"},
    "genotypes": {"PL", "GL", "GP"},
}
_CELLS = 2**20
"""Values of a field that are held before they are written."""
INT_MISSING, INT_FILL = -1, -2
_FLOAT = np.array([0x7F800001, 0x7F800002], np.uint32).view(np.float32)
"""Missing, and fill, with the bits that VCF Zarr and BCF have for them."""
_LOWEST = np.iinfo(np.int32).min
"""What htslib has for a missing integer; one more is its fill."""


class Table:
    """All columns; `add` takes cyvcf2's records. `contigs`: those that the header declares."""

    def __init__(self, folder: Path, limit: int, samples: int, fields: dict[str, str], contigs: list[str]) -> None:
        self.rows = 0
        self.contigs = {one: number for number, one in enumerate(contigs)}
        self._samples, self._fields = samples, fields
        self._columns = Columns(folder, limit)
        self._block = min(max(_CELLS // max(samples, 1), 1), 4096)
        self._waiting: dict[str, list[Any]] = {}
        self._numbers: dict[str, Column] = {}
        self._texts: dict[str, TextColumn] = {}
        self._filters: dict[str, int] = {"PASS": 0}
        self._changed: Counter[str] = Counter()
        self._info = [key.partition("/")[2] for key in fields if key.startswith("INFO/")]
        self._format = [key.partition("/")[2] for key in fields if key.startswith("FORMAT/")] if samples else []

    def add(self, record: Any) -> None:
        """A record."""
        self.rows += 1
        self._put("variant_contig", [self.contigs.setdefault(record.CHROM, len(self.contigs))])
        self._put("variant_position", [record.POS])
        self._put("variant_length", [record.end - record.start])
        self._put("variant_quality", [record.QUAL])
        self._put("variant_filter", [self._filters.setdefault(one, len(self._filters)) for one in record.FILTERS])
        said = [record.REF, *record.ALT]
        kept, public = [names.allele(one) for one in said], names.variant_id(record.ID)
        self._changed["alleles_replaced"] += sum(new != old for new, old in zip(kept, said, strict=True))
        self._changed["ids_dropped"] += record.ID is not None and public == "."
        self._put("variant_allele", kept)
        self._put("variant_id", [public])
        for key in self._info:
            found = record.INFO.get(key)
            self._put(f"variant_{key}", list(found) if isinstance(found, tuple) else [found])
        there = record.FORMAT if self._format else ()
        for key in self._format:
            self._put(f"call_{key}", _call(record, key) if key in there else None)
        if len(self._waiting["variant_contig"]) >= self._block:
            self._flush()

    def finish(self, lengths: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Write all files: of each array its `file`, its `dimensions`, and for texts the file of their letters, `text`."""
        self._flush()
        self._text("contig_id", [[names.contig(one, number)] for one, number in self.contigs.items()])
        self._text("filter_id", [[names.filter_id(one, number)] for one, number in self._filters.items()])
        if lengths:
            found = [lengths.get(one, INT_MISSING) for one in self.contigs]
            self._number("contig_length", (), 0, np.array(found, np.int32)[:, None])
        alleles, ploidy = self._texts["variant_allele"].width, 0
        if "call_genotype" in self._numbers:
            ploidy = self._numbers["call_genotype"].width
        sizes = {
            "alleles": alleles,
            "alt_alleles": alleles - 1,
            "genotypes": math.comb(alleles + (ploidy or 2) - 1, ploidy or 2),
        }
        described = {}
        columns: dict[str, Column | TextColumn] = {**self._numbers, **self._texts}
        for name, column in columns.items():
            last = self._last_dimension(name, column.width, sizes)
            column.finish(flat=last is None)
            first = {"contig": "contigs", "filter": "filters"}.get(name.partition("_")[0], "variants")
            inner = ["samples"] if name.startswith("call_") else []
            described[name] = {"file": f"{name}.npy", "dimensions": [first, *inner, *([] if last is None else [last])]}
            if name in self._texts:
                described[name]["text"] = f"{name}.bin"
        return described

    @property
    def changed(self) -> dict[str, int]:
        """How often a text was not kept as it was, by what it was."""
        renamed = sum(names.contig(one, number) != one for one, number in self.contigs.items())
        filters = sum(names.filter_id(one, number) != one for one, number in self._filters.items())
        counts = {**self._changed, "contigs_renamed": renamed, "filters_renamed": filters}
        return {what: count for what, count in counts.items() if count}

    def _last_dimension(self, name: str, width: int, sizes: dict[str, int]) -> str | None:
        """The name of the axis after variants and samples; None where there is none."""
        fixed = {"call_genotype": "ploidy", "variant_filter": "filters", "variant_allele": "alleles"}
        if name in fixed:
            return fixed[name]
        head, _, key = name.partition("_")
        for dimension, keys in _PER.items():
            if key in keys and width == sizes[dimension]:
                return dimension
        return None if width == 1 else f"{'FORMAT' if head == 'call' else 'INFO'}_{key}_dim"

    def _put(self, name: str, value: Any) -> None:
        self._waiting.setdefault(name, []).append(value)

    def _number(self, name: str, inner: tuple[int, ...], fill: Any, block: np.ndarray) -> None:
        if name not in self._numbers:
            self._numbers[name] = Column(self._columns, name, inner, fill)
        self._numbers[name].add(block)

    def _text(self, name: str, rows: list[list[str]]) -> None:
        if name not in self._texts:
            self._texts[name] = TextColumn(self._columns, name)
        self._texts[name].add(rows)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for name, values in waiting.items():
            head, _, key = name.partition("_")
            declared = self._fields.get(f"{'FORMAT' if head == 'call' else 'INFO'}/{key}")
            if name == "call_GT":
                self._genotypes(values)
            elif head == "call":
                self._calls(name, values, real=declared == "Float")
            elif name in ("variant_allele", "variant_id"):
                self._text(name, values)
            elif declared == "String":
                self._text(name, [[one if one in names.SVTYPES else "." for one in row[:1]] for row in values])
            elif declared == "Flag":
                self._number(name, (), 0, np.array([[row[0] is not None] for row in values]))
            elif name == "variant_filter":
                block = np.zeros((len(values), len(self._filters)), bool)
                for row, found in enumerate(values):
                    block[row, found] = True
                self._number(name, (), 0, block)
            else:
                real = declared == "Float" or name == "variant_quality"
                self._number(name, (), _FLOAT[1] if real else INT_FILL, _ragged(values, real=real))

    def _genotypes(self, values: list[np.ndarray | None]) -> None:
        """Alleles, -1 where unknown and -2 beyond a sample's ploidy, and whether they are phased."""
        ploidy = max((one.shape[1] - 1 for one in values if one is not None), default=1)
        block = np.full((len(values), self._samples, ploidy), INT_FILL, np.int16)
        phased = np.zeros((len(values), self._samples, 1), bool)
        for row, one in enumerate(values):
            if one is None:
                block[row, :, 0] = INT_MISSING
            else:
                block[row, :, : one.shape[1] - 1] = one[:, :-1]
                if one.shape[1] > 2:  # where all are haploid cyvcf2 says anything: it reads past their one allele
                    phased[row, :, 0] = one[:, -1]
        small = block.max(initial=0) <= np.iinfo(np.int8).max
        inner = (self._samples,)
        self._number("call_genotype", inner, INT_FILL, block.astype(np.int8) if small else block)
        self._number("call_genotype_phased", inner, 0, phased)

    def _calls(self, name: str, values: list[np.ndarray | None], *, real: bool) -> None:
        width = max((one.shape[1] for one in values if one is not None), default=1)
        missing, fill = (_FLOAT[0], _FLOAT[1]) if real else (INT_MISSING, INT_FILL)
        block = np.full((len(values), self._samples, width), fill, np.float32 if real else np.int32)
        for row, one in enumerate(values):
            if one is None:
                block[row, :, 0] = missing
            else:
                block[row, :, : one.shape[1]] = one if real else _integers(one)
        self._number(name, (self._samples,), fill, block)


def _call(record: Any, key: str) -> np.ndarray | None:
    """Values of a field: (samples, values), of GT (samples, ploidy + 1), whose last column is the phase."""
    if key == "GT":
        return record.genotype.array()
    found = record.format(key)
    return found if found is not None and found.dtype.kind in "if" else None


def _integers(found: np.ndarray) -> np.ndarray:
    """htslib's missing and fill as those of VCF Zarr."""
    found = found.astype(np.int32)
    found[found == _LOWEST] = INT_MISSING
    found[found == _LOWEST + 1] = INT_FILL
    return found


def _ragged(rows: list[list[Any]], *, real: bool) -> np.ndarray:
    """Lists of numbers as an array that is as wide as the longest; what is not a number is missing."""
    missing, fill, kind = (_FLOAT[0], _FLOAT[1], np.float32) if real else (INT_MISSING, INT_FILL, np.int32)
    block = np.full((len(rows), max(map(len, rows))), fill, kind)
    for number, row in enumerate(rows):
        block[number, : len(row)] = [one if isinstance(one, int | float) else missing for one in row]
    return block
