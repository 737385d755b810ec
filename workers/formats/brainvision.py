"""BrainVision: a header (.vhdr) that names its data (.eeg, .dat) and its markers (.vmrk). Samples stay as they were digitised."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, beside, bids, channels, recording, samples

name = "brainvision"

_MAGIC = re.compile(rb"(?:\xef\xbb\xbf)?Brain ?Vision (?:V-Amp )?Data Exchange Header File", re.IGNORECASE)
_DTYPES = {"INT_16": "<i2", "INT_32": "<i4", "IEEE_FLOAT_32": "<f4"}
_HEADER_BYTES = 2**22
_MARKER_BYTES = 2**23
_MOST_SAMPLES = 2**40


@dataclass(frozen=True)
class _Header:
    """What a .vhdr says, held to itself and to its data."""

    rate: float
    samples: int
    dtype: np.dtype[Any]
    vectorised: bool
    channels: list[recording.Channel]
    data: Path
    markers: Path | None


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a .vhdr does; data and markers say nothing of themselves."""
    return _MAGIC.match(head) is not None


def part_of(path: Path) -> Part:
    """Data and markers as the header names them, and BIDS' sidecars where they are there. Raises ItemError."""
    sections = _sections(path)
    named = [_named(path, sections, key) for key in ("datafile", "markerfile")]
    return Part(beside=tuple(dict.fromkeys([*filter(None, named), *bids.names(path)])))


def preflight(path: Path, limits: Limits) -> None:
    """Hold the header to the size of the data. Raises ItemError."""
    header = _header(path, ())
    samples.check_size(len(header.channels), header.samples, header.dtype.itemsize, limits)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """One (channel, time) array. Raises ItemError."""
    header = _header(path, options.parts)
    samples.check_size(len(header.channels), header.samples, header.dtype.itemsize, options.limits)
    with samples.Samples(folder / "signal.npy", len(header.channels), header.samples, header.dtype) as out:
        _copy(header, out)
    attributes: dict[str, Any] = {"format": "brainvision", "rates": [header.rate]}
    if header.dtype.kind == "f":
        attributes["non_finite"] = out.non_finite
    found = [] if header.markers is None else _markers(header.markers, header.rate)
    said = recording.said(bids.sidecar(path, options.parts), header.channels, found, attributes)
    return [recording.entry(said, "signal.npy", header.rate, header.channels)]


def _sections(path: Path) -> dict[str, dict[str, str]]:
    """Keys in lower case by section in lower case, up to the comment. Raises ItemError."""
    with path.open("rb") as file:
        raw = file.read(_HEADER_BYTES + 1)
    if not sniff(raw):
        raise ItemError("unreadable", "it does not begin as a BrainVision header; a .vhdr is neither gzip nor empty")
    if len(raw) > _HEADER_BYTES:
        raise ItemError("too_large", f"its header has more than {_HEADER_BYTES} bytes")
    return _parsed(raw)


def _parsed(raw: bytes) -> dict[str, dict[str, str]]:
    stated = re.search(rb"^\s*codepage\s*=\s*utf-?8", raw, re.IGNORECASE | re.MULTILINE)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("utf-8-sig" if stated else "cp1252", "replace")
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            if line.lower() == "[comment]":
                break
            section = found.setdefault(line[1:-1].strip().lower(), {})
        elif "=" in line and not line.startswith(";"):
            key, _, value = line.partition("=")
            section[key.strip().lower()] = value.strip()
    return found


def _named(path: Path, sections: dict[str, dict[str, str]], key: str) -> str | None:
    given = sections.get("common infos", {}).get(key)
    return beside.plain(given.replace("$b", path.name.rpartition(".")[0])) if given else None


def _header(path: Path, parts: tuple[Path, ...]) -> _Header:
    """The header, checked. Raises ItemError."""
    sections = _sections(path)
    common = sections.get("common infos", {})
    for key, wanted in (("dataformat", "BINARY"), ("datatype", "TIMEDOMAIN")):
        if common.get(key, wanted).upper() != wanted:
            raise ItemError("unsupported", f"its data are not {wanted}; export them as BINARY, TIMEDOMAIN")
    orientation = common.get("dataorientation", "").upper()
    binary = sections.get("binary infos", {})
    dtype = _DTYPES.get(binary.get("binaryformat", "").upper())
    if orientation not in ("MULTIPLEXED", "VECTORIZED") or dtype is None:
        raise ItemError("unsupported", f"it is read MULTIPLEXED or VECTORIZED, in {', '.join(_DTYPES)}; export it so")
    if binary.get("usebigendianorder", "NO").upper() == "YES":
        dtype = dtype.replace("<", ">")
    if any(segments not in ("", "NOTSEGMENTED") for segments in [common.get("segmentationtype", "").upper()]):
        raise ItemError("unsupported", "it is cut into segments; export the continuous recording")
    count, interval = _integer(common.get("numberofchannels")), _real(common.get("samplinginterval"))
    recording.check_count(count)
    if not 1e-3 <= interval <= 1e12:
        raise ItemError("header_lies", "its sampling interval is not a positive number of microseconds")
    given, markers = _named(path, sections, "datafile"), _named(path, sections, "markerfile")
    data = beside.find(path, given or "", parts, "data file")
    length, left = divmod(data.stat().st_size, count * np.dtype(dtype).itemsize)
    stated = _integer(common["datapoints"]) if common.get("datapoints") else length
    if left or length != stated or not 0 < length <= _MOST_SAMPLES:
        code = "truncated" if left or length < stated or not length else "header_lies"
        raise ItemError(code, "its data file has another size than its header claims; copy both again")
    rate = round(1e6 / interval, 6)
    described = _channels(sections.get("channel infos", {}), count)
    place = None if markers is None else beside.find(path, markers, parts, "marker file")
    return _Header(rate, length, np.dtype(dtype), orientation == "VECTORIZED", described, data, place)


def _channels(infos: dict[str, str], count: int) -> list[recording.Channel]:
    found = []
    for number in range(1, count + 1):
        if f"ch{number}" not in infos:
            raise ItemError("header_lies", f"it describes fewer than its {count} channels")
        label, reference, resolution, unit = [*infos[f"ch{number}"].split(","), "", "", ""][:4]
        gain = _real(resolution) if resolution.strip() else 1.0
        kept = channels.unit(unit) if unit.strip() else "uV"
        found.append(
            recording.Channel(label.replace("\\1", ","), number, kept, gain, reference=channels.reference(reference))
        )
    return found


def _copy(header: _Header, out: samples.Samples) -> None:
    """Samples of the data file, a block at a time. Raises ItemError where it became shorter."""
    count, width = len(header.channels), header.dtype.itemsize
    at_once = max(1, samples.BLOCK_BYTES // width // (1 if header.vectorised else count))
    with header.data.open("rb") as file:
        for row in range(count if header.vectorised else 1):
            for first in range(0, header.samples, at_once):
                size = min(at_once, header.samples - first) * (1 if header.vectorised else count)
                raw = file.read(size * width)
                if len(raw) < size * width:
                    raise ItemError("truncated", "its data file became shorter while it was read")
                block = np.frombuffer(raw, header.dtype)
                if header.vectorised:
                    out.put(row, first, block)
                else:
                    out.put_block(first, block.reshape(-1, count))


def _markers(path: Path, rate: float) -> Iterator[tuple[float, float, str]]:
    """Events of a .vmrk: its type and description in one text, as mne joins them."""
    if path.stat().st_size > _MARKER_BYTES:
        raise ItemError("too_large", f"its marker file has more than {_MARKER_BYTES} bytes")
    raw = path.read_bytes()
    if not re.match(rb"(?:\xef\xbb\xbf)?Brain ?Vision (?:V-Amp )?Data Exchange Marker File", raw, re.IGNORECASE):
        raise ItemError("unreadable", "its marker file does not begin as one; export the recording again")
    for key, value in _parsed(raw).get("marker infos", {}).items():
        if re.fullmatch(r"mk\d+", key):
            kind, text, position, length = [*value.split(","), "", "", ""][:4]
            onset, size = _integer(position), _integer(length or "0")
            yield (onset - 1) / rate, size / rate, f"{kind.strip()}/{text.strip()}"


def _integer(text: str | None) -> int:
    try:
        number = int(text or "")
    except ValueError as error:
        raise ItemError("header_lies", "a number in its header or its markers is not a number") from error
    if abs(number) > _MOST_SAMPLES:
        raise ItemError("header_lies", "a number in its header or its markers cannot be")
    return number


def _real(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise ItemError("header_lies", "a number in its header is not a number") from error
