"""`make fuzz MINUTES=…`: edits at random, for so long; what is found is put into the corpus, which the tests replay.

    python tests/fuzz/fuzz.py --minutes 60 --seed 1 [--only nifti,job]

A finding is another error than ours, wrong data, more than SECONDS for one file, or more memory than MEMORY. Each target
runs in a process of its own, so that one that dies of what it is given is a finding, too.
"""

import argparse
import hashlib
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
SECONDS = 20
MEMORY = 6 * 2**30
"""Address space; torch and Arrow take two of it before anything is read."""
CORPUS = Path(__file__).parent / "corpus"
TURN = 6.0
"""Seconds of one target at a time."""


def one_turn(name: str, seed: int, seconds: float, last: Path, told: "multiprocessing.Queue[tuple[int, int]]") -> None:
    """Fuzz one target, in a process of its own."""
    import targets

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    chosen, target, seen = random.Random(seed), targets.TARGETS[name], set()
    seeds = target.seeds()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        edits = [tuple(chosen.getrandbits(32) for _ in range(3)) for _ in range(chosen.choice((1, 1, 2, 3, 5, 8)))]
        try:
            data = target.edit(chosen.choice(seeds), edits, seeds)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            continue
        last.write_bytes(data)
        signal.alarm(SECONDS)
        try:
            targets.attempt(name, data)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            signal.alarm(0)
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            at = f"{type(error).__name__} {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
            if (at, str(error)[:40]) not in seen:
                seen.add((at, str(error)[:40]))
                keep(name, data, f"{at}: {' '.join(str(error).split())[:200]}")
        signal.alarm(0)
        count += 1
    told.put((count, len(seen)))
    shutil.rmtree(targets.folder())


def keep(name: str, data: bytes, why: str) -> None:
    """A finding becomes a file of the corpus."""
    CORPUS.mkdir(exist_ok=True)
    path = CORPUS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"FOUND {path.name} ({len(data)} bytes) {why}", flush=True)


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"it took longer than {SECONDS} s")


def main() -> int:
    """Take turns until the time is over. Returns 1 where something was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    import targets

    names = chosen.only.split(",") if chosen.only else list(targets.TARGETS)
    counts, found, seed = dict.fromkeys(names, 0), 0, chosen.seed
    cpu, end = time.process_time(), time.monotonic() + 60 * chosen.minutes
    print(f"seed {chosen.seed}, {len(names)} targets, from {time.strftime('%H:%M:%S')}", flush=True)
    last = Path(tempfile.mkdtemp()) / "last"
    context = multiprocessing.get_context("fork")
    while time.monotonic() < end:
        for name in names:
            seed += 1
            told = context.Queue()
            turn = min(TURN, max(end - time.monotonic(), 0.5))
            child = context.Process(target=one_turn, args=(name, seed, turn, last, told))
            child.start()
            child.join(turn + 3 * SECONDS)
            if child.is_alive():
                child.kill()
            child.join()
            if child.exitcode != 0:
                found += 1
                keep(name, last.read_bytes(), f"the process ended with {child.exitcode}")
                continue
            count, more = told.get()
            counts[name], found = counts[name] + count, found + more
            if time.monotonic() > end:
                break
    spent = sum(resource.getrusage(who)[0] + resource.getrusage(who)[1] for who in (resource.RUSAGE_CHILDREN,))
    print(
        f"until {time.strftime('%H:%M:%S')}, {spent / 60:.1f} CPU-minutes, {time.process_time() - cpu:.0f} s of its own"
    )
    print("\n".join(f"{count:>10} {name}" for name, count in counts.items()))
    print(f"{sum(counts.values())} files read, {found} findings")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
