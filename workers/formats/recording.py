"""From what a file and its BIDS sidecars say of a recording to the entry that the reader gives."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diastole.lake.errors import ItemError

from . import bids, channels, events, samples

MOST_CHANNELS = 4096


@dataclass(frozen=True)
class Channel:
    """One channel as its file describes it; texts are the file's own, and are held to allow-lists in `entry`."""

    label: str
    number: int
    """Its place in the file, from 1 on."""
    unit: str | None
    """UCUM."""
    gain: float = 1.0
    offset: float = 0.0
    kind: str | None = None
    """Where the file states it: a type of BIDS. None: by the label."""
    reference: str | None = None
    """Where the file states it, apart from the label."""
    bad: bool | None = None


@dataclass(frozen=True)
class Said:
    """What is known of a whole recording, whatever number of items it becomes."""

    sidecar: bids.Sidecar
    events: list[list[Any]]
    """As `meta` has them."""
    attributes: Mapping[str, Any]


def said(
    sidecar: bids.Sidecar,
    all_channels: Sequence[Channel],
    found: Iterable[tuple[float, float, str]],
    attributes: Mapping[str, Any],
    items: int = 1,
) -> Said:
    """Events, those of a sidecar instead of the file's, and how far the sidecar's channels are the file's.

    `items`: how many the recording becomes, each of which has all events. Raises ItemError.
    """
    own = found if sidecar.events is None else sidecar.events
    kept = events.listed(own, events.MOST // items)
    attributes = {**attributes, "other_events": events.others(kept)}
    if sidecar.events is not None:
        attributes["events_from"] = "sidecar"
    if sidecar.channels is not None:
        labels = Counter(channel.label for channel in all_channels)
        attributes["channels_not_in_sidecar"] = sum((labels - Counter(list(sidecar.channels))).values())
        attributes["sidecar_channels_not_in_file"] = len(set(sidecar.channels) - set(labels))
    return Said(sidecar, kept, attributes)


def check_count(count: int) -> None:
    """Raise ItemError where a file claims more channels than any has, or none."""
    if not 1 <= count <= MOST_CHANNELS:
        raise ItemError("header_lies", f"{count} channels cannot be; there are 1 to {MOST_CHANNELS}")


def entry(said: Said, file: str, rate: float, of: Sequence[Channel], suffix: str = "") -> dict[str, Any]:
    """The entry of the channels of one sampling rate, in their order in `file`."""
    samples.check_scale([channel.gain for channel in of], [channel.offset for channel in of])
    rows = [(said.sidecar.channels or {}).get(channel.label, {}) for channel in of]
    types = [_type(channel, row) for channel, row in zip(of, rows, strict=True)]
    bad = [_bad(channel, row) for channel, row in zip(of, rows, strict=True)]
    meta = {
        "rate": rate,
        "channels": [channels.label(channel.label, channel.number) for channel in of],
        "channel_types": types,
        "units": [channel.unit or channels.unit(row.get("units", "")) for channel, row in zip(of, rows, strict=True)],
        "gain": [channel.gain for channel in of],
        "offset": [channel.offset for channel in of],
        "reference": [_reference(channel, kind, row, said.sidecar) for channel, kind, row in zip(of, types, rows, strict=True)],
        "bad_channels": None if set(bad) <= {None} else [n for n, is_bad in enumerate(bad) if is_bad],
        "power_line_hz": said.sidecar.power_line_hz,
        "events": said.events,
    }  # fmt: skip
    attributes = {**said.attributes, "channel_types": types}
    rates = [row["sampling_frequency"] for row in rows if "sampling_frequency" in row]
    if said.sidecar.channels is not None:
        attributes["rate_differs_from_sidecar"] = sum(not _close(text, rate) for text in rates)
        attributes["unit_differs_from_sidecar"] = sum(
            bool(channel.unit and (stated := channels.unit(row.get("units", ""))) and stated != channel.unit)
            for channel, row in zip(of, rows, strict=True)
        )
    return {
        "kind": "recording",
        "file": file,
        "suffix": suffix,
        "meta": meta,
        "attributes": attributes,
        "modality": channels.modality(types),
    }


def _type(channel: Channel, row: Mapping[str, str]) -> str:
    return channels.stated_type(row.get("type", "")) or channel.kind or channels.channel_type(channel.label)


def _bad(channel: Channel, row: Mapping[str, str]) -> bool | None:
    stated = {"good": False, "bad": True}.get(row.get("status", "").lower())
    return channel.bad if stated is None else stated


def _reference(channel: Channel, kind: str, row: Mapping[str, str], sidecar: bids.Sidecar) -> str | None:
    """The narrowest that is stated: the label's, the sidecar's of the channel, the file's, the sidecar's of all EEG."""
    own = channels.reference_of(channel.label) or channels.reference(row.get("reference", "")) or channel.reference
    return own or (sidecar.reference if kind in ("EEG", "SEEG", "ECOG") else None)


def _close(text: str, rate: float) -> bool:
    try:
        return abs(float(text) - rate) <= 1e-3 * rate
    except ValueError:
        return False
