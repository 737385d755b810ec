"""`make soak N=1000 SEED=…`: run after run with a fault in each, and after each the lake held to what should be there.

    python tests/soak/run.py --runs 1000 --seed 1 [--s3] [--keep FOLDER]

One process's chance decides what happens; where a run fails, the line that repeats it is printed. (What is killed after so many
milliseconds depends on the machine, too; the lake is kept.)
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import flaky_s3  # noqa: E402
import made  # noqa: E402

from soak import faults, forks, invariant, motifs, world  # noqa: E402


class Soak:
    """A lake, the world that it should mirror, and what was counted."""

    def __init__(self, folder: Path, seed: int, server: flaky_s3.Flaky | None = None) -> None:
        self.folder, self.seed, self.server = folder, seed, server
        self.chance = random.Random(seed)
        self.world = world.World(folder / "sources", self.chance)
        self.root = str(folder / "lake") if server is None else f"s3://{flaky_s3.BUCKET}/{folder.name}"
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        os.environ.update(
            {"DIASTOLE_KEYS": str(folder / "keys"), "DIASTOLE_LAKE": self.root, "DIASTOLE_ALLOW_CODE": ""}
        )
        os.environ.update({} if server is None else server.environment)
        motifs.enter(folder)

    def begin(self) -> None:
        """An empty lake, two models, three subjects."""
        self.do(["init", self.root])
        self.add_model("1")
        self.allow(forks.call(_mask_model, self.root))
        self.job("masks", "volumes", "masker@1")
        for _ in range(3):
            self.world.add_subject()

    def job(self, name: str, dataset: str, model: str) -> None:
        """A job file."""
        spec = {"name": name, "dataset": dataset, "model": model, "output": name}
        spec |= {"resources": {"workers": 0, "threads": 1, "device": "cpu", "attempts": 3}}
        (self.folder / f"{name}.yaml").write_text(json.dumps(spec))

    def add_model(self, version: str) -> None:
        """Other weights for the scoring network."""
        self.allow(forks.call(_score_model, self.root, version))
        self.world.version = version
        self.job("scores", "proteins", f"scorer@{version}")

    def allow(self, said: str) -> None:
        """Code of a model may run in children."""
        os.environ["DIASTOLE_ALLOW_CODE"] += f",{said}"

    def ingests(self) -> list[list[str]]:
        """The commands that take in the sources as they are."""
        fasta, nifti = self.world.folder / "fasta", self.world.folder / "nifti"
        public = ["--public", "--manifest"]
        return [
            ["ingest", "proteins", str(fasta), *public, f"{fasta}.csv", "--alphabet", "protein"],
            ["ingest", "volumes", str(nifti), *public, f"{nifti}.csv", "--modality", "MR"],
        ]

    def runs(self) -> list[list[str]]:
        """The commands that score."""
        return [["run", str(self.folder / f"{name}.yaml")] for name in ("scores", "masks")]

    def care(self) -> list[list[str]]:
        """The commands that rewrite the lake."""
        return [["sweep", "--grace", "0"], ["compact"]]

    def same_again(self) -> list[str]:
        """A run of another job that means the same, into the same output."""
        spec = json.loads((self.folder / "scores.yaml").read_text()) | {"name": "again"}
        (self.folder / "again.yaml").write_text(json.dumps(spec))
        return ["run", str(self.folder / "again.yaml")]

    def do(self, *commands: Sequence[str]) -> None:
        """Commands without a fault. Raises RuntimeError where one ends otherwise than well."""
        child = forks.start_all(commands)
        if code := child.wait():
            raise RuntimeError(f"one of {[c[0] for c in commands]} ended with {code}: {child.said()[-2000:]}")

    def settle(self) -> None:
        """All commands once more, with nothing in their way."""
        self.do(*self.ingests(), *self.runs())
        self.world.note_scored()

    def episode(self, number: int) -> list[str]:
        """Something changes, commands run with a fault, then without one; what is wrong then."""
        self.chance.seed(f"{self.seed}/{number}")
        faults.change(self)
        name = faults.choose(self.chance)
        self.faults[name] += 1
        watch = faults.Watch(self.root)
        faults.FAULTS[name](self)
        self.settle()
        partial = watch.end()
        self.counts["partial reads"] += len(partial)
        self.counts["reads"] += watch.reads
        found = forks.call(invariant.problems, self.root, self.world)
        if number % 10 == 0:
            self.do(["check", "--deep"])
        return [*found, *partial]


def _score_model(root: str, version: str) -> str:
    from diastole.lake.layout import Lake

    files = {"net.pt": made.saved(motifs.state_dict(version)), "code.py": motifs.SCORE.encode()}
    said = {"task": "motifs", "runtime": "python", "network": "code.py:Net", "inputs": {"input": {}}, "batch": 8}
    manifest = made.add_model(Lake.open(root), files, name="scorer", version=version, **said)
    return f"{manifest.ref}:{manifest.model_digest}"


def _mask_model(root: str) -> str:
    import torch

    from diastole.lake.layout import Lake

    files = {"net.pt": made.saved({"bias": torch.zeros(1)}), "code.py": motifs.MASK.encode()}
    said = {"task": "segment", "runtime": "python", "network": "code.py:Net", "classes": ["on"], "batch": 2}
    said |= {"inputs": {"input": {"modality": ["MR"], "orientation": "RAS"}}, "options": {"passes": [{"net": "net"}]}}
    manifest = made.add_model(Lake.open(root), files, name="masker", **said)
    return f"{manifest.ref}:{manifest.model_digest}"


def main() -> int:
    """Runs, and at the end what was counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--fresh", type=int, default=50, help="a new lake after so many")
    parser.add_argument("--s3", action="store_true", help="the lake in an object store, which fails at times")
    parser.add_argument("--keep", type=Path, default=None, help="a folder that stays")
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    begun = time.monotonic()
    for first in range(0, arguments.runs, arguments.fresh):
        seed = arguments.seed + first
        folder = Path(tempfile.mkdtemp(prefix="soak-", dir=arguments.keep))
        server = flaky_s3.Flaky() if arguments.s3 else None
        soak = Soak(folder, seed, server)
        wrong, number = [], 0
        try:
            soak.begin()
            soak.settle()
            for number in range(min(arguments.fresh, arguments.runs - first)):
                if wrong := soak.episode(number):
                    break
        except (RuntimeError, TimeoutError) as error:
            wrong = [str(error)]
        if server is not None:
            total.update({f"storage: {kind}": count for kind, count in server.counts().items()})
            server.stop()
        total += soak.counts
        total["runs"] += number + 1
        total["items"] += len(soak.world.history())
        kinds += soak.faults
        if wrong:
            print(f"run {number} of seed {seed}, {soak.faults}: {wrong}\nits lake: {folder}")
            print(
                f"again: python tests/soak/run.py --runs {number + 1} --fresh {number + 1} --seed {seed}{' --s3' * arguments.s3}"
            )
            total["failures"] += 1
            break
        shutil.rmtree(folder)
        print(f"{total['runs']} runs, {time.monotonic() - begun:.0f} s", flush=True)
    total["seconds"] = round(time.monotonic() - begun)
    print(json.dumps({"counts": {"lost": 0, "doubled": 0, "partial reads": 0, **total}, "faults": kinds}, indent=1))
    return 1 if total["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
