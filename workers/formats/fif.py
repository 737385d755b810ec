"""FIF (.fif, .fif.gz), also split over several files. Samples stay as they are stored; range × cal turns them into units.

Projectors are listed and never applied.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, beside, bids, fiff, recording, samples

name = "fif"

_NCHAN, _RATE, _CH_INFO, _DATE, _COMMENT, _FIRST = 200, 201, 203, 204, 206, 208
_LONG_NAME = 258
_ROLE, _REF_NAME = 115, 118
_PROJ_KIND, _PROJ_ACTIVE, _NAMES, _CUSTOM_REFERENCE, _ONSETS, _ENDS = 3411, 3560, 3507, 3567, 3568, 3569
_WANTED = frozenset([_NCHAN, _RATE, _CH_INFO, _DATE, _COMMENT, _FIRST, _LONG_NAME, _ROLE, _REF_NAME,
                     _PROJ_KIND, _PROJ_ACTIVE, _NAMES, _CUSTOM_REFERENCE, _ONSETS, _ENDS])  # fmt: skip
_CHANNEL = struct.Struct(">iiiffi12fii16s")
_KINDS = {1: "MEG", 2: "EEG", 3: "TRIG", 102: "other", 202: "EOG", 301: "MEGREFMAG", 302: "EMG", 402: "ECG", 502: "other",
          602: "RESP", 802: "SEEG", 803: "DBS", 900: "SYSCLOCK", 902: "ECOG", 1200: "TEMP", 1300: "GSR"}  # fmt: skip
_UNITS = {1: "m", 4: "A", 7: "rad", 101: "Hz", 107: "V", 109: "Ohm", 110: "S", 112: "T", 114: "Cel", 201: "T/m"}
_PROJECTORS = {
    1: "field",
    2: "fixed dipole",
    3: "rotating dipole",
    4: "homogeneous gradient",
    5: "homogeneous field",
    10: "average reference",
}
_MOST_FILES = 200
_SLACK = 2**28
"""What a file may have beside its samples."""


@dataclass(frozen=True)
class _Whole:
    """A recording over all of its files."""

    rate: float
    length: int
    dtype: np.dtype[Any]
    channels: list[recording.Channel]
    files: list[tuple[Path, fiff.Found]]
    skips: list[tuple[int, int]]
    """(first sample, samples) that were not recorded; zeros stand there."""

    @property
    def first(self) -> fiff.Found:
        return self.files[0][1]


def sniff(head: bytes) -> bool:
    """Whether the bytes begin with the tag of a file's id."""
    return head[:12] == struct.pack(">iii", 100, 31, 20)


def part_of(path: Path) -> Part:
    """The files that go on where this one ends, and BIDS' sidecars. One that goes on itself names none. Raises ItemError."""
    found = fiff.scan(path, _WANTED, Limits().item_bytes + _SLACK)
    if _reference_to(found, 1) is not None:
        return Part()
    said, following = _reference_to(found, 2), []
    if said is not None:
        following = [beside.plain(said)] if said else []
        for number in range(1, _MOST_FILES):
            there = [name for name in _continued(path, number) if beside.there(path, name)]
            if not there:
                break
            following += there
    return Part(beside=tuple(dict.fromkeys([*following, *bids.names(path)])))


def preflight(path: Path, limits: Limits) -> None:
    """Hold what the header claims to the limit. Raises ItemError."""
    whole = _whole(path, (), limits)
    samples.check_size(len(whole.channels), whole.length, whole.dtype.itemsize, limits)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """One (channel, time) array. Raises ItemError."""
    whole = _whole(path, options.parts, options.limits)
    count = len(whole.channels)
    samples.check_size(count, whole.length, whole.dtype.itemsize, options.limits)
    with samples.Samples(folder / "signal.npy", count, whole.length, whole.dtype) as out:
        _copy(whole, out, options.limits)
    attributes = {
        "format": "fif",
        "rates": [whole.rate],
        "files": len(whole.files),
        "projectors": _projectors(whole.first),
    }
    if whole.dtype.kind == "f":
        attributes["non_finite"] = out.non_finite
    found = [
        *_annotations(whole),
        *(((at / whole.rate), (size / whole.rate), "BAD_ACQ_SKIP") for at, size in whole.skips),
    ]
    said = recording.said(bids.sidecar(path, options.parts), whole.channels, found, attributes)
    return [recording.entry(said, "signal.npy", whole.rate, whole.channels)]


def _continued(path: Path, number: int) -> list[str]:
    """Names that the file with this number may have: mne's and Neuromag's, and BIDS'."""
    stem, _, ending = path.name.partition(".")
    names = [f"{stem}-{number}.{ending}"]
    if re.search(r"_split-0*1_", stem):
        names.append(re.sub(r"_split-(0*)1_", lambda m: f"_split-{number + 1:0{len(m[1]) + 1}d}_", path.name))
    return names


def _whole(path: Path, parts: tuple[Path, ...], limits: Limits) -> _Whole:
    """All files of a recording, held to each other. Raises ItemError."""
    files = [(path, fiff.scan(path, _WANTED, limits.item_bytes + _SLACK))]
    if _reference_to(files[0][1], 1) is not None:
        raise ItemError(
            "unsupported", "it goes on where another file ends; ingest it beside the first file, which is read with it"
        )
    while (following := _following(path, files, parts)) is not None:
        if len(files) > _MOST_FILES:
            raise ItemError("too_large", f"it has more than {_MOST_FILES} files")
        files.append((following, fiff.scan(following, _WANTED, limits.item_bytes + _SLACK)))
    first = files[0][1]
    if not first.buffers:
        what = "an average or epochs" if first.blocks & {fiff.EVOKED, fiff.EPOCHS} else "no raw data"
        raise ItemError("unsupported", f"it holds {what}; save the raw recording as FIF")
    described = _channels(first)
    rate = round(_number(first, _RATE), 6)
    if not (math.isfinite(rate) and rate > 0):
        raise ItemError("header_lies", "its sampling rate is not a positive number")
    if any(_facts(found) != _facts(first) for _, found in files[1:]):
        raise ItemError("header_lies", "its files have other channels or another sampling rate than the first one")
    length, skips = 0, []
    types = {type_ for _, found in files for _, type_, _ in found.buffers if type_}
    if len({np.dtype(fiff.NUMBERS.get(type_, "V1")) for type_ in types}) != 1 or not types <= set(fiff.NUMBERS):
        raise ItemError("unsupported", "its samples are complex, packed, or of several types; save it anew as single")
    dtype = np.dtype(fiff.NUMBERS[next(iter(types))])
    width = dtype.itemsize * len(described)
    for _, found in files:
        pending, started = 0, length > 0
        for _, type_, size in found.buffers:
            if not type_:
                pending = size
                continue
            if size % width or not size:
                raise ItemError("header_lies", "a buffer of samples is not a whole number of samples")
            if pending and started:  # a skip at the beginning only moves the first sample
                if not 0 < pending < 2**31:
                    raise ItemError("header_lies", "a gap in its samples has an impossible length")
                skips.append((length, pending * (size // width)))
                length += skips[-1][1]
            pending, started = 0, True
            length += size // width
    return _Whole(rate, length, dtype, described, files, skips)


def _following(path: Path, files: list[tuple[Path, fiff.Found]], parts: tuple[Path, ...]) -> Path | None:
    """The file that goes on where the last one ends. Raises ItemError where it is said, but not there."""
    said = _reference_to(files[-1][1], 2)
    if said is None:
        return None
    names = [*([beside.plain(said)] if said else []), *_continued(path, len(files))]
    there = [name for name in names if beside.there(path, name, parts) and path.parent / name not in dict(files)]
    if not there:
        raise ItemError("part_missing", f"file {len(files) + 1} of it is not beside it; put all into one folder")
    return path.parent / there[0]


def _reference_to(found: fiff.Found, role: int) -> str | None:
    """The name of the file before (1) or after (2) this one; empty where only its number is said, None where none is."""
    said, current = None, 0
    for around, kind, _, content in found.tags:
        if around[-1:] != (fiff.REF,):
            continue
        if kind == _ROLE:
            current = fiff.integer(content)
            said = "" if current == role else said
        elif kind == _REF_NAME and current == role:
            return fiff.text(content)
    return said


def _number(found: fiff.Found, kind: int) -> float:
    tag = found.one(kind, within=fiff.MEAS_INFO)
    values = np.empty(0) if tag is None else fiff.numbers(tag)
    if len(values) != 1:
        raise ItemError("header_lies", "it does not say its channels or its sampling rate")
    return float(values[0])


def _facts(found: fiff.Found) -> tuple[Any, ...]:
    infos = [c[:64] + c[84:] for a, k, _, c in found.tags if k == _CH_INFO and a[-1:] == (fiff.MEAS_INFO,)]
    return _number(found, _NCHAN), _number(found, _RATE), infos


def _channels(found: fiff.Found) -> list[recording.Channel]:
    """Channels by their place in the data. Raises ItemError."""
    count = _number(found, _NCHAN)
    infos = [c for around, kind, _, c in found.tags if kind == _CH_INFO and around[-1:] == (fiff.MEAS_INFO,)]
    if len(infos) != count:
        raise ItemError("header_lies", "it describes another number of channels than it says")
    recording.check_count(len(infos))
    long = [
        fiff.text(c) for around, kind, _, c in found.tags if kind == _LONG_NAME and around[-1:] == (fiff.CH_INFO_BLOCK,)
    ]
    rows = []
    for place, content in enumerate(infos):
        if len(content) != _CHANNEL.size:
            raise ItemError("header_lies", "a channel of it is not described as FIF wants it")
        scan, _, kind, scale, cal, _, *_, unit, multiple, label = _CHANNEL.unpack(content)
        rows.append((scan, place, kind, scale, cal, unit, multiple, fiff.text(label)))
    rows.sort()
    bad = _bad(found)
    if bad is not None and len(long) == count:
        names = dict(zip((row[7] for row in rows), long, strict=True))
        bad = {names.get(label, label) for label in bad}
    described = []
    for number, (_, _, kind, scale, cal, unit, multiple, short) in enumerate(rows, 1):
        label = long[number - 1] if len(long) == count else short
        what = _KINDS.get(kind, "other")
        if what == "MEG":
            what = "MEGMAG" if unit == 112 else "MEGGRADPLANAR"
        said, gain = _UNITS.get(unit), float(scale) * float(cal)
        if -24 <= multiple <= 24:
            gain *= 10.0**multiple
        if what == "TRIG":
            said = None
        elif said == "V":
            said, gain = "uV", gain * 1e6
        described.append(
            recording.Channel(label, number, said, gain, kind=what, bad=None if bad is None else label in bad)
        )
    return described


def _bad(found: fiff.Found) -> set[str] | None:
    """Names of bad channels; empty where none is listed, which mne does not write down."""
    tag = found.one(_NAMES, within=fiff.BAD_CHANNELS)
    return set() if tag is None else {name.replace("{COLON}", ":") for name in fiff.text(tag[1]).split(":")}


def _projectors(found: fiff.Found) -> list[dict[str, Any]]:
    """Kind of each projector, and whether it was applied to the samples before they were stored."""
    listed: list[dict[str, Any]] = []
    for around, kind, _, content in found.tags:
        if around[-1:] == (fiff.PROJ_ITEM,) and kind == _PROJ_KIND:
            listed.append({"kind": _PROJECTORS.get(fiff.integer(content), "other"), "applied": False})
        elif around[-1:] == (fiff.PROJ_ITEM,) and kind == _PROJ_ACTIVE and listed:
            listed[-1]["applied"] = fiff.integer(content) != 0
    return listed[:64]


def _copy(whole: _Whole, out: samples.Samples, limits: Limits) -> None:
    at, skips = 0, dict(whole.skips)
    for path, found in whole.files:
        for block in fiff.samples(path, found, len(whole.channels), limits.item_bytes + _SLACK, samples.BLOCK_BYTES):
            at += skips.pop(at, 0)
            out.put_block(at, block)
            at += len(block)
    if at != whole.length:
        raise ItemError("truncated", "it became shorter while it was read")


def _annotations(whole: _Whole) -> Iterator[tuple[float, float, str]]:
    """Events of mne's annotations; onsets count from the first sample."""
    tags = {
        kind: (type_, content)
        for around, kind, type_, content in whole.first.tags
        if around[-1:] == (fiff.ANNOTATIONS,)
    }
    if not {_ONSETS, _ENDS, _COMMENT} <= set(tags):
        return
    onsets, ends = fiff.numbers(tags[_ONSETS]).astype(float), fiff.numbers(tags[_ENDS]).astype(float)
    texts = [text.replace("{COLON}", ":") for text in fiff.text(tags[_COMMENT][1]).split(":")]
    if not len(onsets) == len(ends) == len(texts):
        raise ItemError("header_lies", "its annotations have other numbers of onsets, ends and texts")
    shift = _shift(whole, tags.get(_DATE))
    for onset, end, text in zip(onsets, ends, texts, strict=True):
        yield onset + shift, end - onset, text


def _shift(whole: _Whole, origin: tuple[int, bytes] | None) -> float:
    """What is added to an onset so that it counts from the first sample."""
    date = _seconds(whole.first.one(_DATE, within=fiff.MEAS_INFO))
    started = _seconds(origin)
    first = next(
        (fiff.integer(c) for around, kind, _, c in whole.first.tags if kind == _FIRST and around[-1:][0] in fiff.RAW), 0
    )
    if date is None:
        return -first / whole.rate
    return 0.0 if started is None else started - date - first / whole.rate


def _seconds(tag: tuple[int, bytes] | None) -> float | None:
    """Seconds since 1970 of a date, which is one number, or seconds and microseconds."""
    if tag is None:
        return None
    values = [float(number) for number in fiff.numbers(tag)]
    if not values or not math.isfinite(sum(values)) or values[:2] == [0.0, 2.0**31 - 1]:
        return None
    return values[0] + (values[1] * 1e-6 if len(values) > 1 else 0.0)
