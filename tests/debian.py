"""Real files out of Debian's packages of examples, fetched once into `.cache/`; nothing of them is installed or run."""

import hashlib
import subprocess
import tempfile
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "debian"
MEMBERS = {
    "1kg.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/1kg.vcf.gz"),
    "gatk.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/gatk.vcf.gz"),
    "freebayes.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/freebayes.vcf.gz"),
    "FT.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/FT.vcf.gz"),
    "bcftools.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/bcftools.vcf.gz"),
    "tb.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/tb.vcf.gz"),
    "1kg.sites.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/1kg.sites.vcf.gz"),
    "example-4.1-sv.vcf": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/example-4.1-sv.vcf"),
    "uncalled_genotypes.vcf": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/uncalled_genotypes.vcf"),
    "mixed-filtering.vcf": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/mixed-filtering.vcf"),
    "issue-214.vcf": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/issue-214.vcf"),
    "issue-16.vcf": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/issue-16.vcf"),
    "issue-254.vcf": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/issue-254.vcf"),
    "issue_49.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/issue_49.vcf.gz"),
    "strelka.vcf.gz": ("python-pyvcf-examples", "./usr/share/doc/python3-vcf/test/strelka.vcf.gz"),
    "EUR_test.vcf.gz": ("bio-eagle-examples", "./usr/share/doc/bio-eagle/examples/EUR_test.vcf.gz"),
    "phased.vcf.gz": ("bio-eagle-examples", "./usr/share/doc/bio-eagle/examples/phased.vcf.gz"),
    "target.vcf.gz": ("bio-eagle-examples", "./usr/share/doc/bio-eagle/examples/target.vcf.gz"),
    "ref.bcf.gz": ("bio-eagle-examples", "./usr/share/doc/bio-eagle/examples/ref.bcf.gz"),
    "NC_008253.fna.gz": ("bowtie-examples", "./usr/share/doc/bowtie/examples/genomes/NC_008253.fna.gz"),
    "chr22.tar.xz": ("fastqtl-doc", "./usr/share/doc/fastqtl/examples/examples.tar.xz"),
}
SHA256 = {
    "1kg.vcf.gz": "12beb676eefae91f6dd24af41c4150ab942d4ff485b7b154e6492e1f4f0158fe",
    "gatk.vcf.gz": "9d72252511db3a87ad53744d8bcdb5e0273986b60ae002f115425fe587e47832",
    "freebayes.vcf.gz": "229839963b8d0228bfebe5f242334485cb8bac9859937e04d1ac2201d78f6a6d",
    "FT.vcf.gz": "898a0155b3d8933146830da254e42f5003c56b6fa7598bf1458416ed2193cbaf",
    "bcftools.vcf.gz": "f3173f00cd4e82c89bf403dca86ac52a59c8082f09b0538d00185e66857370dd",
    "tb.vcf.gz": "186dd907ccde393e7e3357a17b595269adab6aa70a040d865b83244cf0a6e25a",
    "1kg.sites.vcf.gz": "00f000195c449cfbabf9d63f0acbc659e5617e37322ec6dc3aa7348c1779c5aa",
    "example-4.1-sv.vcf": "9dae81529a392e856664f685edb8e8b3f84cf4d9422cdfb2e7944787fe022b10",
    "uncalled_genotypes.vcf": "1e6398cbf2228dcfa9d2c210df60c95c4e9b6a3500a8dee99fe72c42f02ce7df",
    "mixed-filtering.vcf": "90e0a0639ae9b3596fdb89a5fd85e2ba5332a25fc2a668f5e5c4b4c52baa7453",
    "issue-214.vcf": "87cae6ad897615b8677b22a6eb87dea842ba142c27d7b9e3918c287cb64856f6",
    "issue-16.vcf": "09d31208a9389d73ec57f923bb20033f777bb2f3d73c0d23f5ec6e541cb53f17",
    "issue-254.vcf": "cba9695bb6ed0cade60985c39e97617c22cadfaf381c1e5b7af7c0ce5cf77ec4",
    "issue_49.vcf.gz": "342f28284761cedff0f2bdadabda7ce51bac34fe6cef73f677dfdd1800384507",
    "strelka.vcf.gz": "d923db09ed64101c3e72f2094d9eb20cffa2e838d857e0e593cf8a0d28484f60",
    "EUR_test.vcf.gz": "3881e97659b28c46ffb6f982d64d6aa399726795275398dadb2d4c82fd3f36c7",
    "phased.vcf.gz": "718780da0a615b4fe82248c187aa27eb1fd60ef45b6b47302850c4c6f5ed3dfe",
    "target.vcf.gz": "8a08ec40be0162a5889985f9a79d3f837664272947cd9ef7a6c4312f19f1359f",
    "ref.bcf.gz": "5d46d42665fe87e0087e0c824d92d91c09f71085471d4c582435952c63dbb0e7",
    "NC_008253.fna.gz": "b5f5e726fa79caeeb12c19f3697faf7af437f57daf4195419056d639fb36a334",
    "chr22.tar.xz": "6e8845c9e169812ba1b7d12c1e062853a072e154141da97952166c900816cdfc",
}


def file(name: str) -> Path:
    """A file, of MEMBERS. Skips the test where Debian's archive is not to be had."""
    package, member = MEMBERS[name]
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            deb = _package(package, Path(folder))
            tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
            whole = Path(folder) / name
            with whole.open("wb") as out:
                subprocess.run(["tar", "-xO", member], input=tar, stdout=out, check=True)
            assert hashlib.sha256(whole.read_bytes()).hexdigest() == SHA256[name]
            whole.replace(path)
    return path


def _package(package: str, folder: Path) -> Path:
    kept = next(CACHE.glob(f"{package}_*.deb"), None)
    if kept is None:
        try:
            done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            pytest.skip("apt-get is not here, and with it Debian's package of examples")
        if done.returncode:
            pytest.skip(f"apt-get cannot download {package}")
        [kept] = folder.glob("*.deb")
        kept = kept.replace(CACHE / kept.name)
    return kept
