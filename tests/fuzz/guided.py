"""Fuzzing that follows the coverage of our own code, with atheris: python tests/fuzz/guided.py TARGET [-max_total_time=600]

pip install 'diastole[fuzz]'. Bytes of atheris choose the seed and the edits, so that it, too, makes hostile files out of sound ones.
"""

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent)]
with atheris.instrument_imports(include=["diastole"]):
    import targets


def main() -> None:
    """Fuzz the target that the command line names, until it is stopped."""
    name = sys.argv.pop(1)
    target = targets.TARGETS[name]
    seeds = target.seeds()

    def one(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)
        seed = seeds[given.ConsumeIntInRange(0, len(seeds) - 1)]
        edits = [tuple(given.ConsumeInt(4) % 2**32 for _ in range(3)) for _ in range(given.ConsumeIntInRange(1, 8))]
        try:
            hostile = target.edit(seed, edits, seeds)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return
        targets.attempt(name, hostile)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
