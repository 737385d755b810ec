"""EEGLAB (.set in MATLAB 5 or 7.3, its samples within or in an .fdt beside it), continuous recordings only."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import Limits, Part, ReadOptions, beside, bids, channels, eeglab_hdf5, mat5, recording, samples, source

name = "eeglab"

_FIELDS = {
    "srate": None, "nbchan": None, "trials": None, "pnts": None, "data": None, "datfile": None, "ref": None,
    "chanlocs": {"labels": None, "type": None, "ref": None},
    "event": {"type": None, "latency": None, "duration": None},
}  # fmt: skip
_WANTED = {"EEG": _FIELDS, **_FIELDS}
"""One structure, or, as newer versions save it, its fields as variables."""
_MAT5, _MAT73, _HDF5 = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file", b"\x89HDF\r\n\x1a\n"
_SLACK = 2**28
"""What a file may unpack to beside its samples: components, epochs, history."""


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a MATLAB file does, in which an EEGLAB recording may be."""
    return head[:19] == _MAT5 or (head[:19] == _MAT73 and head[512:520] == _HDF5)


class _WithinError(Exception):
    """The samples are in the file itself: what follows them need not be unpacked to know that."""


def part_of(path: Path) -> Part:
    """The .fdt with the samples, where they are in one, and BIDS' sidecars. Raises ItemError."""
    outside = _named_file(path, Limits())
    return Part(beside=(*([_named(path, outside, ())] if outside else []), *bids.names(path)))


def preflight(path: Path, limits: Limits) -> None:
    """Hold the samples' dimensions to the limit. Raises ItemError."""
    _named_file(path, limits)


def _named_file(path: Path, limits: Limits) -> str | None:
    """The file that the samples are in, None where they are within. Raises ItemError."""

    def within(dims: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterator[np.ndarray]) -> None:  # noqa: ARG001 - as mat5.Sink
        _shape(dims, dtype, limits)
        raise _WithinError

    try:
        return _outside(_described(path, limits, within))
    except _WithinError:
        return None


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """One (channel, time) array. Raises ItemError."""
    stored: list[tuple[int, int, int | None]] = []
    file = folder / "signal.npy"

    def keep(dims: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterator[np.ndarray]) -> None:
        count, length = _shape(dims, dtype, options.limits)
        stored.append((count, length, _store(file, count, length, dtype, pieces)))

    said = _described(path, options.limits, keep)
    outside = _outside(said)
    if outside:
        data = beside.find(path, _named(path, outside, options.parts), options.parts, "data file (.fdt)")
        count, length = _integer(said, "nbchan"), _integer(said, "pnts")
        if data.stat().st_size != count * length * 4:
            short = data.stat().st_size < count * length * 4
            raise ItemError(
                "truncated" if short else "header_lies",
                "its .fdt has another size than the .set claims; copy both again",
            )
        _shape((count, length), np.dtype("f4"), options.limits)
        stored.append((count, length, _store(file, count, length, np.dtype("f4"), _floats(data, count * length))))
    if len(stored) != 1:
        raise ItemError("unsupported", "it is a MATLAB file without the samples of an EEGLAB recording")
    count, length, non_finite = stored[0]
    rate = _number(said.get("srate"))
    if not (math.isfinite(rate) and rate > 0):
        raise ItemError("header_lies", "its sampling rate is not a positive number")
    attributes: dict[str, Any] = {"format": "eeglab", "rates": [rate]}
    if non_finite is not None:
        attributes["non_finite"] = non_finite
    described = _channels(said, count)
    whole = recording.said(bids.sidecar(path, options.parts), described, _events(said, rate), attributes)
    return [recording.entry(whole, "signal.npy", rate, described)]


def _described(path: Path, limits: Limits, sink: mat5.Sink | None) -> dict[str, Any]:
    """Fields of the recording; its samples have gone to the sink. Raises ItemError where there is none, or it is epoched."""
    if source.is_gzip(path):
        raise ItemError("unsupported", "EEGLAB's files are read without gzip; gunzip it first")
    with path.open("rb") as file:
        hdf5 = file.read(19) == _MAT73
    found = (
        eeglab_hdf5.read(path, _WANTED, sink) if hdf5 else mat5.read(path, _WANTED, limits.item_bytes + _SLACK, sink)
    )
    said = found.get("EEG", found)
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    if not isinstance(said, dict) or not {"srate", "data"} <= set(said):
        raise ItemError("unsupported", "it is a MATLAB file without one EEGLAB recording; save the recording by itself")
    if "trials" in said and not _number(said["trials"]) <= 1:
        raise ItemError("unsupported", "it is cut into epochs; save the continuous recording")
    return said


def _outside(said: dict[str, Any]) -> str | None:
    """The file that the samples are in, as the recording names it; None where they are within."""
    if isinstance(said["data"], str):
        return said["data"].strip()
    return None


def _named(path: Path, said: str, parts: tuple[Path, ...]) -> str:
    """The name that is there: the one that is said, or, as EEGLAB takes it after a renaming, that of the .set."""
    name = beside.plain(said)
    if not name.lower().endswith(".fdt"):
        raise ItemError("unsupported", "its samples are in a file that is no .fdt; save it anew")
    own = path.name.rpartition(".")[0] + ".fdt"
    return own if not beside.there(path, name, parts) and beside.there(path, own, parts) else name


def _shape(dims: tuple[int, ...], dtype: np.dtype[Any], limits: Limits) -> tuple[int, int]:
    """(channels, samples), held to the limit. Raises ItemError."""
    dims = (*dims, 1, 1)[: max(3, len(dims))]
    if math.prod(dims[2:]) > 1:
        raise ItemError("unsupported", "it is cut into epochs; save the continuous recording")
    recording.check_count(dims[0])
    if dims[1] < 1:
        raise ItemError("header_lies", "it has no samples")
    samples.check_size(dims[0], dims[1], dtype.itemsize, limits)
    return dims[0], dims[1]


def _store(file: Path, count: int, length: int, dtype: np.dtype[Any], pieces: Iterator[np.ndarray]) -> int | None:
    """Write pieces, all channels of a sample after each other, whatever their borders. Returns how many are not finite."""
    at, left = 0, np.empty(0, dtype)
    with samples.Samples(file, count, length, dtype) as out:
        for piece in pieces:
            both = np.concatenate([left, piece]) if len(left) else piece
            whole = len(both) // count
            out.put_block(at, both[: whole * count].reshape(whole, count))
            at, left = at + whole, both[whole * count :]
    return out.non_finite if dtype.kind == "f" else None


def _floats(path: Path, count: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while count:
            piece = np.frombuffer(file.read(min(4 * count, samples.BLOCK_BYTES)), "<f4")
            if not len(piece):
                raise ItemError("truncated", "its .fdt became shorter while it was read")
            count -= len(piece)
            yield piece


def _channels(said: dict[str, Any], count: int) -> list[recording.Channel]:
    """Channels in the order of the samples. Raises ItemError."""
    rows = said.get("chanlocs") or [{}] * count
    if not isinstance(rows, list) or len(rows) != count:
        raise ItemError("header_lies", "it describes another number of channels than it has")
    common = channels.reference(_text(said.get("ref")))
    return [
        recording.Channel(
            _text(row.get("labels")).strip(), number, "uV", kind=channels.stated_type(_text(row.get("type"))),
            reference=channels.reference(_text(row.get("ref"))) or common,
        )
        for number, row in enumerate(rows, 1)
    ]  # fmt: skip


def _events(said: dict[str, Any], rate: float) -> Iterator[tuple[float, float, str]]:
    """Events; EEGLAB counts samples from 1 on."""
    rows = said.get("event")
    for row in rows if isinstance(rows, list) else []:
        kind = row.get("type")
        number = _number(kind)
        text = (
            kind
            if isinstance(kind, str)
            else str(int(number))
            if math.isfinite(number) and number == int(number)
            else ""
        )
        yield (_number(row.get("latency")) - 1) / rate, _number(row.get("duration")) / rate, text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    """A single number, NaN where it is none."""
    if not isinstance(value, tuple) or value[1] is None or len(value[1]) != 1:
        return math.nan
    return float(value[1][0])


def _integer(said: dict[str, Any], field: str) -> int:
    number = _number(said.get(field))
    if not 1 <= number <= 2**40 or number != int(number):
        raise ItemError("header_lies", "it does not say how many channels and samples it has")
    return int(number)
