"""How busy a GPU is, as nvidia-smi says it once a second."""

import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any

KEPT = 3600
"""Seconds that are remembered: of a longer shard, the last hour counts."""


def watch(uuid: str) -> list[str]:
    """The command that says, once a second, in percent, for how much of that second the GPU computed."""
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=1"]
    return ["nvidia-smi", f"--id={uuid}", *query]


class Utilisation:
    """While it is entered, it listens; where there is nothing to listen to, nothing is known."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[tuple[float, float]] = deque(maxlen=KEPT)

    @classmethod
    def of(cls, device: Any) -> "Utilisation":
        """Of a torch device; a CPU has none."""
        if device.type != "cuda":
            return cls(None)
        import torch

        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        if not uuid:  # an older torch, or another maker's GPU
            return cls(None)
        return cls(watch(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"))

    def since(self, begun: float) -> float | None:
        """The mean share, 0 to 1, of what was said since a time of time.perf_counter's clock; None where nothing was."""
        heard = [share for at, share in self._said.copy() if at >= begun]
        return sum(heard) / len(heard) if heard else None

    def __enter__(self) -> "Utilisation":
        if self._command is not None:
            try:
                self._process = subprocess.Popen(
                    self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            except OSError:
                return self
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            try:
                self._said.append((time.perf_counter(), float(line) / 100))
            except ValueError:  # [N/A], as of a part of a GPU
                continue
