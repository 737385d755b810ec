"""Subjects whose consent was withdrawn: what no plan, commit or ingest may take up again.

One file per subject, `suppressed/SUBJECT_ID`. What is in it are opaque ids and keyed hashes, nothing that can be read
without the lake's key. Who deletes it undoes the withdrawal for what is ingested from then on.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from .ids import keyed
from .layout import Lake

FOLDER = "suppressed"
WITHDRAWN = "withdrawn"
"""Code with which a source is refused of which nothing may be kept."""
READERS = 8
_NAMES = ("items", "sources", "contents", "arrays", "pending")


@dataclass(frozen=True)
class Suppressed:
    """What is known of withdrawn subjects."""

    subjects: frozenset[str] = frozenset()
    """Subject ids."""
    items: frozenset[str] = frozenset()
    """Ids of the items that they had, and of those derived from them."""
    sources: frozenset[str] = frozenset()
    """Keys of the source files (paths) that they came from."""
    contents: frozenset[str] = frozenset()
    """Keyed hashes of what was in these files, unless another's file holds the same."""
    arrays: frozenset[str] = frozenset()
    """Groups of variants in which they were samples beside others: nothing may read these."""
    pending: frozenset[str] = frozenset()
    """Ids of the items that had such a group, until all of them is removed; then they may come back, without the sample."""

    def __or__(self, other: "Suppressed") -> "Suppressed":
        return Suppressed(
            self.subjects | other.subjects,
            self.items | other.items,
            self.sources | other.sources,
            self.contents | other.contents,
            self.arrays | other.arrays,
            self.pending | other.pending,
        )

    def __bool__(self) -> bool:
        return bool(self.subjects)


def subjects(lake: Lake) -> frozenset[str]:
    """Subject ids alone: one listing."""
    return frozenset(lake.store.names(FOLDER))


def read(lake: Lake, of: Iterable[str] | None = None) -> Suppressed:
    """What is known of all withdrawn subjects, or of some."""
    found = sorted(subjects(lake) if of is None else of)
    with ThreadPoolExecutor(READERS) as threads:
        known = threads.map(lambda subject: _read(lake, subject), found)
        return sum_of(known) | Suppressed(frozenset(found))


def suppress(lake: Lake, subject: str, known: Suppressed) -> None:
    """From here on nothing of a subject is published. What was said of it before stays."""
    lake.store.put_if_absent(f"{FOLDER}/{subject}", _words(known))


def add(lake: Lake, subject: str, known: Suppressed) -> None:
    """Say more of a subject. Only who has the lake alone may."""
    before = _read(lake, subject)
    if before | known != before or not lake.store.size(f"{FOLDER}/{subject}"):
        lake.store.put(f"{FOLDER}/{subject}", _words(before | known))


def settle(lake: Lake, subject: str) -> None:
    """Say that nothing is left of a subject. Only who has the lake alone may."""
    known = _read(lake, subject)
    if known.pending:
        lake.store.put(f"{FOLDER}/{subject}", _words(replace(known, pending=frozenset())))


def content_id(lake: Lake, sha256: str) -> str:
    """The opaque id of what is in a source file."""
    return keyed(lake.key, "content", sha256)


def sum_of(known: Iterable[Suppressed]) -> Suppressed:
    """All of them in one."""
    whole = Suppressed()
    for one in known:
        whole |= one
    return whole


def _words(known: Suppressed) -> bytes:
    said = {name: sorted(getattr(known, name)) for name in _NAMES}
    return json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **said}, indent=1).encode()


def _read(lake: Lake, subject: str) -> Suppressed:
    try:
        said = json.loads(lake.store.get(f"{FOLDER}/{subject}"))
        return Suppressed(frozenset([subject]), *(frozenset(said.get(name, ())) for name in _NAMES))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # put by hand: its name is what counts
        return Suppressed(frozenset([subject]))
