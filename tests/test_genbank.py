"""GenBank and GenPept: what Biopython reads in its own test files."""

import gzip
import random
import warnings

import pytest
from Bio import SeqIO
from molecules import PLAIN, biopython, records

from diastole.lake.errors import ItemError
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions, choose, genbank
from diastole.workers.formats.feature_places import places
from diastole.workers.ingest import IngestOptions, ingest

REFUSED = {
    "DS830848.gb": "unsupported", "NT_019265.gb": "unsupported", "bad_origin_wrap.gb": "unsupported", "bad_origin_wrap_linear.gb": "unsupported",
    "no_end_marker.gb": "truncated", "no_origin_no_end.gb": "truncated", "tls_KDHP01000000.gb": "unreadable", "tsa_acropora.gb": "unreadable",
}  # fmt: skip
"""Without a sequence, without an end, or lists of other records."""
VAGUE = {"extra_keywords.gb": 2, "one_of.gb": 4, "bad_origin_wrap_CDS.gb": 2}
"""Features whose location is of another record, or one of several, by file: Biopython's own classes for them."""
NAMES = [
    "1MRR_A.gp",
    "EU851978.gbk",
    "EZ116220.gb",
    "GU949562.1.gb",
    "HM138502.gbk",
    "KF527485.gbk",
    "NC_000932.gb",
    "NC_005816.gb",
    "arab1.gb",
    "blank_seq.gb",
    "cor6_6.gb",
    "addgene-plasmid-11664-sequence-180430.gbk",
    "addgene-plasmid-39296-sequence-49545.gbk",
    "bad_loc_wrap.gb",
    "bad_origin_wrap_CDS.gb",
    "bad_origin_wrap_fuzzy.gb",
    "dbsource_wrap.gb",
    "empty_accession.gbk",
    "empty_feature_qualifier.gb",
    "empty_version.gbk",
    "extra_keywords.gb",
    "gbvrl1_start.seq",
    "invalid_locus_line_spacing.gb",
    "invalid_misc_feature.gb",
    "invalid_structured_comment.gb",
    "iro.gb",
    "negative_location.gb",
    "noref.gb",
    "noref_date_warning.gb",
    "one_of.gb",
    "origin_line.gb",
    "pBAD30.gb",
    "pri1.gb",
    "protein_refseq.gb",
    "protein_refseq2.gb",
    "qualifier_escaping_read.gb",
    "wrong_sequence_indent.gb",
]


def code(data, tmp_path, options=PLAIN, name="a.gb"):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ItemError) as caught:
        records(genbank, path, tmp_path, options)
    assert "SMITH" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("name", NAMES)
def test_sequences_ids_topology_and_features_are_those_of_biopython(tmp_path, name):
    path = biopython("GenBank") / name
    assert choose(path, None).name == "genbank"
    [entry], found = records(genbank, path, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = list(SeqIO.parse(path, "genbank"))
    assert entry["count"] == len(found) == len(theirs)
    for (record_id, letters, said), their in zip(found, theirs, strict=True):
        protein = entry["meta"]["alphabet"] == "protein"
        assert record_id == their.id
        assert letters == (str(their.seq).upper() if protein else str(their.seq).upper().replace("U", "T"))
        assert said.get("topology") == their.annotations.get("topology")
        kind = their.annotations["molecule_type"].removeprefix("ds-")
        assert said.get("molecule") == (None if protein else kind)
        kept = [one for one in their.features if one.type in genbank.FEATURES]
        features = [
            [one.type, [[int(part.start), int(part.end), part.strand or 1] for part in one.location.parts]]
            for one in kept
            if one.location
        ]
        assert sum(said.get("feature_counts", {}).values()) == len(kept)
        if name in VAGUE:
            assert len(said.get("features", [])) == len(features) - VAGUE[name]
        else:
            assert said.get("features", []) == features


@pytest.mark.parametrize("name", REFUSED)
def test_records_without_a_sequence_or_an_end_are_refused(tmp_path, name):
    assert code((biopython("GenBank") / name).read_bytes(), tmp_path) == REFUSED[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", [[4, 5, 1]]), ("<1..>5", [[0, 5, 1]]), ("complement(join(1..3,5..7))", [[4, 7, -1], [0, 3, -1]]), ("join(complement(5..7),1..2)", [[4, 7, -1], [0, 2, 1]]),
     ("3^4", [[3, 3, 1]]), ("J00194.1:1..3", None), ("one-of(1,3)..5", None), ("(1.3)..5", None), ("1..99", None), ("7..3", None), ("join(", None), ("1..3)", None),
     ("complement(" * 5000 + "1..3" + ")" * 5000, None), ("", None), ("JOHN SMITH", None)],
)  # fmt: skip
def test_locations_are_read_or_counted_only(text, expected):
    assert places(text, 50) == expected


def test_of_many_features_only_the_numbers_are_kept(tmp_path, monkeypatch):
    path = biopython("GenBank") / "NC_005816.gb"
    monkeypatch.setattr(genbank, "FEATURES_KEPT", 19)
    _, [(_, _, said)] = records(genbank, path, tmp_path)
    assert said["feature_counts"] == {"CDS": 10, "gene": 10}
    assert "features" not in said


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_pieces_of_any_size_give_the_same(tmp_path, monkeypatch, size):
    path = biopython("GenBank") / "cor6_6.gb"
    whole = records(genbank, path, tmp_path)
    read = genbank.source.Stream.read
    monkeypatch.setattr(genbank.source.Stream, "read", lambda self, _=0: read(self, size))
    assert records(genbank, path, tmp_path) == whole


@pytest.mark.fault(38)
def test_a_cut_file_is_truncated_wherever_it_was_cut(tmp_path):
    data = (biopython("GenBank") / "cor6_6.gb").read_bytes()
    ends = [at for at in range(len(data)) if data.startswith(b"\n//\n", at)]
    for size in [7, len(data) - 4, *random.Random(0).sample(range(100, len(data) - 5), 40)]:
        if not any(end + 3 <= size < data.index(b"LOCUS", end) + 5 for end in ends[:-1]):
            assert code(data[:size], tmp_path) in ("truncated", "unreadable"), size


@pytest.mark.fault(33, 35, 38)
def test_lies_bombs_and_junk_are_refused(tmp_path):
    data = (biopython("GenBank") / "iro.gb").read_bytes()
    assert code(data.replace(b"1326 bp", b"1325 bp"), tmp_path) == "header_lies"
    assert code(data.replace(b"1326 bp", b"99999999999 bp"), tmp_path) == "truncated"
    assert code(data.replace(b"ORIGIN      \n        1 c", b"ORIGIN      \n        1 !"), tmp_path) == "unreadable"
    assert code(data + b"JOHN SMITH\n", tmp_path) == "unreadable"
    assert code(b"LOCUS       X 5 bp DNA\nCOMMENT " + b"J" * 2**20, tmp_path) == "unreadable"
    assert code(data + (biopython("GenBank") / "protein_refseq.gb").read_bytes(), tmp_path) == "unreadable"
    bomb = gzip.compress(b"LOCUS       X 5 bp DNA\nORIGIN\n" + b"a" * 2**24 + b"\n//\n")
    assert code(bomb, tmp_path, ReadOptions(Limits(2**20))) == "too_large"
    packed = bytearray(gzip.compress(data))
    packed[len(packed) // 2] ^= 0x10
    assert code(bytes(packed), tmp_path) in ("checksum", "truncated", "unreadable")


@pytest.mark.fault(43)
def test_words_of_a_record_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    lake = Lake.create(str(tmp_path / "lake"))
    text = (biopython("GenBank") / "NC_005816.gb").read_text()
    for word in ("Yersinia", "NC_005816", "Genome", "YP_pPCP01", "transposase", "linear"):
        text = text.replace(word, "SMITH")
    (tmp_path / "a.gb").write_text(text)
    report = ingest(lake, "g", [tmp_path / "a.gb"], IngestOptions())
    [row] = read_items(lake, "g").to_pylist()
    assert row["sequence"]["length"] == 9609
    for found in [
        *(file.read_bytes() for file in lake.store.local.rglob("*") if file.is_file()),
        str((report, row)).encode(),
    ]:
        assert b"SMITH" not in found.upper()


def test_a_large_chromosome_needs_little_memory(tmp_path):
    with gzip.open(tmp_path / "a.gbk.gz", "wb", 1) as out:
        lines = b"        1 " + b" ".join([b"acgtnacgta"] * 6) + b"\n"
        out.write(b"LOCUS       CHR1 %d bp DNA linear CON 1-JAN-2000\nVERSION CHR1.1\nORIGIN\n" % (60 * 10**6))
        for _ in range(1000):
            out.write(lines * 1000)
        out.write(b"//\n")
    with Decoder(memory_bytes=2**28) as decoder:
        done = decoder.decode(tmp_path / "a.gbk.gz", None, ReadOptions())
        assert done.file("letters.bin").stat().st_size == 60 * 10**6
