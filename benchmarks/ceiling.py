"""The ceiling: the network alone, on batches that diastole made, in memory. Prints JSON.

    ceiling.py LAKE BATCHES.pt ITEMS PROCESSES THREADS

The batches go round until ITEMS items are through, dealt out to the processes; all begin together, each after one batch
to warm up. Nothing is read, prepared or written meanwhile.
"""

import json
import multiprocessing
import sys
import time
from typing import Any

import torch

from diastole.workers.worker import open_engine


def main() -> None:
    """Time it."""
    root, path, items, processes, threads = *sys.argv[1:3], *map(int, sys.argv[3:])
    context = multiprocessing.get_context("spawn")
    start, ends = context.Barrier(processes), context.Queue()
    others = [
        context.Process(target=_work, args=(root, path, items, (place, processes), threads, start, ends))
        for place in range(1, processes)
    ]
    for other in others:
        other.start()
    _work(root, path, items, (0, processes), threads, start, ends)
    spans = [ends.get() for _ in range(processes)]
    for other in others:
        other.join()
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    print(json.dumps({"seconds": round(seconds, 3), "items": items}))


def _work(root: str, path: str, items: int, place: tuple[int, int], threads: int, start: Any, ends: Any) -> None:
    recorded = torch.load(path, mmap=False)
    batches = recorded["batches"]
    rounds = items / recorded["items"]
    mine = _share(batches, rounds, *place)
    engine = open_engine(root, recorded["run_id"], threads)
    if mine:
        engine.networks.forward(*batches[mine[0]])
    start.wait()
    begun = time.time()
    for number in mine:
        engine.networks.forward(*batches[number])
    ends.put((begun, time.time()))


def _share(batches: list[Any], rounds: float, place: int, of: int) -> list[int]:
    """Which batches a process computes, in order: dealt out by turns."""
    total = round(rounds * len(batches))
    return [number % len(batches) for number in range(total)][place::of]


if __name__ == "__main__":
    main()
