"""Leases: who may do what with a lake at a time. They decide who tries, never who may commit: that is the fence's.

    leases/shared/OWNER.json      each run and each ingest, side by side
    leases/exclusive/N.json       one sweep, compaction or withdrawal, while no shared one is held
    leases/alone.json             the last that had the lake alone: who slept through it sees another than it began with
    runs/RUN_ID/lease/N.json      the one driver of a run

Of numbered ones the newest counts. One that ran out is taken by putting the next number, which only one can; a holder
that slept meanwhile writes to its old number, which nobody reads any more.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from .errors import BusyError, EnvironmentFailure
from .layout import Lake
from .plain_json import from_json

LEASE_SECONDS = float(os.environ.get("DIASTOLE_LEASE_SECONDS", "60"))
"""How long a holder may be silent before another may take its lease."""
LOOK_SECONDS = 0.2
"""Between two looks of one that waits."""
SHARED, EXCLUSIVE, ALONE = "leases/shared", "leases/exclusive", "leases/alone.json"


class Lease:
    """One that is held: a file that a thread renews."""

    def __init__(self, lake: Lake, what: str) -> None:
        self._lake, self.path, self._until, self._lapsed = lake, "", 0.0, False
        self._note = {"what": what, "host": socket.gethostname(), "pid": os.getpid(), "owner": uuid.uuid4().hex}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def begin(self, path: str) -> bool:
        """Put its file, and renew it from then on; False where there is one."""
        self.path = path
        until = time.time() + LEASE_SECONDS
        if not self._lake.store.put_if_absent(path, self.words(until)):
            return False
        self._until = until
        self._thread.start()
        return True

    def check(self) -> None:
        """Raise BusyError where it ran out while this process slept: another may hold it by now."""
        folder, name = self.path.rsplit("/", 1)
        late = time.time() > self._until or self._lapsed
        if late or name != f"{newest(self._lake, folder)}.json":
            raise BusyError(f"{self._note['what']} slept for over {LEASE_SECONDS:g} s and lost its lease; run it again")

    def end(self) -> None:
        """Give it up."""
        self._over.set()
        self._thread.join(timeout=LEASE_SECONDS)

    def words(self, until: float) -> bytes:
        """What stands in its file."""
        return json.dumps({**self._note, "until": until}).encode()

    def _keep(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 3):
            until = time.time() + LEASE_SECONDS
            self._lapsed |= time.time() > self._until  # renewed too late, it does not become whole again
            try:
                self._lake.store.put(self.path, self.words(until))
                self._until = until
            except EnvironmentFailure:
                continue  # storage may answer again before the lease runs out


class Held:
    """The lake, as who holds it together with others sees it."""

    def __init__(self, lake: Lake, what: str) -> None:
        self._lake, self._what, self._began = lake, what, _alone(lake)

    def check(self) -> None:
        """Raise BusyError where this process slept past its lease, and another had the lake alone meanwhile.

        What it looks at only changes then, whatever clocks say. One who writes a table opens it before: then either this
        sees the other, or the table's fence is raised after it, and the write fails.
        """
        if _alone(self._lake) != self._began:
            raise BusyError(
                f"{self._what} slept for over {LEASE_SECONDS:g} s, and the lake was rewritten; run it again"
            )


@contextmanager
def numbered(lake: Lake, folder: str, what: str, busy: str) -> Iterator[Lease]:
    """Hold the lease of a folder. Raises BusyError, which begins with `busy`, while another that lives holds it."""
    number, lease = newest(lake, folder), Lease(lake, what)
    if holder := living(lake, f"{folder}/{number}.json"):
        raise BusyError(f"{busy} {_who(holder)}")
    if not lease.begin(f"{folder}/{number + 1}.json"):
        raise BusyError(f"{busy} a process that came first just now; wait for it")
    lake.store.delete(f"{folder}/{number}.json")
    try:
        yield lease
    finally:
        lease.end()
        with suppress(EnvironmentFailure):  # then it runs out by itself
            lake.store.put(lease.path, b'{"until": 0}')  # it stays, so that numbers only rise


@contextmanager
def shared(lake: Lake, what: str, wait: float = 60.0) -> Iterator[Held]:
    """Keep sweeps, compactions and withdrawals away from the lake while it is entered. Raises BusyError where one of
    them holds it for longer than `wait` seconds.
    """
    until = time.monotonic() + wait
    while True:
        lease = Lease(lake, what)
        # Written before one looks, on both sides: of two that begin at once, at least one sees the other.
        lease.begin(f"{SHARED}/{uuid.uuid4().hex}.json")
        try:
            holder = living(lake, f"{EXCLUSIVE}/{newest(lake, EXCLUSIVE)}.json")
            if holder is None:
                yield Held(lake, what)
                return
        finally:
            lease.end()
            with suppress(EnvironmentFailure, OSError):
                lake.store.delete(lease.path)
        if time.monotonic() > until:
            raise BusyError(f"the lake is held for {holder['what']} by {_who(holder)}")
        time.sleep(LOOK_SECONDS)


@contextmanager
def exclusive(lake: Lake, what: str, wait: float = 0.0) -> Iterator[Lease]:
    """Have the lake alone. Raises BusyError where a run, an ingest or another that wants it alone holds it for longer
    than `wait` seconds. Runs that begin meanwhile wait.
    """
    until = time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            try:
                lease = stack.enter_context(
                    numbered(lake, EXCLUSIVE, what, f"{what} must wait: the lake is held alone by")
                )
                break
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)
        while (holder := _sharing(lake)) is not None:
            if time.monotonic() > until:
                raise BusyError(f"{what} must wait for {holder['what']}, {_who(holder)}")
            time.sleep(LOOK_SECONDS)
        lake.store.put(ALONE, lease.words(0.0))
        yield lease


def living(lake: Lake, path: str) -> dict[str, Any] | None:
    """Who holds a lease; None where nobody does, it ran out, or its process is gone from this machine."""
    try:
        found = {"what": "work", **from_json(lake.store.get(path))}
        held = found["pid"] > 0 and found["until"] > time.time()
        return found if held and not _gone(found) else None
    except (FileNotFoundError, ArithmeticError, ValueError, KeyError, TypeError):
        return None


def newest(lake: Lake, folder: str) -> int:
    """The number that counts; 0 where there is none."""
    stems = [name.partition(".")[0] for name in lake.store.names(folder)]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _sharing(lake: Lake) -> dict[str, Any] | None:
    """One of those that hold it together. What the dead left is removed."""
    for name in sorted(lake.store.names(SHARED)):
        path = f"{SHARED}/{name}"
        if holder := living(lake, path):
            return holder
        lake.store.delete(path)  # one that only slept puts it again as it wakes
    return None


def _alone(lake: Lake) -> bytes | None:
    """Who had the lake alone last."""
    try:
        return lake.store.get(ALONE)
    except FileNotFoundError:
        return None


def _who(holder: dict[str, Any]) -> str:
    left = max(0.0, holder["until"] - time.time())
    return f"process {holder['pid']} on {holder['host']}; wait for it, or try again in {left:.0f} s if it is gone"


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more: then nobody need wait."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
