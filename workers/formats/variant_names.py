"""What of a VCF's own words may be kept: contigs, filters, alleles and ids of a public kind, and which genome it is about."""

import re
from collections.abc import Iterable
from functools import lru_cache

BASES = frozenset("ACGTNRYSWKMBDHVacgtnryswkmbdhv")
_ID = re.compile(r"(rs|ss|nsv|esv|nssv|essv)\d{1,12}")
_CONTIG = re.compile(
    r"(chr)?(\d{1,3}|[XYWZ]{1,2}|M|MT|Un|EBV|Mito|[IVX]{1,5})([LR]|_[A-Za-z]{0,4}\d{5,}(v\d+)?(_(random|alt|fix|decoy))?)?"
    r"|(NC|NT|NW|NG|NM|NR|AC|CP|CM|GL|KI|KB|KN|KQ|KV|KZ|JH|JT|JTFH|AE|AL|BX|BK|U|J|AY|HG|MU|OU|OX|OZ|ML)_?\d{5,9}(\.\d{1,2})?"
    r"|(scaffold|contig|chromosome|supercontig|super|unitig|ctg)[_.-]?\d{1,9}|hs37d5|phiX174|NC_007605|HLA-[A-Z]{1,4}\d?\*[\d:]+[A-Z]?"
    r"|[A-Z][a-z]\d?[A-Za-z0-9]{0,3}_\d{2}(_v\d)?|NODE_\d{1,9}"
)
_FILTER = re.compile(
    r"PASS|[qQsdS][0-9]{1,4}|DP[0-9]{1,5}|Low(Qual|GQ|Depth|MQ|DP|Coverage|_quality)|VQSRTranche(SNP|INDEL|BOTH)[0-9.]{1,8}to[0-9.]{1,8}\+?"
    r"|(SnpCluster|HARD_TO_VALIDATE|StrandBias|InDel|SnpGap|MinMQ|MinDP|RefCall|NoCall|NC|NS|HWE|AC0|AS_VQSR|InbreedingCoeff|RF"
    r"|base_qual|clustered_events|contamination|duplicate|fragment|germline|haplotype|low_allele_frac|map_qual|multiallelic"
    r"|n_ratio|normal_artifact|orientation|panel_of_normals|position|slippage|strand_bias|strict_strand|weak_evidence"
    r"|(QD|FS|MQ|SOR|MQRankSum|ReadPosRankSum|QUAL|DP|GQ|AB|SB)(_?(lt|gt|<|>)?_?-?[0-9.]{0,6}|_filter|Filter))"
)
_SYMBOLIC = re.compile(
    r"<(DEL|INS|DUP|INV|CNV|BND|TRA|CTX|ITX|NON_REF|\*|X|M|CN\d{1,3}|STR\d{1,4}|NMETH|MEI)"
    r"((:(ME|TANDEM|ALU|L1|LINE1|SVA|HERVK?|TR|INT|DISP|UNK|NOVEL)){0,3})>"
)
_BREAKEND = re.compile(r"([A-Za-z.]*)([\[\]])([^\[\]]+)([\[\]])([A-Za-z.]*)")
SVTYPES = frozenset(
    {"DEL", "INS", "DUP", "INV", "CNV", "BND", "TRA", "CTX", "ITX", "MEI", "DUP:TANDEM", "DEL:ME", "INS:ME"}
)

_GENOMES = (
    ("GRCh38", re.compile(r"grch_?38|hg38|hs38|assembly38|GCA_000001405\.(15|2\d)|b38\b", re.IGNORECASE)),
    ("GRCh37", re.compile(r"grch_?37|hg19|hs37|g1k_v37|assembly19|\bb37\b|ncbi_?37", re.IGNORECASE)),
    ("GRCh36", re.compile(r"ncbi_?36|hg18|\bb36\b", re.IGNORECASE)),
    ("T2T-CHM13", re.compile(r"chm13|\bhs1\b|t2t", re.IGNORECASE)),
    ("GRCm39", re.compile(r"grcm_?39|mm39", re.IGNORECASE)),
    ("GRCm38", re.compile(r"grcm_?38|mm10", re.IGNORECASE)),
)
_LENGTHS = {
    ("1", 248956422): "GRCh38", ("1", 249250621): "GRCh37", ("1", 247249719): "GRCh36", ("1", 248387328): "T2T-CHM13",
    ("22", 50818468): "GRCh38", ("22", 51304566): "GRCh37", ("22", 49691432): "GRCh36", ("22", 51324926): "T2T-CHM13",
    ("20", 64444167): "GRCh38", ("20", 63025520): "GRCh37", ("20", 62435964): "GRCh36", ("20", 66210255): "T2T-CHM13",
    ("X", 156040895): "GRCh38", ("X", 155270560): "GRCh37", ("X", 154913754): "GRCh36", ("X", 154259566): "T2T-CHM13",
    ("1", 195154279): "GRCm39", ("1", 195471971): "GRCm38",
}  # fmt: skip
"""Lengths of some chromosomes, which tell a genome more surely than a header's words."""


def contig(text: str, number: int) -> str:
    """A contig's name, where it is one of a public kind, else its number."""
    return text if _CONTIG.fullmatch(text) else f"other_{number}"


def filter_id(text: str, number: int) -> str:
    """A filter's name, where it is a usual one, else its number."""
    return text if _FILTER.fullmatch(text) else f"filter_{number}"


def variant_id(text: str | None) -> str:
    """The ids of public databases in a record's, '.' where there is none."""
    return ";".join(one for one in (text or "").split(";") if _ID.fullmatch(one)) or "."


@lru_cache(2**14)
def allele(text: str) -> str:
    """An allele as it may be kept: bases, '*', '.', symbolic ones of a known kind; breakends without the text of a contig.

    Others become <OTHER>.
    """
    if text in ("*", ".") or BASES.issuperset(text):
        return text
    if _SYMBOLIC.fullmatch(text):
        return text
    if (text.startswith(".") or text.endswith(".")) and BASES.issuperset(text.strip(".")):
        return text  # a single breakend
    found = _BREAKEND.fullmatch(text)
    if found and found[2] == found[4] and BASES.issuperset((found[1] + found[5]).replace(".", "")):
        where, colon, position = found[3].rpartition(":")
        if not position.isdecimal():
            where, colon, position = found[3], "", ""
        where = where if _CONTIG.fullmatch(where.strip("<>")) else "other"
        return f"{found[1]}{found[2]}{where}{colon}{position}{found[4]}{found[5]}"
    return "<OTHER>"


def genome(lengths: Iterable[tuple[str, int | None]], texts: Iterable[str]) -> str | None:
    """Which genome a file is about: by the lengths of its contigs, else by what its header says of its reference.

    None where that tells nothing, or of two.
    """
    found = {_LENGTHS.get((name.removeprefix("chr"), length or 0)) for name, length in lengths} - {None}
    if not found:
        found = {tag for text in texts for tag, pattern in _GENOMES if pattern.search(text)}
    return found.pop() if len(found) == 1 else None
