"""Commands of diastole in children of this process, which has imported everything and started nothing: no second is lost
on imports, and a fault may be planted in the child alone.
"""

import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deltalake  # noqa: F401 - imported once, here
import duckdb  # noqa: F401
import torch  # noqa: F401
import zarr  # noqa: F401

from diastole.cluster import cli, driver, local  # noqa: F401
from diastole.jobs import commit  # noqa: F401
from diastole.lake import crash, delta, leases, remote
from diastole.workers import engine, ingest, worker  # noqa: F401

PATIENCE = 120.0
"""Seconds after which a command hangs."""


@dataclass
class Planted:
    """What is wrong with a child."""

    crash: str = ""
    """As DIASTOLE_CRASH: where it is killed, or paused."""
    file_bytes: int | None = None
    """Files may grow to so much only, as on a full disk."""
    lease: float = 60.0
    environment: dict[str, str] = field(default_factory=dict)


class Child:
    """A command that runs."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self._output = pid, output
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it lives."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def stopped(self) -> bool:
        """Whether it is paused."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    def send(self, number: int) -> None:
        """A signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code. Raises TimeoutError where it hangs: then its stacks are in what it said."""
        end = time.monotonic() + PATIENCE
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGCONT)
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a command hung for {PATIENCE:g} s: {self.said()}")
            time.sleep(0.005)
        return self.poll() or 0

    def said(self) -> str:
        """What it printed."""
        return self._output.read_text(errors="replace")


def start(arguments: Sequence[str], planted: Planted | None = None) -> Child:
    """A command of the command line."""
    return start_all([arguments], planted)


def start_all(commands: Sequence[Sequence[str]], planted: Planted | None = None) -> Child:
    """Commands, one after the other, until one ends otherwise than well."""

    def work() -> int:
        for arguments in commands:
            sys.argv = ["diastole", *arguments]
            if code := cli.answer():
                return code
        return 0

    return _fork(work, planted or Planted())


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a child. Raises RuntimeError with what it said where it failed."""
    with tempfile.NamedTemporaryFile() as answer:

        def work() -> int:
            Path(answer.name).write_bytes(pickle.dumps(function(*arguments)))
            return 0

        child = _fork(work, Planted())
        if child.wait():
            raise RuntimeError(child.said())
        return pickle.loads(Path(answer.name).read_bytes())


def _fork(work: Callable[[], int], planted: Planted) -> Child:
    handle, name = tempfile.mkstemp(prefix="soak-")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(handle)
        return Child(pid, Path(name))
    code = 70
    try:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(planted.environment)
        crash._ARMED = planted.crash
        leases.LEASE_SECONDS = planted.lease
        remote.RETRY_SECONDS, remote.SILENT_SECONDS, delta.ATTEMPTS = 4.0, 1.0, 3
        if planted.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (planted.file_bytes, resource.RLIM_INFINITY))
        code = work()
    except BaseException:  # noqa: BLE001 - said, and then it ends here, not in the parent's code
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
