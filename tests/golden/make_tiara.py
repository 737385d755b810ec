"""tiara on its own test contigs: make_tiara.py OUT.json"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tiara
import torch
from make_common import rounded, write
from tiara.main import first_nnet_kmer_to_params, prepare_output, second_nnet_kmer_to_params
from tiara.src.classification import Classification

FILES = ["archaea", "bacteria", "eukarya", "mitochondria", "plast"]
NOTES = """
chop: len // 5000 pieces of exactly 5000 from the start, the rest (1 to 4999) dropped; under 5000 the whole contig
letters: k-mers with any letter but upper case A C G T (lower case, N, IUPAC) are skipped; nothing is upper-cased
nan: a piece without one valid k-mer is 0/0 = NaN, so its whole contig is NaN (null here) and unknown
order: file order, but contigs whose first stage is organelle come after all others
probs: means over the pieces; stage 2 is null where it did not run (first stage not organelle)
hardest: the 4 contigs of the file with the lowest top probability in a stage (index = place in the output)
edge_cases: each id is the Python expression of its sequence; those under 3000 bases are left out
edge_names: from 0, a = contig 31 of archaea_fr.fasta, m = 16 of mitochondria_fr.fasta, p = 9 of plast_fr.fasta
"""
EDGE_CASES = """
a[:2999]; a[:3000]; a[:4999]; a[:5000]; a[:9999]; a[:10000]; a; a.lower(); a[:2500] + a[2500:5000].lower();
'N' * 5000 + a[5000:]; 'N' * 4990 + a[4990:]; 'NACGTTGCAA'.join(a[i:i+90] for i in range(0, 9000, 90));
'N'.join(a[i:i+4] for i in range(0, 8000, 4)); p[:5000] + m[:5000]; p[:2500] + m[:2500]; p[:2000] + m[:3000];
m[:2500] + a[:2500]
"""


def build(root: Path) -> Classification:
    """Make the default classifier: k=6 then k=7, min_len 3000, cutoffs 0.65."""
    first = dict(first_nnet_kmer_to_params[6], prob_cutoff=0.65, fragment_len=5000, dim_out=5)
    second = dict(second_nnet_kmer_to_params[7], prob_cutoff=0.65, fragment_len=5000, dim_out=3)
    weights = [str(root / "models" / "nnet-models" / p["fname"]) for p in (first, second)]
    tfidf = [str(root / "models" / "tfidf-models" / f"k{k}") for k in ("6-first-stage", "7-second-stage")]
    return Classification(min_len=3000, nnet_weights=weights, params=[first, second], tfidf=tfidf)


def describe(record: Any) -> dict[str, Any]:
    """Give one contig's classes and the probabilities of both stages."""
    probs = [{name: rounded(value) for name, value in stage.items()} or None for stage in record.probs]
    return {"class": record.cls, "id": record.desc, "length": len(record.seq), "probs": probs}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    root = Path(tiara.__file__).parent
    data, classifier, found, files = root / "test" / "test_data", build(root), {}, {}
    for name in FILES:
        start = time.perf_counter()
        found[name] = res = classifier.classify(str(data / f"{name}_fr.fasta"))
        seconds = rounded(time.perf_counter() - start, 2)
        top = [min(max(stage.values()) for stage in r.probs if stage) for r in res]
        hard = sorted(range(len(res)), key=top.__getitem__)[:4]
        entry = {"contigs": len(res), "bases": sum(len(r.seq) for r in res), "seconds_one_thread": seconds}
        entry["counts"] = {"/".join(k): n for k, n in Counter(tuple(r.cls) for r in res).items()}
        entry["equals_package_output"] = prepare_output(res) == (data / f"{name}_out.txt").read_text()
        entry["hardest"] = [describe(res[i]) | {"index": i} for i in hard]
        files[name] = entry | {"first_12": [describe(r) for r in res[:12]]}
    names = {"a": found["archaea"][31].seq, "m": found["mitochondria"][16].seq, "p": found["plast"][9].seq}
    codes = [code.strip() for code in EDGE_CASES.split(";")]
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "edge.fasta"
        fasta.write_text("".join(f">{code}\n{eval(code, dict(names))}\n" for code in codes))
        edge = [describe(r) for r in classifier.classify(str(fasta))]
    call = "Classification(min_len=3000, k 6 then 7, fragment_len 5000, prob_cutoff [0.65, 0.65]).classify(fasta)"
    write(out, call, NOTES, "tiara biopython numba numpy skorch torch", {"edge_cases": edge, "files": files})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
