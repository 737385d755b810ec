"""Receipts: the facts in storage that say which shards are done, and the attempts that say who is to blame."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..lake.errors import CommitError
from ..lake.layout import Lake


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
    seconds: Mapping[str, float] | None = None
    """Time of the stages: read, compute, write; and what passed from the first to the last of the shard."""
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
            values = json.loads(data)
            parts = tuple(Part(**part) for part in values.pop("parts"))
            return cls(parts=parts, files=tuple(values.pop("files")), **values)
        except (ValueError, TypeError, KeyError) as error:
            raise CommitError(f"{where} is not a receipt; delete it and run again: its shard is redone") from error


def put(lake: Lake, receipt: Receipt) -> Receipt:
    """Put a receipt unless the shard has one. Returns the one that counts: this one or the other's."""
    path = f"{lake.run(receipt.run_id)}/receipts/{receipt.shard}.json"
    if lake.store.put_if_absent(path, receipt.to_bytes()):
        return receipt
    return Receipt.from_bytes(lake.store.get(path), path)


def read_one(lake: Lake, run_id: str, shard: str) -> Receipt:
    """The receipt of a shard, from storage. Raises FileNotFoundError."""
    path = f"{lake.run(run_id)}/receipts/{shard}.json"
    return Receipt.from_bytes(lake.store.get(path), path)


def read_all(lake: Lake, run_id: str) -> dict[str, Receipt]:
    """All receipts of a run by shard, from storage."""
    found = {}
    for path, _ in lake.store.list(f"{lake.run(run_id)}/receipts"):
        receipt = Receipt.from_bytes(lake.store.get(path), path)
        if receipt.run_id != run_id or f"{receipt.shard}.json" != path.rsplit("/", 1)[1]:
            raise CommitError(f"{path} belongs to another run or shard; delete it and run again")
        found[receipt.shard] = receipt
    return found


def mark_attempt(lake: Lake, run_id: str, shard: str, *, in_process: bool, session: str, alone: bool) -> int:
    """Say in storage that a shard is about to be computed. Returns the attempt's number, which is nobody else's."""
    number = 1
    note = json.dumps({"in_process": in_process, "session": session, "alone": alone}).encode()
    while not lake.store.put_if_absent(f"{_folder(lake, run_id)}/{shard}.{number}", note):
        number += 1
    return number


def close_attempt(lake: Lake, run_id: str, shard: str, number: int, outcome: str) -> None:
    """Say how an attempt without a receipt ended: `died` counts against the shard, `returned` does not."""
    lake.store.put_if_absent(f"{_folder(lake, run_id)}/{shard}.{number}.{outcome}", b"")


def deaths(lake: Lake, run_id: str, session: str) -> dict[str, int]:
    """The shards that a worker had begun as it died, and how often it had nothing else: only then is it known of what.

    A death is one that a driver saw; where worker and driver were one process, an earlier session's attempt without
    an end is one too.
    """
    notes: dict[tuple[str, int], str] = {}
    for path, _ in lake.store.list(_folder(lake, run_id)):
        shard, number, *outcome = _parse(path)
        key = (shard, int(number))
        notes[key] = outcome[0] if outcome else notes.get(key, "open")
    counted: dict[str, int] = {}
    for (shard, attempt), outcome_of in notes.items():
        note = json.loads(lake.store.get(f"{_folder(lake, run_id)}/{shard}.{attempt}"))
        if outcome_of == "died" or (outcome_of == "open" and note["in_process"] and note["session"] != session):
            counted[shard] = counted.get(shard, 0) + note["alone"]
    return counted


def open_attempts(lake: Lake, run_id: str, session: str) -> list[tuple[str, int]]:
    """(shard, attempt) of this session that were begun and have no end yet."""
    parsed = [_parse(path) for path, _ in lake.store.list(_folder(lake, run_id))]
    ended = {(p[0], int(p[1])) for p in parsed if len(p) == 3}
    found = []
    for shard, number in [(p[0], int(p[1])) for p in parsed if len(p) == 2]:
        path = f"{_folder(lake, run_id)}/{shard}.{number}"
        if (shard, number) not in ended and json.loads(lake.store.get(path))["session"] == session:
            found.append((shard, number))
    return found


def _folder(lake: Lake, run_id: str) -> str:
    return f"{lake.run(run_id)}/attempts"


def _parse(path: str) -> list[str]:
    """`00003-0.2.died` → shard 00003-0, attempt 2, died."""
    return path.rsplit("/", 1)[1].split(".")
