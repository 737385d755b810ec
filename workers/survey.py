"""From files to what is read together: the slices of a series, a recording and what lies beside it, a file alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from diastole.lake.errors import ItemError
from diastole.lake.ids import keyed

from .bucket import fetch, is_remote, stat_remote
from .compare import Comparison
from .decode import Decoder, Told
from .formats import Part
from .listing import plain, stat_of
from .sources import Source

INDEX = "index_file"
"""Code with which a reader refuses a file that only lists others (DICOMDIR): no item, and no failure."""
AT_A_TIME = 64
"""Files that a decoder is asked about at once."""
HEAD = 2**16
"""Bytes that are fetched of a file far away, to find out whether all of it has to be."""
Ask = Callable[[Sequence[Sequence[Source]]], Iterable[list[Told]]]
"""Tells what the files of each batch are."""


@dataclass
class Together:
    """Files that are read together, the first first."""

    sources: list[Source]
    part: Part = field(default_factory=Part)
    format: str | None = None
    part_of: str | None = None
    """As in lake.items.SOURCES."""
    failure: ItemError | None = None
    """Why they are not to be read."""
    before: frozenset[str] = frozenset()
    """Keys of files that were parts of it, and are not there any more."""
    forgets: bool = False
    """Whether it was a part of a source that is no more, since another part is not there: those items are not its own."""


@dataclass
class Survey:
    """Finds out what belongs together among files that are new, changed or missing."""

    compared: Comparison
    missing: Iterable[int] = ()
    """Rows of known files that are not there any more."""
    orphans: list[int] = field(default_factory=list)
    """Rows of sidecars of sources that are no more: nobody looks at them until a source names them again."""
    _told: dict[str, Told] = field(default_factory=dict)
    _sources: dict[str, Source] = field(default_factory=dict)

    def run(self, ask: Ask) -> list[Together]:
        """All that is to be read, in the order of its first files."""
        changed = self.compared.changed
        self._sources = {source.path: source for source in changed.values()}
        self._ask([s for s in changed.values() if not s.refused and not s.sidecar], ask)
        gone = self._gone_parts()
        affected = {part_of for key, row in self.compared.at.items() if (part_of := self._part_of(row))} | gone.keys()
        groups, beside = self._groups(), self._beside()
        unread = [part_of for part_of in sorted(affected) if part_of not in groups and part_of not in beside]
        members = {s.path: s for part_of in unread for s in self._members(part_of) if s.path not in self._told}
        if members:
            self._sources |= {path: source for path, source in members.items() if path not in self._sources}
            self._ask([s for s in members.values() if not s.sidecar], ask)
            groups, beside = self._groups(), self._beside()
        return self._together(groups, beside, gone)

    def _together(
        self, groups: dict[str, list[str]], beside: dict[str, list[Source]], gone: dict[str, set[str]]
    ) -> list[Together]:
        found: list[Together] = []
        taken: set[str] = set()
        for part_of, paths in groups.items():
            whole = {path: self._sources[path] for path in paths}
            whole |= {s.path: s for s in self._members(part_of) if s.path not in self._told}
            sources = [whole[path] for path in sorted(whole)]
            found.append(self._whole(sources, paths[0], part_of, gone.get(part_of, set())))
        for part_of, sources in beside.items():
            left = gone.get(part_of, set()) | self._left(part_of, sources)
            found.append(self._whole(sources, sources[0].path, part_of, left))
        for together in found:
            taken |= {source.path for source in together.sources}
        broken = {self.compared.paths[row]: row for part_of in gone for row in self.compared.members(part_of)}
        for path, source in self._sources.items():
            if path not in taken and not source.sidecar:
                found.append(replace(self._alone(source), forgets=path in broken))
        self.orphans = [row for path, row in broken.items() if path not in taken and self._sources[path].sidecar]
        order = {path: place for place, path in enumerate(self._sources)}
        return sorted(found, key=lambda together: min(order.get(s.path, len(order)) for s in together.sources))

    def _whole(self, sources: list[Source], told: str, part_of: str, before: set[str]) -> Together:
        format_, part = self._part(told) or (None, Part())
        return Together(sources, part, format_, part_of, before=frozenset(before))

    def _alone(self, source: Source) -> Together:
        told = self._told.get(source.path)
        if source.refused:
            return Together([source], failure=ItemError("unreadable", source.refused))
        if isinstance(told, ItemError):
            return Together([source], failure=told)
        return Together([source], format=None if told is None else told[0])

    def _groups(self) -> dict[str, list[str]]:
        """part_of → the files that say by a key that they belong together, in their order."""
        found: dict[str, list[str]] = {}
        for path in self._sources:
            told = self._part(path)
            if told is not None and told[1].key is not None:
                found.setdefault(self._opaque("key", told[1].key), []).append(path)
        return found

    def _beside(self) -> dict[str, list[Source]]:
        """part_of → a file and those that it names, where they are there."""
        found: dict[str, list[Source]] = {}
        for path, source in list(self._sources.items()):
            told = self._part(path)
            if told is not None and told[1].key is None and told[1].beside:
                named = dict.fromkeys(
                    name for name in told[1].beside if "/" not in name and name not in ("", ".", "..")
                )
                others = [self._neighbour(source, name) for name in named]
                parts = [source, *(other for other in others if other is not None and other.path != path)]
                found[self._opaque("beside", path)] = parts
        return found

    def _neighbour(self, source: Source, name: str) -> Source | None:
        folder = source.path.rpartition("/")[0]
        path = f"{folder}/{name}"
        if path in self._sources:
            return self._sources[path]
        size, modified = stat_remote(source.root, path) if is_remote(path) else _stat_beside(Path(folder), path)
        if size < 0:
            return None
        relative = plain(path[len(source.root) :].lstrip("/"))
        return Source(path, relative, source.root, size, modified, said=source.said, sidecar=True)

    def _left(self, part_of: str, sources: Sequence[Source]) -> set[str]:
        """Keys of files that were named beside a source, and are not any more, but are still there."""
        there = {source.path for source in sources}
        keys = self.compared.known["source_key"]
        rows = [row for row in self.compared.members(part_of) if self.compared.paths[row] not in there]
        return {keys[row].as_py() for row in rows if self.compared.paths[row] not in self._sources}

    def _gone_parts(self) -> dict[str, set[str]]:
        """part_of → keys of files that are not there any more, where others of it are."""
        found: dict[str, set[str]] = {}
        for row in self.missing:
            part_of = self._part_of(row)
            if part_of and self.compared.members(part_of):
                found.setdefault(part_of, set()).add(self.compared.known["source_key"][row].as_py())
        return found

    def _part_of(self, row: int) -> str | None:
        value: str | None = self.compared.known["part_of"][row].as_py()
        return value

    def _members(self, part_of: str) -> list[Source]:
        rows = self.compared.members(part_of)
        sources = [self.compared.source(row) for row in rows]
        return [self._sources.get(source.path, source) for source in sources]

    def _part(self, path: str) -> tuple[str, Part] | None:
        """What was told of a file, None where there is nothing."""
        told = self._told.get(path)
        return (told[0], told[1]) if isinstance(told, tuple) and told[1] is not None else None

    def _opaque(self, kind: str, text: str) -> str:
        return keyed(self.compared.lake.key, "part_of", kind, text)

    def _ask(self, sources: list[Source], ask: Ask) -> None:
        some = [sources[at : at + AT_A_TIME] for at in range(0, len(sources), AT_A_TIME)]
        for asked, answers in zip(some, ask(some), strict=True):
            self._told |= {source.path: answer for source, answer in zip(asked, answers, strict=True)}


def _stat_beside(folder: Path, path: str) -> tuple[int, int]:
    """As listing.stat_of, (-1, 0) also for what is no file, or a link that leads elsewhere."""
    real = Path(path)
    elsewhere = real.is_symlink() and real.resolve().parent != folder.resolve()
    return stat_of(path) if real.is_file() and not elsewhere else (-1, 0)


def ask_about(sources: Sequence[Source], format_: str | None, decoder: Decoder) -> list[Told]:
    """What files are, asked where they lie; of those far away, the first bytes mostly tell."""
    if not any(is_remote(source.path) for source in sources):
        return decoder.survey([Path(source.path) for source in sources], format_)
    with TemporaryDirectory(prefix="diastole-survey-") as folder:
        return [_far(source, Path(folder) / source.path.rpartition("/")[2], decoder, format_) for source in sources]


def _far(source: Source, here: Path, decoder: Decoder, format_: str | None) -> Told:
    try:
        fetch(source.root, source.path, here, most=HEAD)
        [told] = decoder.survey([here], format_, heads=source.size > HEAD)
        if isinstance(told, tuple) and told[1] is None:
            fetch(source.root, source.path, here)
            [told] = decoder.survey([here], format_)
        return told
    except ItemError as error:
        return error
