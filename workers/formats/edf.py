"""EDF, EDF+ and BDF. Samples stay the integers that were digitised; gain and offset turn them into units.

The header is read by edfio; the records are read here, block by block, so that a long recording needs little memory.
Annotations, and triggers of a BioSemi status channel, become events.
"""

import contextlib
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, bids, edf_events, recording, samples, source
from .channels import unit

name = "edf"

_MAGIC = {b"0       ": "edf", b"\xffBIOSEMI": "bdf"}
_WIDTH = {"edf": 2, "bdf": 3}
_BLOCK = 2**23
"""Samples decoded at once."""
_ANNOTATIONS = {"EDF Annotations", "BDF Annotations"}


@dataclass(frozen=True)
class _Header:
    """What the first 256 bytes and the sample counts say, checked against the file."""

    variant: str  # edf, bdf
    header_bytes: int
    records: int
    duration: float  # seconds of one record
    samples: list[int]  # of each signal in one record
    discontinuous: bool


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as EDF or BDF do."""
    return head[:8] in _MAGIC


def preflight(path: Path, limits: Limits) -> None:
    """Hold the record count and the sample counts to the file's size. Raises ItemError."""
    if source.is_gzip(path):
        raise ItemError("unsupported", "EDF is read without gzip; gunzip it first")
    size = path.stat().st_size
    header = _header(path)
    expected = header.header_bytes + header.records * sum(header.samples) * _WIDTH[header.variant]
    if size != expected:
        code = "truncated" if size < expected else "header_lies"
        raise ItemError(code, f"it has {size} bytes, its header claims {expected}; copy it again")
    decoded = header.records * sum(header.samples) * (2 if header.variant == "edf" else 4)
    if decoded > limits.item_bytes:
        raise ItemError(
            "too_large", f"it decodes to {decoded} bytes, more than {limits.item_bytes}; raise max_item_bytes"
        )


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """One (channel, time) array for each sampling rate, the rate with the most channels first."""
    header = _header(path)
    signals, annotations = _signals(path, header)
    if not signals:
        raise ItemError("unsupported", "it holds annotations only, no signal")
    groups: dict[int, list[int]] = {}
    for index in signals:
        groups.setdefault(header.samples[index], []).append(index)
    order = sorted(groups, key=lambda count: (-len(groups[count]), -count))
    rates = {count: count / header.duration for count in order}
    files = {count: f"signal-{count}.npy" for count in order}
    events = edf_events.Events(header.duration, discontinuous=header.discontinuous)
    status = _status(header, signals)
    _copy(path, header, {folder / files[count]: groups[count] for count in order}, annotations, status, events)
    attributes = {
        "format": header.variant,
        "rates": sorted(rates.values(), reverse=True),
        "annotation_signals": len(annotations),
    }
    sidecar = bids.sidecar(path, options.parts)
    said = recording.said(sidecar, list(signals.values()), events.found(), attributes, items=len(order))
    entries = []
    for count in order:
        suffix = "" if count == order[0] else f"#{rates[count]:g}Hz"
        channels = [signals[index] for index in groups[count]]
        entries.append(recording.entry(said, files[count], rates[count], channels, suffix))
    return entries


def part_of(path: Path) -> Part:
    """BIDS' sidecars, where they are there."""
    return Part(beside=bids.names(path))


def _header(path: Path) -> _Header:
    """The counts of a header. Raises ItemError where they cannot be, or the file is not one stretch of time."""
    with path.open("rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256 or not sniff(fixed):
            raise ItemError("truncated" if sniff(fixed) else "unreadable", "it does not begin with a whole EDF header")
        header_bytes, records, count = (_integer(fixed[a:b]) for a, b in ((184, 192), (236, 244), (252, 256)))
        duration = _real(fixed[244:252])
        if records == -1:
            raise ItemError("truncated", "its number of records was never written: the recording was not closed")
        if count < 1 or records < 1 or header_bytes != 256 * (count + 1):
            raise ItemError(
                "header_lies", f"{header_bytes} header bytes, {count} signals and {records} records cannot be"
            )
        file.seek(256 + 216 * count)
        raw = file.read(8 * count)
        if len(raw) < 8 * count:
            raise ItemError("truncated", "it ends inside its header; copy it again")
    samples = [_integer(raw[8 * i : 8 * i + 8]) for i in range(count)]
    if min(samples) < 1 or duration < 0 or not math.isfinite(duration):
        raise ItemError("header_lies", "its records have no samples or no duration")
    return _Header(_MAGIC[fixed[:8]], header_bytes, records, duration, samples, fixed[192:197] in (b"EDF+D", b"BDF+D"))


def _signals(path: Path, header: _Header) -> tuple[dict[int, recording.Channel], list[int]]:
    """Signals that are not annotations, by their place in a record, and the places of those that are."""
    import edfio

    with path.open("rb") as file:
        raw = file.read(header.header_bytes)
    labels = [raw[at : at + 16].decode("latin-1").strip() for at in range(256, 256 + 16 * len(header.samples), 16)]
    if header.duration == 0 and not set(labels) <= _ANNOTATIONS:
        raise ItemError("header_lies", "its records have samples but no duration")
    reader = edfio.read_edf if header.variant == "edf" else edfio.read_bdf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the records, which are read below
        try:
            parsed: Any = reader(io.BytesIO(raw), header_encoding="latin-1")
        except ValueError as error:
            raise ItemError("header_lies", "its header holds what no EDF header may") from error
    all_signals = list(enumerate(parsed._signals))  # noqa: SLF001 - `signals` leaves out annotations, losing places
    signals = {at: _channel(signal, at) for at, signal in all_signals if signal.label not in _ANNOTATIONS}
    return signals, [at for at, _ in all_signals if at not in signals]


def _channel(signal: Any, index: int) -> recording.Channel:
    try:
        low, high = float(signal.physical_min), float(signal.physical_max)
        first, last = int(signal.digital_min), int(signal.digital_max)
    except ValueError as error:
        raise ItemError("header_lies", f"the ranges of signal {index + 1} are not numbers") from error
    if first == last or low == high or not math.isfinite(low) or not math.isfinite(high):
        raise ItemError("header_lies", f"signal {index + 1} has an empty physical or digital range")
    gain = (high - low) / (last - first)
    label = str(signal.label).strip()
    return recording.Channel(label, index + 1, unit(str(signal.physical_dimension)), gain, low - gain * first)


def _status(header: _Header, signals: dict[int, recording.Channel]) -> int | None:
    """The place of the channel of which BioSemi uses the bits as triggers."""
    if header.variant == "edf":
        return None
    return next((at for at, channel in signals.items() if channel.label.lower() == "status"), None)


def _copy(
    path: Path,
    header: _Header,
    files: dict[Path, list[int]],
    annotations: list[int],
    status: int | None,
    events: edf_events.Events,
) -> None:
    """Write the samples of the signals of each file, a block of records at a time, at their places."""
    starts = np.cumsum([0, *header.samples])
    total, width = int(starts[-1]), _WIDTH[header.variant]
    dtype = np.dtype("<i2" if header.variant == "edf" else "<i4")
    at_once = max(1, _BLOCK // total)
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        outs = [
            (
                stack.enter_context(
                    samples.Samples(out, len(places), header.records * header.samples[places[0]], dtype)
                ),
                places,
            )
            for out, places in files.items()
        ]
        file.seek(header.header_bytes)
        for first in range(0, header.records, at_once):
            count = min(at_once, header.records - first)
            raw = file.read(count * total * width)
            if len(raw) < count * total * width:
                raise ItemError("truncated", "it became shorter while it was read")
            block = _integers(raw, width).reshape(count, total)
            for out, places in outs:
                for row, index in enumerate(places):
                    out.put(row, first * header.samples[index], block[:, starts[index] : starts[index + 1]])
            records = np.frombuffer(raw, np.uint8).reshape(count, total * width)
            events.add(first, [records[:, starts[at] * width : starts[at + 1] * width] for at in annotations])
            if status is not None:
                rate = header.samples[status] / header.duration
                events.add_status(block[:, starts[status] : starts[status + 1]], rate)


def _integers(raw: bytes, width: int) -> np.ndarray:
    if width == 2:
        return np.frombuffer(raw, "<i2")
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    return wide.view("<i4").ravel() >> 8  # the shift carries the sign of the 24th bit


def _integer(raw: bytes) -> int:
    try:
        return int(raw.decode("ascii"))
    except ValueError as error:
        raise ItemError("header_lies", "a number in its header is not a number") from error


def _real(raw: bytes) -> float:
    try:
        return float(raw.decode("ascii").strip().rstrip("\0"))
    except ValueError as error:
        raise ItemError("header_lies", "a number in its header is not a number") from error
