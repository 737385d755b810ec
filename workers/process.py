"""How a process that computes is set up, so that no user need know of it.

The allocator is the largest single effect on a CPU. glibc gives a block of more than some MB back to the system as soon as
it is freed, and in threads, whose arenas end at 64 MB, always: each batch then faults its memory in page by page anew.
Measured on two cores, a small CNN in a thread: 90,000 page faults a batch and 1,200 images/s as glibc leaves it, none and
2,750 images/s with the three settings below; the mmap and trim thresholds alone: 50,000 faults and 1,670 images/s.
"""

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**30),  # blocks below are kept in the heap
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # what is free at its end stays
    "MALLOC_ARENA_MAX": (-8, 1),  # and threads use it too
}
"""Environment variable → (number of glibc's mallopt, value)."""
ENVIRONMENT = {name: str(value) for name, (_, value) in _MALLOC.items()} | {"OMP_WAIT_POLICY": "PASSIVE"}
"""For processes that are still to be started. OpenMP's threads would spin at their barriers, and where another process or a
reading thread has the core, for as long as that one runs: an LSTM took 3–10 times as long on two busy cores."""
SWITCH_SECONDS = 0.0005
"""How long a thread may keep Python's lock while another wants it: a lane needs it between two layers."""

SHARE = 0.9
"""Of the memory, what the workers may take together."""
LEAST_GB = 4.0
"""What each may take in any case: where there is less for each, one that takes more is more likely than all that do."""

COLLECT = (50_000, 20, 100)
"""Objects and generations after which Python looks for cycles. By its own settings it walks over the half million objects of
the libraries again and again: a third of the reading thread's time, and a tenth of what it takes to import them."""


def collect_seldom() -> None:
    """Have Python look for cycles less often."""
    gc.set_threshold(*COLLECT)


def prepare() -> None:
    """Set up this process, before torch is imported and threads are started. What the user has set stays.

    An arena that a thread of a library got before it stays too, and glibc gives it to any thread that comes later.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    collect_seldom()
    for name, value in ENVIRONMENT.items():
        if name in os.environ:
            continue
        if name in _MALLOC:
            _mallopt(*_MALLOC[name])
        else:
            os.environ[name] = value


def share_of_memory(workers: int) -> float:
    """GB of this machine's memory, or of its container's, that each of so many workers may take."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups 2 and 1
        with suppress(OSError, ValueError):
            there = min(there, int(Path("/sys/fs/cgroup", limit).read_text()))
    return max(SHARE * there / max(workers, 1) / 2**30, LEAST_GB)


def cap_memory(gb: float | None) -> None:
    """Let this process take no more than so much: what would be more fails in it, as an error that is the item's, before
    the system has to choose whom to kill. None: as much as there is.

    The system counts what is the process's own, touched or not (RLIMIT_DATA). Arrow alone reserves a GB that it does not
    touch, so this is called once libraries and model are there, and what they have reserved is let on top.
    """
    if gb is not None and sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(gb * 2**30) + max(_status("VmData") - _status("RssAnon"), 0)
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _status(name: str) -> int:
    """Bytes, of what Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def is_capped() -> bool:
    """Whether this process has such a bound."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


@contextmanager
def capped(gb: float | None) -> Iterator[None]:
    """As cap_memory, while it is entered."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    cap_memory(gb)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _mallopt(number: int, value: int) -> None:
    """Tell glibc; other C libraries have no mallopt, and need none."""
    try:
        ctypes.CDLL(None).mallopt(number, value)
    except (OSError, AttributeError):
        return
