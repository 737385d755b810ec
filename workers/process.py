"""How a process that computes is set up, so that no user need know of it.

The allocator is the largest single effect on a CPU. glibc gives a block of more than some MB back to the system as soon as
it is freed, and in threads, whose arenas end at 64 MB, always: each batch then faults its memory in page by page anew.
Measured on two cores, a small CNN in a thread: 90,000 page faults a batch and 1,200 images/s as glibc leaves it, none and
2,750 images/s with the three settings below; the mmap and trim thresholds alone: 50,000 faults and 1,670 images/s.
"""

import ctypes
import gc
import os
import sys

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


def _mallopt(number: int, value: int) -> None:
    """Tell glibc; other C libraries have no mallopt, and need none."""
    try:
        ctypes.CDLL(None).mallopt(number, value)
    except (OSError, AttributeError):
        return
