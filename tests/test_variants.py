"""VCF and BCF: the numbers of cyvcf2, in the arrays of the VCF Zarr specification."""

import gzip
import json
import random
import shutil
import tarfile
import warnings

import cyvcf2
import debian
import numpy as np
import pytest
import xarray
from Bio import bgzf

from diastole.lake import suppressed
from diastole.lake import variants as stored
from diastole.lake.errors import ItemError
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions, choose, variants
from diastole.workers.ingest import IngestOptions, ingest

READ = (
    "1kg.vcf.gz", "gatk.vcf.gz", "freebayes.vcf.gz", "FT.vcf.gz", "bcftools.vcf.gz", "tb.vcf.gz", "1kg.sites.vcf.gz", "example-4.1-sv.vcf",
    "uncalled_genotypes.vcf", "mixed-filtering.vcf", "issue-214.vcf", "EUR_test.vcf.gz", "phased.vcf.gz", "target.vcf.gz",
)  # fmt: skip
PLAIN = ReadOptions()
TEXT = """##fileformat=VCFv4.3
##reference=file:///home/JOHN_SMITH/GRCh38.fa
##contig=<ID=chr1,length=248956422>
##contig=<ID=chrX>
##FILTER=<ID=q10,Description="JOHN SMITH">
##INFO=<ID=AC,Number=A,Type=Integer,Description="x">
##INFO=<ID=AF,Number=A,Type=Float,Description="x">
##INFO=<ID=SVTYPE,Number=1,Type=String,Description="x">
##INFO=<ID=DB,Number=0,Type=Flag,Description="x">
##INFO=<ID=NOTE,Number=1,Type=String,Description="x">
##FORMAT=<ID=GT,Number=1,Type=String,Description="x">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="x">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="x">
##FORMAT=<ID=GQ,Number=1,Type=Float,Description="x">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tJOHN_SMITH\tS2\tS3
chr1\t5\trs12;JOHN_SMITH\tA\tC,G\t30.5\tPASS\tAC=1,2;AF=.,0.5;DB\tGT:AD:DP:GQ\t0|2:3,0,4:7:1.5\t./.:.:.:.\t1/1:0,9:9:99
chr1\t6\tJOHN_SMITH\tT\t<DEL>\t.\tq10\tSVTYPE=DEL;NOTE=JOHN_SMITH\tGT\t1\t0\t.
chrX\t7\t.\tT\tT[chr1:5[\t1\t.\tAC=0\tGT:DP\t0/1/1:3\t0|1:.\t1:5
chrX\t8\trs9\tG\t<JOHN_SMITH>\t1\tq10\t.\tDP\t1\t2\t3
"""


def entry(path, tmp_path, options=PLAIN):
    """What the reader gives: its entry, and each array; texts as lists of their lengths' shape."""
    folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    variants.preflight(path, options.limits)
    [found] = variants.read(path, folder, options)
    arrays = {}
    for name, described in found["arrays"].items():
        data = np.load(folder / described["file"], allow_pickle=False)
        assert len(described["dimensions"]) == data.ndim
        if "text" in described:
            letters, ends = (folder / described["text"]).read_bytes(), np.cumsum(data.ravel())
            texts = [letters[end - size : end].decode() for end, size in zip(ends, data.ravel(), strict=True)]
            data = np.array(texts, object).reshape(data.shape)
        arrays[name] = data
    return found, arrays


def code(path, options=PLAIN):
    with pytest.raises(ItemError) as caught, Decoder() as decoder:
        decoder.decode(path, "variants", options)
    assert "SMITH" not in str(caught.value)
    return caught.value.code


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    return Lake.create(str(tmp_path / "lake"))


def made(tmp_path, text=TEXT, name="a.vcf"):
    path = tmp_path / name
    raw = text.encode()
    if name.endswith(".bcf"):
        made(tmp_path, text, "plain.vcf")
        source = cyvcf2.VCF(str(tmp_path / "plain.vcf"))
        writer = cyvcf2.Writer(str(path), source, "wb")
        for record in source:
            writer.write_record(record)
        writer.close()
    elif name.endswith(".bgz"):
        with bgzf.BgzfWriter(path) as out:
            out.write(raw)
    else:
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


# What cyvcf2 says


@pytest.mark.parametrize("name", READ)
def test_genotypes_positions_alleles_and_depths_are_those_of_cyvcf2(tmp_path, name):
    path = debian.file(name)
    found, arrays = entry(path, tmp_path)
    theirs = list(cyvcf2.VCF(str(path)))
    assert arrays["variant_position"].tolist() == [one.POS for one in theirs]
    assert [arrays["contig_id"][at] for at in arrays["variant_contig"]] in (
        [one.CHROM for one in theirs], [f"other_{at}" for at in arrays["variant_contig"]],
    )  # fmt: skip
    said = [[one.REF, *one.ALT] for one in theirs]
    assert [[text for text in row if text] for row in arrays["variant_allele"].tolist()] == said
    quality = [np.nan if one.QUAL is None else one.QUAL for one in theirs]
    assert np.array_equal(arrays["variant_quality"], np.array(quality, np.float32), equal_nan=True)
    samples = found["attributes"]["samples"]
    for row, one in enumerate(theirs):
        if "call_genotype" in arrays and "GT" in one.FORMAT:
            for sample, (*alleles, phased) in enumerate(one.genotypes):
                ours = arrays["call_genotype"][row, sample].tolist()
                assert ours == alleles + [-2] * (len(ours) - len(alleles))
                assert arrays["call_genotype_phased"][row, sample] == phased
        for key in ("DP", "GQ", "PL", "AD", "GL", "DS"):
            values = one.format(key) if samples and f"call_{key}" in arrays and key in one.FORMAT else None
            if values is not None:
                ours = arrays[f"call_{key}"][row].reshape(samples, -1)
                values = np.where(values == -(2**31), -1, np.where(values == 1 - 2**31, -2, values))
                assert np.array_equal(ours[:, : values.shape[1]], values.astype(ours.dtype), equal_nan=True)
                fill = np.isnan if ours.dtype.kind == "f" else lambda rest: rest == -2
                assert fill(ours[:, values.shape[1] :]).all()
    assert (tmp_path / "out0" / "samples.jsonl").read_text().split() == [
        json.dumps(one) for one in cyvcf2.VCF(str(path)).samples
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_real_file_gives_what_bio2zarr_makes_of_it(tmp_path):
    import bio2zarr.vcf
    import zarr

    text = gzip.decompress(debian.file("1kg.vcf.gz").read_bytes()).decode()
    path = made(tmp_path, text.replace("#CHROM", "##contig=<ID=2>\n#CHROM", 1), "1kg.vcf.bgz")
    bio2zarr.vcf.convert([path], tmp_path / "theirs.vcz", zarr_format=3, worker_processes=0)
    theirs = zarr.open_group(tmp_path / "theirs.vcz", mode="r")
    _, ours = entry(path, tmp_path)
    for name in (
        "variant_position",
        "variant_contig",
        "variant_length",
        "variant_DP",
        "call_genotype",
        "call_genotype_phased",
        "call_DP",
        "call_AD",
    ):
        assert np.array_equal(ours[name], theirs[name][...]), name
    for name in ("variant_quality", "variant_AF", "call_GQ", "call_GL"):
        expected = np.asarray(theirs[name][...], np.float32)
        assert ours[name].reshape(expected.shape).view(np.uint32).tolist() == expected.view(np.uint32).tolist(), name
    assert ours["variant_allele"].tolist() == theirs["variant_allele"][...].tolist()
    assert ours["variant_filter"].tolist() == theirs["variant_filter"][...].tolist()


@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz", "a.vcf.bgz", "a.bcf"])
def test_ploidies_phases_missing_and_symbolic_ones_in_each_container(tmp_path, name):
    path = made(tmp_path, name=name)
    assert choose(path, None).name == "variants"
    found, arrays = entry(path, tmp_path)
    assert arrays["call_genotype"].tolist() == [
        [[0, 2, -2], [-1, -1, -2], [1, 1, -2]],
        [[1, -2, -2], [0, -2, -2], [-1, -2, -2]],
        [[0, 1, 1], [0, 1, -2], [1, -2, -2]],
        [[-1, -2, -2]] * 3,
    ]
    assert arrays["call_genotype_phased"][:3].tolist() == [[True, False, False], [False] * 3, [False, True, True]]
    assert not arrays["call_genotype_phased"][3].any()
    assert arrays["call_DP"].tolist() == [[7, -1, 9], [-1, -1, -1], [3, -1, 5], [1, 2, 3]]
    assert arrays["call_AD"][0].tolist() == [[3, 0, 4], [-1, -2, -2], [0, 9, -2]]
    assert arrays["variant_allele"].tolist() == [
        ["A", "C", "G"], ["T", "<DEL>", ""], ["T", "T[chr1:5[", ""], ["G", "<OTHER>", ""],
    ]  # fmt: skip
    assert arrays["variant_id"].tolist() == ["rs12", ".", ".", "rs9"]
    assert arrays["variant_AC"].tolist() == [[1, 2], [-1, -2], [0, -2], [-1, -2]]
    missing, fill = 0x7F800001, 0x7F800002
    half = int(np.float32(0.5).view(np.uint32))
    assert arrays["variant_AF"].view(np.uint32).tolist() == [[missing, half], *[[missing, fill]] * 3]
    assert arrays["variant_DB"].tolist() == [True, False, False, False]
    assert arrays["variant_SVTYPE"].tolist() == [".", "DEL", ".", "."]
    assert arrays["filter_id"].tolist() == ["PASS", "q10"]
    assert arrays["variant_filter"].tolist() == [[True, False], [False, True], [False, False], [False, True]]
    assert arrays["contig_id"].tolist() == ["chr1", "chrX"]
    assert arrays["contig_length"].tolist() == [248956422, -1]
    assert found["arrays"]["call_AD"]["dimensions"] == ["variants", "samples", "alleles"]
    assert found["arrays"]["variant_AC"]["dimensions"] == ["variants", "alt_alleles"]
    assert found["attributes"] == {
        "format": "bcf" if name == "a.bcf" else "vcf", "variants": 4, "samples": 3, "contigs": 2, "assembly": "GRCh38",
        "alleles_replaced": 1, "ids_dropped": 1,
    }  # fmt: skip
    assert "SMITH" not in str({key: value for key, value in found.items() if key != "subject"})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [("##contig=<ID=1,length=249250621>", "GRCh37"), ("##contig=<ID=chr20,length=64444167>", "GRCh38"), ("##contig=<ID=chrX,length=154259566>", "T2T-CHM13"),
     ("##reference=file:///data/hg19.fa", "GRCh37"), ("##reference=JOHN_SMITH", None), ("##reference=hg19.fa\n##contig=<ID=chr1,length=248956422>", "GRCh38"),
     ("##contig=<ID=1,length=249250621>\n##contig=<ID=X,length=156040895>", None)],
)  # fmt: skip
def test_the_genome_is_told_by_lengths_before_words(tmp_path, lines, expected):
    text = (
        "##fileformat=VCFv4.2\n" + lines + "\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n1\t5\t.\tA\tC\t.\t.\t.\n"
    )
    assert entry(made(tmp_path, text), tmp_path)[0]["attributes"]["assembly"] == expected


def test_blocks_of_rows_do_not_show_in_the_arrays(tmp_path, monkeypatch):
    _, whole = entry(made(tmp_path), tmp_path)
    for cells in (1, 6):
        monkeypatch.setattr("diastole.workers.formats.variant_columns._CELLS", cells)
        _, pieces = entry(made(tmp_path), tmp_path)
        for name, values in whole.items():
            raw = (values, pieces[name]) if values.dtype == object else (values.tobytes(), pieces[name].tobytes())
            assert np.array_equal(*raw), name
            assert values.dtype == pieces[name].dtype


# The lake


def test_the_group_opens_in_xarray_under_the_names_of_the_specification(tmp_path, lake):
    ingest(lake, "v", [made(tmp_path)])
    [row] = read_items(lake, "v").to_pylist()
    assert row["array"] == f"datasets/v/arrays/{row['content_digest']}.vcz"
    assert (row["modality"], row["shape"], row["subject_id"]) == ("variants", [4, 3], None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that zarr's strings have no specification yet
        group = xarray.open_zarr(lake.store.local / row["array"], consolidated=False, chunks=None)
        assert group.attrs["vcf_zarr_version"] == "0.4"
        assert group["call_genotype"].dims == ("variants", "samples", "ploidy")
        assert group["call_genotype"].dtype == np.int8
        assert group["variant_allele"].values.tolist()[0] == ["A", "C", "G"]
        assert group["sample_id"].values.tolist() == [lake.subject_id(one) for one in ("JOHN_SMITH", "S2", "S3")]
        read = stored.read_variants(lake, row["array"], row["content_digest"])
    for name, values in read.items():
        assert np.array_equal(group[name].values, values, equal_nan=values.dtype.kind == "f")
    assert stored.sample_ids(lake, row["array"]) == read["sample_id"].tolist()


def test_one_sample_is_the_items_subject_and_a_manifest_goes_before_it(tmp_path, lake):
    lines = [line.rsplit("\t", 2)[0] if not line.startswith("##") else line for line in TEXT.splitlines()]
    folder = tmp_path / "in"
    folder.mkdir()
    made(folder, "\n".join(lines) + "\n")
    ingest(lake, "v", [folder])
    [row] = read_items(lake, "v").to_pylist()
    assert row["subject_id"] == lake.subject_id("JOHN_SMITH") == stored.sample_ids(lake, row["array"])[0]
    (tmp_path / "m.csv").write_text("path,subject\na.vcf,P7\n")
    ingest(lake, "w", [folder], IngestOptions(manifest=tmp_path / "m.csv"))
    [row] = read_items(lake, "w").to_pylist()
    assert row["subject_id"] == lake.subject_id("P7") == stored.sample_ids(lake, row["array"])[0]


def test_columns_of_a_withdrawn_sample_are_left_out(tmp_path, lake):
    suppressed.suppress(lake, lake.subject_id("S2"), suppressed.Suppressed())
    ingest(lake, "v", [made(tmp_path)])
    [row] = read_items(lake, "v").to_pylist()
    assert row["shape"] == [4, 2]
    read = stored.read_variants(lake, row["array"], row["content_digest"])
    assert read["sample_id"].tolist() == [lake.subject_id("JOHN_SMITH"), lake.subject_id("S3")]
    assert read["call_DP"].tolist() == [[7, 9], [-1, -1], [3, 5], [1, 3]]


def test_a_damaged_chunk_is_found_and_healed(tmp_path, lake):
    path = made(tmp_path)
    ingest(lake, "v", [path])
    [row] = read_items(lake, "v").to_pylist()
    files = [one for one in (lake.store.local / row["array"]).rglob("*") if one.is_file() and one.stat().st_size]
    for file in files:
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                read = stored.read_variants(lake, row["array"], row["content_digest"])
            except ItemError:
                continue
            assert file.name == "zarr.json"  # a blank, or a word that says nothing of the content
            assert read["call_DP"].tolist()[0] == [7, -1, 9]
        file.write_bytes(whole)
    victim = next(file for file in files if file.name != "zarr.json")
    victim.write_bytes(b"")
    assert ingest(lake, "v", [path], IngestOptions(verify=True)).healed == 1
    stored.read_variants(lake, row["array"], row["content_digest"])


@pytest.mark.fault(43)
def test_planted_texts_are_nowhere(tmp_path, lake):
    text = TEXT.replace("chrX", "JOHN_SMITH").replace("q10", "JOHN_SMITH")
    folder = tmp_path / "JOHN_SMITH"
    folder.mkdir()
    for name in ("a.vcf", "b.bcf"):
        made(folder, text, name)
        shutil.rmtree(folder / "plain.vcf", ignore_errors=True)
    report = ingest(lake, "v", [folder])
    assert not report.quarantined
    assert read_items(lake, "v").num_rows >= 2
    files = [file for file in lake.store.local.rglob("*") if file.is_file()]
    arrays = [row["array"] for row in read_items(lake, "v").to_pylist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [str(stored.read_variants(lake, one, one.split("/")[-1][:-4])) for one in arrays]
    for found in [*(file.read_bytes() for file in files), str(report).encode(), str(values).encode()]:
        assert b"SMITH" not in found.upper()


# Faults


@pytest.mark.fault(38)
@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz", "a.vcf.bgz", "a.bcf"])
def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path, name):
    whole = made(tmp_path, name=name).read_bytes()
    rng = random.Random(0)
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")] if name == "a.vcf" else []
    with Decoder() as decoder:
        for size in [1, 10, len(whole) - 28, len(whole) - 1, *rng.sample(range(20, len(whole)), 25)]:
            if size in ends:
                continue  # nothing tells that lines of a text are missing
            (tmp_path / "cut").write_bytes(whole[:size])
            with pytest.raises(ItemError) as caught:
                decoder.decode(tmp_path / "cut", "variants", ReadOptions())
            assert caught.value.code in ("truncated", "unreadable", "checksum"), size


@pytest.mark.fault(35)
@pytest.mark.parametrize("name", ["a.vcf.gz", "a.vcf.bgz", "a.bcf"])
def test_a_flipped_byte_is_found(tmp_path, name):
    path = made(tmp_path, name=name)
    whole, (_, right) = path.read_bytes(), entry(path, tmp_path)
    rng, found = random.Random(0), 0
    with Decoder() as decoder:
        for place in rng.sample(range(18, len(whole)), 40):
            (tmp_path / "b").write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            try:
                done = decoder.decode(tmp_path / "b", "variants", ReadOptions())
            except ItemError as error:
                found += error.code in ("checksum", "truncated", "unreadable")
                continue
            same = np.load(done.file("call_genotype.npy"))
            assert np.array_equal(same, right["call_genotype"])  # a byte that gzip does not read
            found += 1
    assert found == 40


@pytest.mark.fault(33, 38)
def test_bombs_lies_and_junk_are_refused_in_flat_memory(tmp_path):
    head, record = TEXT.rpartition("chr1\t5")[0], "chr1\t5\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1\t0|1\n"
    bomb = tmp_path / "bomb.vcf.gz"
    with gzip.open(bomb, "wb", 1) as out:
        out.write(head.encode() + b"chr1\t5\t.\t")
        for _ in range(100):
            out.write(b"A" * 2**20)
    assert code(bomb) == "too_large"
    with gzip.open(bomb, "wb", 1) as out:
        out.write(b"##fileformat=VCFv4.2\n")
        for _ in range(20):
            out.write(b"##" + b"J" * 2**20 + b"\n")
    assert code(bomb) == "too_large"
    assert code(made(tmp_path, head + record * 500), ReadOptions(Limits(2**14))) == "too_large"
    assert code(made(tmp_path, head)) == "unreadable"
    assert code(made(tmp_path, head + "\n" + record)) == "unreadable"
    assert code(made(tmp_path, head + "chr1\t5\tJOHN_SMITH\tA\tC\n")) == "unreadable"
    assert code(made(tmp_path, head + record.replace("GT", "DP").replace("0|1", "JOHN_SMITH"))) == "unreadable"
    assert code(made(tmp_path, head + record.replace("chr1\t5", "chr1\t-77"))) in ("unreadable", "header_lies")
    assert code(made(tmp_path, TEXT.replace("#CHROM\t", "#CHROM "))) == "unreadable"
    assert code(made(tmp_path, "##fileformat=VCFv4.2\nJOHN_SMITH\n")) == "unreadable"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("issue-16.vcf", "unreadable"), ("issue-254.vcf", "unreadable"), ("issue_49.vcf.gz", "unreadable"), ("strelka.vcf.gz", "unreadable")],
)  # fmt: skip
def test_broken_files_of_the_world_are_refused(name, expected):
    assert code(debian.file(name)) == expected


@pytest.mark.slow
def test_150357_variants_of_373_samples_take_a_few_seconds_and_little_memory(tmp_path):
    with tarfile.open(debian.file("chr22.tar.xz")) as tar:
        member = next(one for one in tar.getmembers() if one.name.endswith("genotypes.vcf.gz"))
        (tmp_path / "a.vcf.gz").write_bytes(tar.extractfile(member).read())
    with Decoder(memory_bytes=2**29) as decoder:
        done = decoder.decode(tmp_path / "a.vcf.gz", None, ReadOptions())
        doses = np.load(done.file("call_DS.npy"), mmap_mode="r")
        assert doses.shape == (150357, 373, 1)
        for row, record in enumerate(cyvcf2.VCF(str(tmp_path / "a.vcf.gz"))):
            if row % 100 == 0:
                assert np.array_equal(doses[row], record.format("DS"), equal_nan=True)
