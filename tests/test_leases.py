"""Leases: runs and ingests hold a lake together, what rewrites it holds it alone, and the dead hold nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from diastole.lake import leases
from diastole.lake.errors import BusyError


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.02)


def test_runs_and_ingests_hold_the_lake_together(lake):
    with leases.shared(lake, "a"), leases.shared(lake, "b"):
        assert len(list(lake.store.names(leases.SHARED))) == 2
    assert not list(lake.store.names(leases.SHARED))


def test_what_wants_the_lake_alone_is_refused_while_a_run_lives_and_says_which(lake):
    with (
        leases.shared(lake, "job j"),
        pytest.raises(BusyError, match=f"sweep must wait for job j, process {os.getpid()}"),
        leases.exclusive(lake, "sweep"),
    ):
        pytest.fail("it has it beside a run")
    with leases.exclusive(lake, "sweep"):
        pass


def test_only_one_has_the_lake_alone(lake):
    with (
        leases.exclusive(lake, "sweep"),
        pytest.raises(BusyError, match="withdrawal must wait: the lake is held alone by process"),
        leases.exclusive(lake, "withdrawal"),
    ):
        pytest.fail("two have it")
    with leases.exclusive(lake, "withdrawal") as lease:
        lease.check()


def test_a_run_waits_for_what_has_the_lake_alone_and_says_so_where_it_takes_long(lake, short):
    with leases.exclusive(lake, "compaction"):
        with (
            pytest.raises(BusyError, match="the lake is held for compaction by process"),
            leases.shared(lake, "j", wait=0.1),
        ):
            pytest.fail("it has it beside a compaction")
        begun = threading.Event()

        def run():
            with leases.shared(lake, "j"):
                begun.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert not begun.wait(0.3)
    assert begun.wait(10)
    thread.join()


def test_what_waits_for_the_lake_gets_it_as_the_run_ends(lake, short):
    with leases.shared(lake, "j"):
        threading.Timer(0.3, lambda: ended.set()).start()
        ended = threading.Event()
        with pytest.raises(BusyError), leases.exclusive(lake, "sweep", wait=0.1):
            pytest.fail("it has it beside a run")
        thread = threading.Thread(target=_alone, args=(lake, gone := threading.Event()))
        thread.start()
        ended.wait()
        assert not gone.is_set()
    assert gone.wait(10)
    thread.join()


def _alone(lake, done):
    with leases.exclusive(lake, "sweep", wait=10):
        done.set()


HOLD = """
import sys, time
from diastole.lake import leases
from diastole.lake.layout import Lake
with getattr(leases, sys.argv[2])(Lake.open(sys.argv[1]), "held") as lease:
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_who_was_killed_holds_nothing_and_who_is_paused_only_until_it_runs_out(lake, kind):
    environment = {**os.environ, "DIASTOLE_LEASE_SECONDS": "1"}
    line = [sys.executable, "-c", HOLD, lake.store.root, kind]
    for how in (signal.SIGKILL, signal.SIGSTOP):
        holder = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE)
        try:
            assert holder.stdout.readline() == b"held\n"
            time.sleep(1.5)  # it is renewed
            with pytest.raises(BusyError), leases.exclusive(lake, "sweep"):
                pytest.fail("it has it beside one that lives")
            holder.send_signal(how)
            if how == signal.SIGKILL:
                holder.wait()
            else:
                time.sleep(1.2)
            with leases.exclusive(lake, "sweep") as lease:
                if how == signal.SIGSTOP:
                    holder.send_signal(signal.SIGCONT)
                    time.sleep(1)
                lease.check()  # one that wakes does not take it back
        finally:
            holder.kill()
            holder.wait()


def test_who_slept_past_its_lease_is_told_at_its_next_step(lake, short, monkeypatch):
    monkeypatch.setattr(leases.Lease, "_keep", lambda self: None)
    with leases.exclusive(lake, "sweep") as lease:
        lease.check()
        time.sleep(0.7)
        with pytest.raises(BusyError, match="lost its lease"):
            lease.check()


def test_of_many_that_take_a_lease_that_ran_out_one_gets_it(lake, short):
    lake.store.put(f"{leases.EXCLUSIVE}/3.json", json.dumps({"until": 0}).encode())
    got, barrier = [], threading.Barrier(8)

    def take():
        barrier.wait()
        try:
            with leases.exclusive(lake, "sweep"):
                got.append(1)
                time.sleep(0.3)
        except BusyError:
            pass

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [1]
