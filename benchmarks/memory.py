"""Memory and processor time of a process and all that it started, by looking at them while they run."""

import contextlib
import os
import signal
import threading
from types import TracebackType

import psutil

EVERY = 0.25
"""Seconds between two looks."""
MOST = 0.8
"""Part of this machine's memory at which a variant is ended: beyond it, the machine itself would be."""


class Watch:
    """While it is entered: `peak_mb` of the sum over the processes, each shared page counted once, and `cpu_s`.

    The shared part needs a walk over page tables, so it is asked for only where more is resident than at any time before.
    Of a process that ended between two looks, the last look counts. `too_large` is set where they were ended because
    they took more than MOST of the memory: the process must lead a group of its own.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._resident, self._peak = 0, 0
        self._cpu: dict[psutil.Process, float] = {}
        self._most = int(MOST * psutil.virtual_memory().total)
        self.too_large = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @property
    def peak_mb(self) -> int:
        """Megabytes."""
        return round(self._peak / 2**20)

    @property
    def cpu_s(self) -> float:
        """Seconds, of all processors together."""
        return round(sum(self._cpu.values()), 1)

    @property
    def seen(self) -> list[psutil.Process]:
        """All processes that were seen."""
        return list(self._cpu)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(psutil.Error):
                self._once([self._root, *self._root.children(recursive=True)])
            self._over.wait(EVERY)

    def _once(self, processes: list[psutil.Process]) -> None:
        resident = 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu[process] = times.user + times.system
                resident += process.memory_info().rss
        if resident <= 1.01 * self._resident:
            return
        self._resident, total = resident, 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
        self._peak = max(self._peak, total)
        if total > self._most:
            self.too_large = True
            for process in processes[1:]:
                with contextlib.suppress(psutil.Error):
                    process.kill()  # Ray's workers lead groups of their own
            os.killpg(self._root.pid, signal.SIGKILL)
