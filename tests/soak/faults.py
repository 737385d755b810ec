"""What happens between two runs, what goes wrong in one, and a reader who looks on all the while."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from diastole.lake.errors import DiastoleError

from . import forks, invariant
from .forks import Planted

if TYPE_CHECKING:
    from .run import Soak

RUN_POINTS = (
    "after-plan", "mid-shard", "after-part", "after-receipt", "before-wave", "after-merge", "before-commit", "after-commit",
    "before-current", "before-record",
)  # fmt: skip
INGEST_POINTS = ("ingest-stored", "ingest-integrity", "ingest-items", "ingest-quarantine")
CARE_POINTS = {
    "sweep": ("sweep-begin", "sweep-fenced", "sweep-forgotten", "sweep-removed", "sweep-removing"),
    "compact": ("compact-begin", "compact-committed", "compact-recorded", "compact-written"),
    "withdraw": (
        "withdraw-checkpoint", "withdraw-datasets", "withdraw-end", "withdraw-found", "withdraw-items", "withdraw-outputs",
        "withdraw-packed", "withdraw-rewritten", "withdraw-rows", "withdraw-runs", "withdraw-suppressed",
    ),
}  # fmt: skip
LONGEST = 0.8
"""Seconds after which, at the latest, what is killed at any time is killed."""


class Watch:
    """A reader in a process of its own, which looks at the tables again and again."""

    def __init__(self, root: str) -> None:
        self._parent = os.getpid()
        self._child = forks._fork(lambda: self._look(root), Planted())
        self.reads = 0

    def _look(self, root: str) -> int:
        while os.getppid() == self._parent:
            with contextlib.suppress(DiastoleError):  # storage that fails shows nothing
                print(sorted((*key, rows) for key, rows in invariant.per_run(root).items()), flush=True)
            time.sleep(0.05)
        return 0

    def end(self) -> list[str]:
        """Runs of which some rows were seen before others."""
        self._child.send(signal.SIGKILL)
        self._child.wait()
        looks = [eval(line) for line in self._child.said().splitlines() if line.endswith("]")]
        self.reads = len(looks)
        most: dict[tuple[str, str], int] = {}
        partial = set()
        for look in looks:
            for output, run, rows in look:
                if rows > most.setdefault((output, run), rows):
                    partial.add((output, run))
        return [f"a reader saw part of run {run[:8]}" for _, run in partial]


def change(soak: "Soak") -> None:
    """Something that is new or other than before."""
    world, chance = soak.world, soak.chance
    kind = chance.choices(["subject", "change", "model", "nothing", "retry"], [3, 4, 1, 1, 1])[0]
    soak.counts[f"change: {kind}"] += 1
    if kind == "subject" or not world.living():
        world.add_subject()
    elif kind == "change":
        world.change()
    elif kind == "model":
        soak.add_model(str(int(world.version) + 1))
    elif kind == "retry":
        soak.do([*soak.runs()[0], "--retry"])
        world.retries += 1


def choose(chance: random.Random) -> str:
    """One of the faults."""
    return chance.choices(list(FAULTS), [WEIGHTS.get(name, 1) for name in FAULTS])[0]


def nothing(soak: "Soak") -> None:
    """All goes well."""


def killed_at_a_point(soak: "Soak") -> None:
    """A command is killed at one of its points, at one of its first passes."""
    command, points = soak.chance.choice(
        [(c, INGEST_POINTS) for c in soak.ingests()] + [(c, RUN_POINTS) for c in soak.runs()] * 2
    )
    take_in(soak, command)
    passes = soak.chance.choice([1, 1, 1, 2, 3])
    for _ in range(soak.chance.choice([1, 1, 2])):
        point = soak.chance.choice(points)
        code = forks.start(command, Planted(crash=f"{point}#{passes}")).wait()
        soak.counts["killed" if code == -signal.SIGKILL else "ended before the fault"] += 1


def killed_at_any_time(soak: "Soak") -> None:
    """A command is killed, or interrupted, after so many milliseconds."""
    command = soak.chance.choice([*soak.ingests(), *soak.runs() * 2])
    take_in(soak, command)
    for _ in range(soak.chance.choice([1, 2, 3])):
        child = forks.start(command)
        time.sleep(soak.chance.random() * LONGEST)
        child.send(soak.chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        soak.counts["killed" if child.wait() else "ended before the fault"] += 1


def paused_past_its_lease(soak: "Soak") -> None:
    """A driver sleeps, another does its work, the first wakes."""
    command = soak.chance.choice(soak.runs())
    take_in(soak, command)
    point = soak.chance.choice(RUN_POINTS)
    first = forks.start(command, Planted(crash=f"pause@{point}", lease=0.3))
    while first.poll() is None and not first.stopped():
        time.sleep(0.005)
    if first.poll() is None:
        soak.counts["paused"] += 1
        time.sleep(0.35)
        code = forks.start(command).wait()
        soak.counts[f"another driver ended with {code}"] += 1
        while first.poll() is None:  # it stops at each pass
            if first.stopped():
                first.send(signal.SIGCONT)
            time.sleep(0.002)
        soak.counts[f"the one that slept ended with {first.wait()}"] += 1


def two_plans(soak: "Soak") -> None:
    """Two jobs mean the same units: one sleeps with its plan, the other publishes them, the first wakes."""
    take_in(soak, soak.runs()[0])
    point = soak.chance.choice(RUN_POINTS[:7])
    first = forks.start(soak.runs()[0], Planted(crash=f"pause@{point}#1"))
    while first.poll() is None and not first.stopped():
        time.sleep(0.005)
    code = forks.start(soak.same_again()).wait()
    soak.counts[f"another job ended with {code}"] += 1
    first.send(signal.SIGCONT)
    soak.counts[f"the job that slept ended with {first.wait()}"] += 1


def two_drivers(soak: "Soak") -> None:
    """The same command twice at a time."""
    command = soak.chance.choice(soak.runs())
    take_in(soak, command)
    children = [forks.start(command), forks.start(command)]
    codes = sorted(child.wait() for child in children)
    soak.counts[f"two drivers ended with {codes}"] += 1


def disk_full(soak: "Soak") -> None:
    """Files may not grow beyond some bytes."""
    command = soak.chance.choice([*soak.ingests(), *soak.runs()])
    take_in(soak, command)
    if soak.server is not None:
        return
    code = forks.start(command, Planted(file_bytes=soak.chance.choice([100, 1000, 3000, 8000]))).wait()
    soak.counts["disk was full" if code else "ended before the fault"] += 1


def ingest_beside(soak: "Soak") -> None:
    """More arrives while a run goes on."""
    soak.settle()  # so that what a run may still see of before is scored already
    soak.world.change()
    children = [forks.start(command) for command in [soak.runs()[0], *soak.ingests(), soak.runs()[1]]]
    for child in children:
        if child.wait():
            raise RuntimeError(f"a command beside others failed: {child.said()[-1000:]}")


def other_model_meanwhile(soak: "Soak") -> None:
    """A run is killed, and before it goes on the model becomes another."""
    command = soak.runs()[0]
    take_in(soak, command)
    soak.world.change()
    soak.do(soak.ingests()[0])
    point = soak.chance.choice(RUN_POINTS)
    child = forks.start(command, Planted(crash=f"{point}#1"))
    published = child.wait() == -signal.SIGKILL and point in ("after-commit", "before-current", "before-record")
    if published or child.code == 0:
        soak.world.note_scored_by(command)
    soak.add_model(str(int(soak.world.version) + 1))
    soak.do([*command, "--replan"])


def storage_fails(soak: "Soak") -> None:
    """An object store fails at some of the requests of some commands, or says nothing for a while."""
    if soak.server is None:
        return disk_full(soak)
    soak.server.plan(soak.chance.randint(0, 2**31), soak.chance.choice([0.02, 0.1, 0.3]))
    try:
        for command in [*soak.ingests(), *soak.runs()]:
            code = forks.start(command).wait()
            if code not in (0, 3):
                raise RuntimeError(f"{command[0]} on a store that fails ended with {code}")
            soak.counts["storage failed and the command " + ("stopped" if code else "got through")] += 1
    finally:
        soak.server.heal()


def worker_dies(soak: "Soak") -> None:
    """On Ray, a worker is killed, or sleeps for a while."""
    command = soak.chance.choice(soak.runs())
    soak.world.add_subject()
    take_in(soak, command)
    run = forks.start([*command, "--workers", "2"])
    workers: list[psutil.Process] = []
    while run.poll() is None and not workers:
        time.sleep(0.05)
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(run.pid).children(recursive=True)
            workers = [child for child in children if "ray::Worker" in " ".join(child.cmdline())]
    time.sleep(soak.chance.random() * 4)
    kill = soak.chance.random() < 0.7
    for worker in workers[:1]:
        with contextlib.suppress(psutil.Error):
            worker.send_signal(signal.SIGKILL if kill else signal.SIGSTOP)
            soak.counts["workers killed" if kill else "workers paused"] += 1
            if not kill:
                time.sleep(1.0)
                worker.send_signal(signal.SIGCONT)
    if run.wait():
        raise RuntimeError(f"a run whose worker was lost failed: {run.said()[-1000:]}")


def care_beside(soak: "Soak") -> None:
    """A sweep and a compaction are called while a run goes on: they wait, or are refused."""
    command = soak.chance.choice(soak.runs())
    take_in(soak, command)
    run = forks.start(command)
    time.sleep(soak.chance.random() * LONGEST / 2)
    for care in soak.chance.sample(soak.care(), 2):
        code = forks.start(care).wait()
        if code not in (0, 2):
            raise RuntimeError(f"{care[0]} beside a run ended with {code}")
        soak.counts[f"{care[0]} beside a run {'refused' if code else 'done'}"] += 1
    if run.wait():
        raise RuntimeError(f"a run beside {care[0]} failed: {run.said()[-1000:]}")


def care_killed(soak: "Soak") -> None:
    """A sweep or a compaction is killed, and called again."""
    soak.settle()
    care = soak.chance.choice(soak.care())
    child = forks.start(
        care, Planted(crash=f"{soak.chance.choice(CARE_POINTS[care[0]])}#{soak.chance.choice([1, 1, 2])}")
    )
    if soak.chance.random() < 0.3:
        time.sleep(soak.chance.random() * LONGEST / 2)
        child.send(signal.SIGKILL)
    soak.counts[f"{care[0]} killed" if child.wait() else f"{care[0]} ended before the fault"] += 1
    soak.do(*soak.care())


def withdrawal_beside(soak: "Soak") -> None:
    """A subject withdraws while a run holds it, and the withdrawal, or the run, may be killed on the way."""
    world, command = soak.world, soak.chance.choice(soak.runs())
    take_in(soak, command)
    if len(world.living()) < 3:
        return
    subject = soak.chance.choice(world.living())
    world.withdrawn.add(subject)
    run = forks.start(command)
    time.sleep(soak.chance.random() * LONGEST / 2)
    point = soak.chance.choice([*CARE_POINTS["withdraw"], ""])
    withdrawal = forks.start(["withdraw", subject, "--wait", "60"], Planted(crash=point))
    if soak.chance.random() < 0.5:
        time.sleep(soak.chance.random() * LONGEST)
        soak.chance.choice([run, withdrawal]).send(signal.SIGKILL)
    codes = run.wait(), withdrawal.wait()
    soak.counts["withdrawal killed" if codes[1] == -signal.SIGKILL else "withdrawal beside a run"] += 1
    soak.do(["withdraw", subject, "--wait", "60"])


def take_in(soak: "Soak", command: list[str]) -> None:
    """Let a run have something to do."""
    if command[0] == "run":
        soak.do(*soak.ingests())


FAULTS: dict[str, Callable[["Soak"], Any]] = {
    fault.__name__: fault
    for fault in (
        nothing, killed_at_a_point, killed_at_any_time, paused_past_its_lease, two_plans, two_drivers, disk_full, ingest_beside,
        other_model_meanwhile,
        storage_fails,
        worker_dies,
        care_beside,
        care_killed,
        withdrawal_beside,
    )
}  # fmt: skip
WEIGHTS = {"killed_at_a_point": 5, "killed_at_any_time": 4, "paused_past_its_lease": 2, "worker_dies": 0.3}
