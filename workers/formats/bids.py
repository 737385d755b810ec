"""The sidecars that BIDS puts beside a recording: *_channels.tsv, *_events.tsv and *_eeg.json of the same folder.

Of two that apply, the one that names more of the recording's entities goes first (BIDS' inheritance, within one folder).
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from . import beside, channels

_NAME = re.compile(r"(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9+]+){0,7})_(eeg|ieeg|meg|nirs)")
_TABLE_BYTES = 2**23
_JSON_BYTES = 2**20
_ENTITIES = 7
"""More than any recording's name has; each of their subsets is looked for."""


@dataclass(frozen=True)
class Sidecar:
    """What the sidecars of a recording say, none of it checked against the recording yet."""

    channels: dict[str, dict[str, str]] | None = None
    """The row of each name; None where there is no channels.tsv."""
    events: list[tuple[float, float, str]] | None = None
    reference: str | None = None
    power_line_hz: float | None = None


def names(path: Path, parts: Sequence[Path] = ()) -> tuple[str, ...]:
    """Names of the sidecars that are there, those that count more first."""
    return tuple(name for what in ("channels", "events", "json") for name in _there(path, what, parts))


def sidecar(path: Path, parts: Sequence[Path]) -> Sidecar:
    """Read what is beside a recording. Raises ItemError where it is no table, or no JSON."""
    tables = {what: next(_there(path, what, parts), None) for what in ("channels", "events")}
    said: dict[str, Any] = {}
    for name in reversed(list(_there(path, "json", parts))):
        said |= _json(path.parent / name)
    rows = None if tables["channels"] is None else _table(path.parent / tables["channels"], "channels")
    found = None if tables["events"] is None else list(_events(_table(path.parent / tables["events"], "events")))
    hertz = said.get("PowerLineFrequency")
    return Sidecar(
        None if rows is None else {row["name"]: row for row in rows if "name" in row},
        found,
        channels.reference(_text(said.get("EEGReference", said.get("iEEGReference")))),
        float(hertz) if hertz in (50, 60) else None,
    )


def _there(path: Path, what: str, parts: Sequence[Path]) -> Iterator[str]:
    match = _NAME.fullmatch(path.name.split(".")[0])
    if match is None:
        return
    entities = match[1].split("_")[:_ENTITIES]
    ending = f"{match[2]}.json" if what == "json" else f"{what}.tsv"
    for count in range(len(entities), -1, -1):
        for chosen in combinations(entities, count):
            name = "_".join([*chosen, ending])
            if beside.there(path, name, parts):
                yield name


def _content(path: Path, most: int, what: str) -> str:
    if path.stat().st_size > most:
        raise ItemError("too_large", f"its {what} sidecar has more than {most} bytes; shorten it")
    return path.read_bytes().decode("utf-8-sig", "replace")


def _table(path: Path, what: str) -> list[dict[str, str]]:
    """Rows by column; cells that are not known (`n/a`) are left out."""
    lines = [line.split("\t") for line in _content(path, _TABLE_BYTES, what).splitlines() if line.strip()]
    head = [cell.strip() for cell in lines[0]] if lines else []
    if any(len(line) != len(head) for line in lines):
        raise ItemError(
            "header_lies", f"a row of its {what}.tsv has more or fewer cells than the first one; mend the table"
        )
    needed = {"channels": "name", "events": "onset"}[what]
    if lines and needed not in head:
        raise ItemError("header_lies", f"its {what}.tsv has no column {needed}; mend the table")
    rows = ({key: cell.strip() for key, cell in zip(head, line, strict=True)} for line in lines[1:])
    return [{key: cell for key, cell in row.items() if cell not in ("", "n/a")} for row in rows]


def _events(rows: list[dict[str, str]]) -> Iterator[tuple[float, float, str]]:
    for row in rows:
        onset = _number(row.get("onset"))
        if math.isfinite(onset):
            yield onset, _number(row.get("duration")), row.get("trial_type") or row.get("value") or ""


def _number(text: str | None) -> float:
    try:
        return math.nan if text is None else float(text)
    except ValueError as error:
        raise ItemError(
            "header_lies", "an onset or a duration of its events.tsv is not a number; mend the table"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_content(path, _JSON_BYTES, "JSON"))
    except (ValueError, RecursionError) as error:
        raise ItemError("header_lies", "its JSON sidecar is not JSON; mend it, or take it away") from error
    if not isinstance(found, dict):
        raise ItemError("header_lies", "its JSON sidecar is not an object; mend it, or take it away")
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
