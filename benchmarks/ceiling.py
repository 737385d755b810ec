"""The ceiling: the network alone, on batches that diastole made, in memory. Prints JSON.

    ceiling.py LAKE BATCHES.pt ITEMS PROCESSES LANES THREADS

The batches go round until ITEMS items are through, dealt out to the lanes (threads of Python) of the processes; all begin
together, each after one batch to warm up. Nothing is read, prepared or written meanwhile.
"""

import json
import multiprocessing
import sys
import threading
import time
from typing import Any

import torch

from diastole.jobs.runs import read_plan
from diastole.lake.layout import Lake
from diastole.lake.models import load
from diastole.workers.models.runtime import Networks
from diastole.workers.tasks import make_task


def main() -> None:
    """Time it."""
    root, path, items, processes, lanes, threads = *sys.argv[1:3], *map(int, sys.argv[3:])
    context = multiprocessing.get_context("spawn")
    start, ends = context.Barrier(processes * lanes), context.Queue()
    work = [(root, path, items, place, processes, lanes, threads, start, ends) for place in range(processes)]
    others = [context.Process(target=_process, args=arguments) for arguments in work[1:]]
    for other in others:
        other.start()
    _process(*work[0])
    spans = [ends.get() for _ in range(processes * lanes)]
    for other in others:
        other.join()
    seconds = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
    print(json.dumps({"seconds": round(seconds, 3), "items": sum(count for _, _, count in spans)}))


def _process(
    root: str, path: str, items: int, place: int, processes: int, lanes: int, threads: int, start: Any, ends: Any
) -> None:
    """The lanes of one process."""
    recorded = torch.load(path)
    each = recorded["items"] / len(recorded["batches"])
    total = max(processes * lanes, round(items / each))
    networks = _networks(root, recorded["run_id"], lanes * threads)

    def lane(number: int) -> None:
        torch.set_num_threads(threads)
        mine = [recorded["batches"][n % len(recorded["batches"])] for n in range(total)][number :: processes * lanes]
        networks.forward(*mine[0])
        start.wait()
        begun = time.time()
        for batch in mine:
            networks.forward(*batch)
        ends.put((begun, time.time(), len(mine) * each))

    if lanes == 1:  # the main thread: glibc gives it an arena of its own
        lane(place)
        return
    together = [threading.Thread(target=lane, args=(place * lanes + n,)) for n in range(lanes)]
    for one in together:
        one.start()
    for one in together:
        one.join()


def _networks(root: str, run_id: str, threads: int) -> Networks:
    """Those of a run, with the plan's settings, in a process whose allocator is left as it is."""
    lake = Lake.open(root)
    plan = read_plan(lake, run_id)
    manifest = load(lake, plan.model)
    return Networks(lake, manifest, make_task(manifest, plan.task, plan.options), plan.device, threads, plan.runtime)


if __name__ == "__main__":
    main()
