"""Named points at which a test can kill the process, to prove that a run survives it. Off, a point costs nothing."""

import os
import signal
from itertools import count
from pathlib import Path

_ARMED = os.environ.get("DIASTOLE_CRASH", "")
"""`NAME` kills at each pass; `NAME:FILE` kills once, at the first pass at which FILE can be created; `NAME#3` kills at the
third pass of this process.

`pause@NAME` and `pause@NAME:FILE` stop the process with SIGSTOP instead, until it gets SIGCONT.
"""
_PASSES = count(1)


def point(name: str) -> None:
    """Kill this process with SIGKILL, or pause it, if DIASTOLE_CRASH names this point."""
    if not _ARMED:
        return
    armed, _, flag = _ARMED.removeprefix("pause@").partition(":")
    armed, _, which = armed.partition("#")
    if armed != name or (which and next(_PASSES) != int(which)):
        return
    if flag:
        try:
            Path(flag).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGSTOP if _ARMED.startswith("pause@") else signal.SIGKILL)
