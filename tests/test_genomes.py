"""FASTA of whole genomes: plain, gzip and bgzip, as pyfaidx reads them, and in flat memory."""

import gzip

import numpy as np
import pyfaidx
import pytest
from Bio import bgzf
from debian import file
from molecules import records

from diastole.lake.errors import ItemError
from diastole.workers.decode import Decoder
from diastole.workers.formats import ReadOptions, choose, fasta


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """E. coli 536: 4,938,920 bases."""
    path = tmp_path_factory.mktemp("genome") / "a.fna"
    path.write_bytes(gzip.decompress(file("NC_008253.fna.gz").read_bytes()))
    return path


@pytest.mark.parametrize("kind", ["plain", "gzip", "bgzip"])
def test_a_genome_is_what_pyfaidx_reads(tmp_path, genome, kind):
    path = tmp_path / "a"
    if kind == "bgzip":
        with bgzf.BgzfWriter(path) as out:
            out.write(genome.read_bytes())
    else:
        path.write_bytes(genome.read_bytes() if kind == "plain" else gzip.compress(genome.read_bytes(), 1))
    assert choose(path, None).name == "fasta"
    [entry], [(record_id, letters, said)] = records(fasta, path, tmp_path)
    theirs = pyfaidx.Fasta(str(genome))
    assert [record_id] == list(theirs.keys())
    assert letters == str(theirs[record_id])
    assert (len(letters), entry["meta"]["alphabet"], said) == (4938920, "dna", {})


@pytest.mark.fault(35, 38)
def test_a_cut_or_damaged_bgzip_is_refused(tmp_path, genome):
    with bgzf.BgzfWriter(tmp_path / "a") as out:
        out.write(genome.read_bytes()[:300_000])
    whole = (tmp_path / "a").read_bytes()
    for data in (whole[:-1], whole[:50_000], whole[:30_000] + b"\0" + whole[30_001:], whole[:-28]):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(ItemError) as caught:
            records(fasta, tmp_path / "b", tmp_path)
        assert caught.value.code in ("truncated", "checksum")


@pytest.mark.slow
def test_more_than_a_gibibyte_of_bases_goes_through_a_child_of_less(tmp_path):
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 80 * 2**14).reshape(-1, 80)
    block = np.concatenate([bases, np.full((len(bases), 1), ord("\n"), np.uint8)], 1).tobytes()
    times = 2**30 // bases.size + 1
    with (tmp_path / "a.fa").open("wb") as out:
        out.write(b">chr1\n")
        for _ in range(times):
            out.write(block)
    with Decoder(memory_bytes=2**29) as decoder:
        done = decoder.decode(tmp_path / "a.fa", None, ReadOptions())
        assert done.file("letters.bin").stat().st_size == times * bases.size > 2**30
