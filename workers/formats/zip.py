"""Zip archives: what is in them is read as if it lay in a folder, series and sidecars too, and is one source.

So it is there as a whole or not at all: a member that cannot be read refuses the archive. Archives within are refused.
"""

import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from diastole.lake.errors import ItemError

from .. import formats
from . import Limits, Part, Reader, ReadOptions, unzip

name = "zip"
_INDEX = "index_file"
_FILES = ("file", "records", "samples", "text")
"""Keys of an entry that name files."""


@dataclass
class _Group:
    """Members that are read together, the first first."""

    reader: Reader
    paths: list[Path]
    together: bool = False


@dataclass
class _Failures:
    """Members that cannot be read."""

    count: int = 0
    first: ItemError | None = None

    def add(self, error: ItemError, members: int = 1) -> None:
        """One more source in the archive."""
        self.count += members
        self.first = self.first or error


def sniff(head: bytes) -> bool:
    """Whether it begins with the header of a member."""
    return head.startswith(b"PK\3\4")


def preflight(path: Path, limits: Limits) -> None:
    """Hold its directory to the limits, before anything is unpacked."""
    with unzip.opened(path, limits.item_bytes) as (_, members):
        if not members:
            raise ItemError("unreadable", "there is no file in it; hidden ones are left out")


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """The items of all members, each with `within`: the member's path without extension. Raises ItemError."""
    room = folder / "members"
    with unzip.opened(path, options.limits.item_bytes) as (archive, members):
        places = _take_out(archive, members, room)
    failures = _Failures()
    groups = list(_groups(places, failures))
    uses = Counter(member for group in groups for member in group.paths)
    within, entries, left = _within(groups, places), [], options.limits.item_bytes
    for number, group in enumerate(groups):
        try:
            found = _read(group, folder / f"{number}", replace(options, limits=Limits(max(left, 1))))
            left -= _size(folder / f"{number}")
            for entry in found:
                told = {"within": within[group.paths[0]], **_named(places[group.paths[0]])}
                entries.append(_moved(entry, folder, number) | told)
        except ItemError as error:
            failures.add(error, len(group.paths))
        shutil.rmtree(folder / f"{number}", ignore_errors=True)
        uses.subtract(group.paths)
        for member in group.paths:
            if not uses[member]:
                member.unlink()
    shutil.rmtree(room)
    if failures.first is not None:
        what = f"{failures.count} of its {len(places)} members cannot be read, the first: {failures.first}"
        raise ItemError(failures.first.code, f"{what} (pack it without them, or unpack it)")
    if not entries:
        raise ItemError("unreadable", "nothing in it is an item")
    return entries


def _take_out(archive: zipfile.ZipFile, members: list[unzip.Member], room: Path) -> dict[Path, PurePosixPath]:
    """Where each member lies now: in a numbered folder for each of the archive's, under its own name."""
    folders = {parent: room / str(n) for n, parent in enumerate(dict.fromkeys(m.path.parent for m in members))}
    for place in folders.values():
        place.mkdir(parents=True)
    places = {folders[member.path.parent] / member.path.name: member.path for member in members}
    for place, member in zip(places, members, strict=True):
        unzip.take_out(archive, member, place)
    return places


def _groups(places: dict[Path, PurePosixPath], failures: _Failures) -> Iterator[_Group]:
    """What belongs together: files with one key, a file and those that lie beside it, or a file alone."""
    keyed: dict[tuple[str, str], _Group] = {}
    alone: list[tuple[_Group, Part]] = []
    for place in places:
        if _is_sidecar(place):
            continue
        try:
            reader, part = formats.part_of(place, None)  # imported by name it would be this reader's own
            if reader.name == name:
                raise ItemError("unsupported", "it is an archive in an archive; unpack it")
        except ItemError as error:
            if error.code != _INDEX:
                failures.add(error)
            continue
        if part is not None and part.key is not None:
            keyed.setdefault((reader.name, part.key), _Group(reader, [], together=True)).paths.append(place)
        else:
            alone.append((_Group(reader, [place]), part or Part()))
    beside = {id(group): _beside(group.paths[0], part, places) for group, part in alone}
    taken = {place for named in beside.values() for place in named}
    yield from keyed.values()
    for group, _ in alone:
        named = beside[id(group)]
        if named or group.paths[0] not in taken:
            yield _Group(group.reader, [*group.paths, *named], together=bool(named))


def _beside(place: Path, part: Part, places: dict[Path, PurePosixPath]) -> list[Path]:
    named = dict.fromkeys(place.parent / one for one in part.beside if "/" not in one)
    return [one for one in named if one in places and one != place]


def _read(group: _Group, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    folder.mkdir()
    path, parts = group.paths[0], tuple(group.paths) if group.together else ()
    group.reader.preflight(path, options.limits)
    return group.reader.read(path, folder, replace(options, parts=parts))


def _moved(entry: dict[str, Any], folder: Path, number: int) -> dict[str, Any]:
    """An entry whose files lie in the folder of the archive, under names that are no other entry's."""

    def move(file: str) -> str:
        old, new = folder / f"{number}" / file, f"{number}-{file}"
        if old.is_file():  # else another entry of the group has moved it
            old.rename(folder / new)
        return new

    def files_of(said: dict[str, Any]) -> dict[str, Any]:
        return {key: move(said[key]) for key in _FILES if isinstance(said.get(key), str)}

    moved = {**entry, **files_of(entry)}
    if "arrays" in entry:
        moved["arrays"] = {key: {**said, **files_of(said)} for key, said in entry["arrays"].items()}
    if "levels" in entry:
        moved["levels"] = [move(file) for file in entry["levels"]]
    return moved


def _within(groups: list[_Group], places: dict[Path, PurePosixPath]) -> dict[Path, str]:
    """What tells the items of a group from those of others: its path, with its extension only where it needs that."""
    from ..listing import plain

    short = [plain(str(places[group.paths[0]])) for group in groups]
    return {
        group.paths[0]: one if short.count(one) == 1 else str(places[group.paths[0]])
        for group, one in zip(groups, short, strict=True)
    }


def _named(path: PurePosixPath) -> dict[str, str]:
    """Subject, session and modality as a BIDS name has them."""
    from ..listing import plain
    from ..sources import IngestOptions, Source

    source = Source("", plain(str(path)), "", 0, 0)
    told = {"subject": source.subject, "session": source.session, "modality": source.modality(IngestOptions())}
    return {key: value for key, value in told.items() if value is not None}


def _is_sidecar(place: Path) -> bool:
    from ..listing import SIDECARS

    return place.name.endswith(SIDECARS)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
