"""EDF, EDF+ and BDF. Samples stay the integers that were digitised; gain and offset turn them into units.

The header is read by edfio; the records are read here, block by block, so that a long recording needs little memory.
"""

import io
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source

name = "edf"

_MAGIC = {b"0       ": "edf", b"\xffBIOSEMI": "bdf"}
_WIDTH = {"edf": 2, "bdf": 3}
_BLOCK = 2**23
"""Samples decoded at once."""
_MICRO = ("µ", "μ", "Âµ", "Î¼")
"""Two code points look like micro; the last two are their UTF-8 read as Latin-1."""

_ANNOTATIONS = {"EDF Annotations", "BDF Annotations"}
_TYPES = {"EEG": "EEG", "EOG": "EOG", "EMG": "EMG", "ECG": "ECG", "EKG": "ECG"}
_ELECTRODE = re.compile(r"(?:(?:FP|AF|F|FT|FC|T|TP|C|CP|P|PO|O|I)(?:Z|\d{1,2}H?)|N[Z]|[AM][12])", re.IGNORECASE)
_REFERENCE = re.compile(r"(?:REF|LE|AVG|AV|AR|[AM]1[AM]2)", re.IGNORECASE)


@dataclass(frozen=True)
class _Header:
    """What the first 256 bytes and the sample counts say, checked against the file."""

    variant: str  # edf, bdf
    header_bytes: int
    records: int
    duration: float  # seconds of one record
    samples: list[int]  # of each signal in one record


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


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:  # noqa: ARG001 - the same for all
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
    _copy(path, header, {folder / files[count]: groups[count] for count in order})
    entries = []
    for count in order:
        channels = [signals[index] for index in groups[count]]
        types = [channel.pop("type") for channel in channels]
        meta = {
            "rate": rates[count],
            "channels": [channel["label"] for channel in channels],
            "channel_types": types,
            **{key: [channel[key] for channel in channels] for key in ("units", "gain", "offset")},
        }
        attributes = {
            "format": header.variant,
            "rates": sorted(rates.values(), reverse=True),
            "channel_types": types,
            "annotation_signals": annotations,
        }
        suffix = "" if count == order[0] else f"#{rates[count]:g}Hz"
        modality = "EEG" if "EEG" in types else None
        entries.append(
            {
                "kind": "recording",
                "file": files[count],
                "suffix": suffix,
                "meta": meta,
                "attributes": attributes,
                "modality": modality,
            }
        )
    return entries


def _header(path: Path) -> _Header:
    """The counts of a header. Raises ItemError where they cannot be, or the file is not one stretch of time."""
    with path.open("rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256 or not sniff(fixed):
            raise ItemError("truncated" if sniff(fixed) else "unreadable", "it does not begin with a whole EDF header")
        if fixed[192:197] in (b"EDF+D", b"BDF+D"):
            raise ItemError("unsupported", "its recording has gaps (EDF+D); split it into continuous recordings")
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
    return _Header(_MAGIC[fixed[:8]], header_bytes, records, duration, samples)


def _signals(path: Path, header: _Header) -> tuple[dict[int, dict[str, Any]], int]:
    """Signals that are not annotations, by their place in a record, and the number of those that are."""
    import edfio

    with path.open("rb") as file:
        raw = file.read(header.header_bytes)
    labels = [raw[at : at + 16].decode("latin-1").strip() for at in range(256, 256 + 16 * len(header.samples), 16)]
    if header.duration == 0 and not set(labels) <= _ANNOTATIONS:
        raise ItemError("header_lies", "its records have samples but no duration")
    signals: dict[int, dict[str, Any]] = {}
    reader = edfio.read_edf if header.variant == "edf" else edfio.read_bdf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the records, which are read below
        try:
            parsed: Any = reader(io.BytesIO(raw), header_encoding="latin-1")
        except ValueError as error:
            raise ItemError("header_lies", "its header holds what no EDF header may") from error
    for index, signal in enumerate(parsed._signals):  # noqa: SLF001 - `signals` leaves out annotations, losing places
        if signal.label not in _ANNOTATIONS:
            signals[index] = _channel(signal, index)
    return signals, len(header.samples) - len(signals)


def _channel(signal: Any, index: int) -> dict[str, Any]:
    try:
        low, high = float(signal.physical_min), float(signal.physical_max)
        first, last = int(signal.digital_min), int(signal.digital_max)
    except ValueError as error:
        raise ItemError("header_lies", f"the ranges of signal {index + 1} are not numbers") from error
    if first == last or low == high or not math.isfinite(low) or not math.isfinite(high):
        raise ItemError("header_lies", f"signal {index + 1} has an empty physical or digital range")
    gain = (high - low) / (last - first)
    label, unit = str(signal.label).strip(), str(signal.physical_dimension).strip()
    for micro in _MICRO:
        unit = unit.replace(micro, "u")
    return {"label": label, "units": unit, "gain": gain, "offset": low - gain * first, "type": channel_type(label)}


def channel_type(label: str) -> str:
    """EEG, EOG, EMG, ECG or other: by the prefix that EDF+ prescribes, else by the 10-20 and 10-10 names."""
    words = label.upper().split()
    for prefix, kind in _TYPES.items():
        if words and re.match(rf"{prefix}(?![A-Z])", words[0]):
            return kind
    parts = re.split(r"[-:/]", label.strip())
    if len(words) != 1 or not _ELECTRODE.fullmatch(parts[0]):
        return "other"
    return "EEG" if all(_ELECTRODE.fullmatch(p) or _REFERENCE.fullmatch(p) for p in parts[1:]) else "other"


def _copy(path: Path, header: _Header, files: dict[Path, list[int]]) -> None:
    """Write the samples of the signals of each file, a block of records at a time, at their places."""
    starts = np.cumsum([0, *header.samples])
    total, width = int(starts[-1]), _WIDTH[header.variant]
    dtype = "<i2" if header.variant == "edf" else "<i4"
    outs = []
    for out, signals in files.items():
        shape = (len(signals), header.records * header.samples[signals[0]])
        handle = out.open("xb")
        np.lib.format.write_array_header_1_0(handle, {"descr": dtype, "fortran_order": False, "shape": shape})
        outs.append((handle, handle.tell(), signals, shape[1]))
    at_once = max(1, _BLOCK // total)
    with path.open("rb") as file:
        file.seek(header.header_bytes)
        for first in range(0, header.records, at_once):
            count = min(at_once, header.records - first)
            raw = file.read(count * total * width)
            if len(raw) < count * total * width:
                raise ItemError("truncated", "it became shorter while it was read")
            block = _integers(raw, width).reshape(count, total)
            for handle, data_at, signals, length in outs:
                for row, index in enumerate(signals):
                    piece = np.ascontiguousarray(block[:, starts[index] : starts[index + 1]]).tobytes()
                    place = row * length + first * header.samples[index]
                    handle.flush()
                    os.pwrite(handle.fileno(), piece, data_at + place * block.itemsize)
    for handle, *_ in outs:
        handle.close()


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
