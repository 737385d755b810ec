"""Receipts: the facts in storage that say which shards are done, and the attempts that say who is to blame."""

import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any, TypeVar, overload

import pyarrow as pa

from ..lake.errors import CommitError
from ..lake.layout import Lake
from ..lake.plain_json import from_json

T = TypeVar("T")
R = TypeVar("R")

READERS = 16
"""Threads that read receipts."""
CHUNK = 32
"""Receipts that a thread reads in one go: a task of its own for each took longer than reading it from a disk."""
_SHA256 = re.compile("[0-9a-f]{64}")
OUTCOMES = ("died", "hung", "returned")
"""How an attempt without a receipt ends."""
LOST = ("worker_died", "worker_hung")
"""Codes of units that no worker came back from."""


@dataclass(frozen=True)
class Part:
    """One Parquet file of a shard's rows, not yet in the table."""

    path: str
    """Relative to the root of the output's table."""
    bytes: int
    sha256: str
    rows: int
    level: str
    """item or row."""


@dataclass(frozen=True)
class Receipt:
    """A shard is done: these files hold its rows. Or it was split: these are its children."""

    run_id: str
    shard: str
    attempt: int
    parts: tuple[Part, ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    """Files of maps: path in the lake, bytes, sha256."""
    scored: int = 0
    failed: int = 0
    codes: Mapping[str, int] | None = None
    """Units that failed at scoring by code: without those that the plan had refused."""
    seconds: Mapping[str, float] | None = None
    """Time of the stages: read, compute, write; what passed from the first to the last of the shard; and of that, on a GPU
    that was watched (gpu_watched), for how long it computed (gpu), for all that shared it."""
    children: Mapping[str, list[int]] | None = None
    """Of a split shard: child → its units."""

    def to_bytes(self) -> bytes:
        """JSON."""
        values = {**self.__dict__, "parts": [part.__dict__ for part in self.parts]}
        return json.dumps(values, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Receipt":
        """Read a receipt. Raises CommitError where it is not one."""
        try:
            values = from_json(data)
            parts = tuple(part_of(part) for part in values.pop("parts"))
            files = tuple(_map_file(file) for file in values.pop("files"))
            return _checked(cls(parts=parts, files=files, **values))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CommitError(f"{where} is not a receipt; delete it and run again: its shard is redone") from error


def part_of(values: Mapping[str, Any]) -> Part:
    """A part as a receipt or a wave has it. Raises ValueError, TypeError where it is none."""
    part = Part(**values)
    _hold(part.path, str, part.path)  # where it may lie is told by the check before a commit
    _hold(part.sha256, str, _SHA256.fullmatch(part.sha256))
    _hold(part.level, str, part.level in ("item", "row"))
    for number in (part.bytes, part.rows):
        _hold(number, int, number >= 0)
    return part


def inside(path: str) -> bool:
    """Whether a path leads nowhere but below the folder that it is relative to."""
    return not path.startswith("/") and "\\" not in path and all(p not in ("", ".", "..") for p in path.split("/"))


def _map_file(values: dict[str, Any]) -> dict[str, Any]:
    _hold(values["path"], str, inside(values["path"]) and values["path"].startswith("maps/"))
    _hold(values["sha256"], str, _SHA256.fullmatch(values["sha256"]))
    _hold(values["bytes"], int, values["bytes"] >= 0 and len(values) == 3)
    return values


def _checked(receipt: Receipt) -> Receipt:
    """Raises ValueError or TypeError where a field is of no kind that a worker writes."""
    for text in (receipt.run_id, receipt.shard):
        _hold(text, str, inside(text) and "/" not in text)
    for number in (receipt.attempt, receipt.scored, receipt.failed):
        _hold(number, int, number >= 0)
    for stage, seconds in (receipt.seconds or {}).items():
        _hold(stage, str, type(seconds) in (int, float) and math.isfinite(seconds))
    for code, units in (receipt.codes or {}).items():
        _hold(code, str, type(units) is int and units >= 0)
    for child, listed in (receipt.children or {}).items():
        _hold(child, str, listed and all(type(unit) is int and unit >= 0 for unit in listed))
    return receipt


def _hold(value: Any, kind: type, fine: Any) -> None:
    if type(value) is not kind or not fine:
        raise ValueError("a field is not what a worker writes")


def put(lake: Lake, receipt: Receipt) -> Receipt:
    """Put a receipt unless the shard has one. Returns the one that counts: this one or the other's."""
    path = f"{lake.run(receipt.run_id)}/receipts/{receipt.shard}.json"
    if lake.store.put_if_absent(path, receipt.to_bytes()):
        return receipt
    return Receipt.from_bytes(lake.store.get(path), path)


def read_one(lake: Lake, run_id: str, shard: str) -> Receipt:
    """The receipt of a shard, from storage. Raises FileNotFoundError, and CommitError where it is not one."""
    path = f"{lake.run(run_id)}/receipts/{shard}.json"
    receipt = Receipt.from_bytes(lake.store.get(path), path)
    if (receipt.run_id, receipt.shard) != (run_id, shard):
        raise CommitError(f"{path} belongs to another run or shard; delete it and run again")
    return receipt


def read_all(lake: Lake, run_id: str) -> Iterator[Receipt]:
    """All receipts of a run, from storage, in no order."""
    names = (name.removesuffix(".json") for name in lake.store.names(f"{lake.run(run_id)}/receipts"))
    return in_threads(partial(read_one, lake, run_id), names)


class Results(Sequence[Receipt]):
    """The receipts that hold the rows of a run, in order. They stay in storage, and are read each time they are asked for.

    Raises CommitError where one is gone or damaged.
    """

    def __init__(self, lake: Lake, run_id: str, shards: pa.StringArray) -> None:
        self._lake, self._run_id, self._shards = lake, run_id, shards

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> "Results": ...
    def __getitem__(self, index: int | slice) -> "Receipt | Results":
        if isinstance(index, slice):
            return Results(self._lake, self._run_id, self._shards[index])
        return self._read(self._shards[index].as_py())

    def __iter__(self) -> Iterator[Receipt]:
        return in_threads(self._read, (shard.as_py() for shard in self._shards))

    def _read(self, shard: str) -> Receipt:
        try:
            return read_one(self._lake, self._run_id, shard)
        except FileNotFoundError:
            raise CommitError(f"the receipt of shard {shard} is gone; run again: its shard is redone") from None


def in_threads(call: Callable[[T], R], values: Iterable[T], threads: int = READERS, chunk: int = CHUNK) -> Iterator[R]:
    """What `call` gives of each, in their order, some at a time: an object store answers many in the time of one."""
    left = iter(values)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[list[R]]] = deque()
        while True:
            while len(ahead) < 2 * threads and (some := list(islice(left, chunk))):
                ahead.append(pool.submit(lambda some: [call(value) for value in some], some))
            if not ahead:
                return
            yield from ahead.popleft().result()


def mark_attempt(lake: Lake, run_id: str, shard: str, *, in_process: bool, session: str, alone: bool) -> int:
    """Say in storage that a shard is about to be computed. Returns the attempt's number, which is nobody else's."""
    number = 1
    note = json.dumps({"in_process": in_process, "session": session, "alone": alone}).encode()
    while not lake.store.put_if_absent(f"{_folder(lake, run_id)}/{shard}.{number}", note):
        number += 1
    return number


def close_attempt(lake: Lake, run_id: str, shard: str, number: int, outcome: str) -> None:
    """Say how an attempt without a receipt ended: `died` and `hung` count against the shard, `returned` does not."""
    lake.store.put_if_absent(f"{_folder(lake, run_id)}/{shard}.{number}.{outcome}", b"")


def deaths(lake: Lake, run_id: str, session: str, is_done: Callable[[str], bool] | None = None) -> dict[str, int]:
    """The shards that a worker had begun as it died, and how often it had nothing else: only then is it known of what.

    A death is one that a driver saw; where worker and driver were one process, an earlier session's attempt without
    an end is one too. What is done is not looked into.
    """
    outcomes: dict[tuple[str, str], str] = {}
    for name in lake.store.names(_folder(lake, run_id)):
        shard, number, *outcome = name.split(".")  # 00003-0.2.died: shard 00003-0, attempt 2, died
        if is_done is None or not is_done(shard):
            outcomes[shard, number] = outcome[0] if outcome else outcomes.get((shard, number), "open")
    counted: dict[str, int] = {}
    for (shard, number), outcome_of in sorted(outcomes.items()):
        if outcome_of == "returned":
            continue
        note = json.loads(lake.store.get(f"{_folder(lake, run_id)}/{shard}.{number}"))
        if outcome_of in ("died", "hung") or (note["in_process"] and note["session"] != session):
            counted[shard] = counted.get(shard, 0) + note["alone"]
    return counted


def has_hung(lake: Lake, run_id: str, shard: str) -> bool:
    """Whether a worker was ended because it did not get on with a shard."""
    for number in count(1):
        path = f"{_folder(lake, run_id)}/{shard}.{number}"
        if lake.store.size(path) is None:
            return False
        if lake.store.size(f"{path}.hung") is not None:
            return True
    return False


def open_attempts(lake: Lake, run_id: str, shard: str, session: str) -> list[int]:
    """Attempts at a shard that this session has begun and that have no end yet."""
    found: list[int] = []
    for number in count(1):
        path = f"{_folder(lake, run_id)}/{shard}.{number}"
        try:
            note = json.loads(lake.store.get(path))
        except FileNotFoundError:
            return found
        if note["session"] == session and all(lake.store.size(f"{path}.{outcome}") is None for outcome in OUTCOMES):
            found.append(number)
    return found


def _folder(lake: Lake, run_id: str) -> str:
    return f"{lake.run(run_id)}/attempts"
