"""Whether Ray's head still answers: a driver says so and stops, a worker ends itself.

Ray ends neither for a minute, and a worker not at all: it would hold its device for ever.
"""

import os
import socket
import time
from collections.abc import Callable
from threading import Event, Thread

HEAD_SECONDS = float(os.environ.get("DIASTOLE_HEAD_SECONDS", "30"))
"""How long the head may be gone; it may come back where Ray keeps its state elsewhere. Ray itself waits for 60 s."""
LOOK_SECONDS = 3.0
"""Time between two looks."""


def watch(address: str, gone: Callable[[], None]) -> Event:
    """Call `gone`, once, when nothing has listened at the head's `host:port` for HEAD_SECONDS. Set what comes back to stop."""
    over = Event()
    Thread(target=_watch, args=(address, gone, over), name="head", daemon=True).start()
    return over


def end_with(address: str) -> None:
    """End this process when the head is gone: what has a receipt counts, and what is half done counts as never begun."""
    watch(address, lambda: os._exit(1))


def _watch(address: str, gone: Callable[[], None], over: Event) -> None:
    since: float | None = None
    pause = min(LOOK_SECONDS, HEAD_SECONDS / 3)
    while not over.wait(pause):
        now = time.monotonic()
        if _listens(address, pause):
            since = None
        elif since is None:
            since = now
        elif now - since >= HEAD_SECONDS:
            gone()
            return


def _listens(address: str, seconds: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except OSError:
        return False
