"""Events in a recording: spindles, seizures, artefacts. One row per event, one per recording also where there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ...jobs.contract import conversion
from ...jobs.task import Options, Result, Task, Unit, Window
from ...lake.errors import ItemError
from .checks import no_recording, wrong_outputs
from .signals import bridged, clear, gaps, ratio, region, resampled, wavelets
from .spans import covered, overlap, suppress


class Scalogram(Options):
    """A wavelet transform that the net sees beside the signal."""

    wavelet: str
    scales: tuple[float, float, int]
    """First, last, and how many, geometric."""
    precision: int
    """2^precision samples of the wavelet, as in the net's training."""


class EventOptions(Options):
    """How a recording becomes windows, and outputs become events."""

    of_the_model = frozenset({"rate", "window_s", "scalogram", "longest_s"})
    rate: float
    """Hz that the net sees."""
    window_s: float
    step_s: float
    """A window keeps the events whose centre is nearer to its middle than to any other window's."""
    scalogram: Scalogram | None = None
    longest_s: float
    """An event's duration where the net's output is 1. The net gives confidence, centre and duration per segment."""
    threshold: float = 0.5
    """Least confidence of an event."""
    overlap: float = 0.3
    """Of two events with a greater intersection over union, the more confident stays."""
    channels: Literal["eeg", "all"] | list[str] = "eeg"
    """Which channels are searched, each on its own."""
    flat_s: float = 0.5
    """One value for at least so long is a gap, as NaN is."""
    margin_s: float = 0.5
    """Events nearer than this to a gap are dropped."""
    valid: float = 0.5
    """Least share of a window that is no gap."""


@dataclass
class _State:
    data: np.ndarray
    meta: Mapping[str, Any]
    channels: list[int]
    change: Fraction
    factors: dict[int, float] = field(default_factory=dict)
    """By channel: into the unit that the net sees."""
    missing: dict[int, np.ndarray] = field(default_factory=dict)
    """Gaps by channel, in samples of the source."""
    found: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """(start, end, confidence) by channel, in samples of the net's rate."""
    skipped: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """Time that no window covered, in samples of the net's rate."""


class Events(Task):
    """Windows of every channel, a detection grid decoded in each, merged over the windows' borders."""

    name = "events"
    version = 2
    outputs = ("detection",)
    item_columns: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("duration_s", pa.float64()),
            pa.field("channels", pa.list_(pa.string())),  # that were searched
            pa.field("evaluated_s", pa.list_(pa.float64())),  # of each: an event could have been found
            pa.field("events_per_min", pa.float64()),  # over all channels, per minute evaluated
        ]
    )
    row_columns: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("start_s", pa.float64()),
            pa.field("end_s", pa.float64()),
            pa.field("confidence", pa.float64()),
            pa.field("channel", pa.string()),
        ]
    )
    units: ClassVar[Mapping[str, str]] = {"duration_s": "s", "evaluated_s": "s", "start_s": "s", "end_s": "s"} | {
        "events_per_min": "/min",
        "confidence": "1",
    }
    options_type = EventOptions

    def refuse(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
        return no_recording(items[self.roles[0]])

    def cost(self, items: Mapping[str, Mapping[str, Any]]) -> float:
        """4 bytes for each sample of the signal and its scalogram in each window."""
        channels, samples = items["input"]["shape"]
        seconds = samples / items["input"]["signal"]["rate"]
        windows = channels * (1 + max(0.0, seconds - self.options.window_s) // self.options.step_s)
        rows = 1 + (self.options.scalogram.scales[2] if self.options.scalogram else 0)
        return 4.0 * rows * self._size() * windows

    def begin(self, unit: Unit) -> _State:
        data, meta = unit.data["input"], unit.meta["input"]
        state = _State(data, meta, self._channels(meta), ratio(meta["rate"], self.options.rate))
        for channel in state.channels:
            state.factors[channel] = self._factor(meta["units"][channel])
            state.missing[channel] = gaps(data[channel], round(self.options.flat_s * meta["rate"]))
        return state

    def _factor(self, unit: str | None) -> float:
        """From a channel's unit into the one that the contract names."""
        wanted = self.manifest.inputs["input"].unit
        factor = 1.0 if wanted is None else conversion(unit, wanted)
        if factor is None:
            raise ItemError("unknown_unit", f"the model needs {wanted}, a channel's unit cannot be converted into it")
        return factor

    def _channels(self, meta: Mapping[str, Any]) -> list[int]:
        names, wanted = list(meta["channels"]), self.options.channels
        if isinstance(wanted, list):
            missing = [name for name in wanted if name not in names]
            if missing:
                raise ItemError("channel_missing", f"{len(missing)} of the job's {len(wanted)} channels are not in it")
            return [names.index(name) for name in wanted]
        chosen = [n for n, kind in enumerate(meta["channel_types"]) if wanted == "all" or kind == "EEG"]
        if not chosen:
            raise ItemError(
                "no_eeg_channel", "none of its channels is known as EEG; name them in the job: options.channels"
            )
        return chosen

    def _size(self) -> int:
        return round(self.options.window_s * self.options.rate)

    def _starts(self, state: _State) -> tuple[np.ndarray, int]:
        """First sample of each window, and the samples of the recording, at the net's rate."""
        total = max(self._size(), int(np.ceil(state.data.shape[1] * state.change)))
        starts = np.arange(0, total - self._size() + 1, round(self.options.step_s * self.options.rate))
        return (starts if starts[-1] == total - self._size() else np.append(starts, total - self._size())), total

    def windows(self, state: _State, step: int) -> Sequence[Window]:
        del step
        starts, total = self._starts(state)
        middles = (starts[:-1] + starts[1:] + self._size()) / 2
        own = np.concatenate([[0.0], middles, [np.inf]])
        windows: list[Window] = []
        for channel in state.channels:
            spans = state.missing[channel] * float(state.change)
            for number, start in enumerate(starts):
                bounds = (float(own[number]), float(own[number + 1]))
                if 1 - overlap(spans, start, start + self._size()) / self._size() < self.options.valid:
                    state.skipped.setdefault(channel, []).append((bounds[0], min(bounds[1], total)))
                    continue
                piece, offset = region(int(start), self._size(), state.change, state.data.shape[1])
                regions = {"input": (slice(channel, channel + 1), piece)}
                windows.append(Window(len(windows), regions, tag=(channel, int(start), offset, bounds)))
        return windows

    def prepare(self, state: _State, window: Window, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The signal at the net's rate, gaps bridged, and which of its samples lie in none."""
        channel, start, offset, _ = window.tag
        first, missing = window.regions["input"][1].start, state.missing[channel]
        samples = bridged(raw["input"][0], missing - first) * state.meta["gain"][channel]
        values = (samples + state.meta["offset"][channel]) * state.factors[channel]
        signal = resampled(values, state.change, offset, self._size())
        return {"signal": signal, "valid": clear(missing, state.change, start, self._size())}

    def encode(self, step: int, ready: Sequence[dict[str, np.ndarray]], device: Any) -> dict[str, Any]:
        """raw_signal: (batch, 1, time), and where the net wants it spectrogram: (batch, scales, time), standardised.

        Gaps take no part in means and deviations, so that they change what is beside them the least.
        """
        del step
        import torch

        signal, valid = (torch.from_numpy(np.stack([one[k] for one in ready])[:, None]) for k in ("signal", "valid"))
        signal, valid = signal.to(device), valid.to(device)
        inputs = {"raw_signal": _standardised(signal, valid).float()}
        if (how := self.options.scalogram) is not None:
            spectra = torch.from_numpy(wavelets(how.wavelet, how.scales, how.precision, self._size())).to(device)
            image = torch.empty((len(ready), len(spectra), self._size()), device=device)
            for place, one in enumerate((signal - _mean(signal, valid)).float()):  # all at once would not fit a cache
                image[place] = torch.fft.ifft(torch.fft.fft(one, spectra.shape[1]) * spectra)[:, : self._size()].abs()
            inputs["spectrogram"] = _standardised(image, valid)
        return inputs

    def collect(self, state: _State, step: int, window: Window, outputs: Mapping[str, Any]) -> None:
        del step
        channel, start, _, (first, last) = window.tag
        shape = tuple(outputs["detection"].shape)
        if len(shape) != 2 or shape[1] != 3:
            raise wrong_outputs(shape, "segments × 3: confidence, centre, duration")
        found = self._decoded(outputs["detection"].float().sigmoid().double().cpu().numpy())
        found[:, :2] += start
        centre = found[:, :2].mean(axis=1)
        state.found.setdefault(channel, []).append(found[(centre >= first) & (centre < last)])

    def _decoded(self, grid: np.ndarray) -> np.ndarray:
        """(segments, 3) of confidence, centre in the segment, duration → (events, 3) of start, end, confidence."""
        size, longest = self._size(), self.options.longest_s * self.options.rate
        kept = np.flatnonzero(grid[:, 0] >= self.options.threshold)
        centre = (kept + grid[kept, 1]) * size / len(grid)
        half = grid[kept, 2] * longest / 2
        events = np.stack([np.clip(centre - half, 0, size), np.clip(centre + half, 0, size), grid[kept, 0]], axis=1)
        return suppress(events[events[:, 1] > events[:, 0]], self.options.overlap)

    def finish(self, state: _State) -> Result:
        rate, names = self.options.rate, state.meta["channels"]
        duration = state.data.shape[1] / state.meta["rate"]
        events: list[tuple[float, float, float, str]] = []
        evaluated = []
        for channel in state.channels:
            margin = np.array([-self.options.margin_s, self.options.margin_s])
            blocked = state.missing[channel] / state.meta["rate"] + margin
            merged = suppress(np.concatenate(state.found.get(channel) or [np.empty((0, 3))]), self.options.overlap)
            for start, end, confidence in merged[np.argsort(merged[:, 0], kind="stable")]:
                start_s, end_s = start / rate, min(end / rate, duration)
                if not ((blocked[:, 0] < end_s) & (blocked[:, 1] > start_s)).any():
                    events.append((start_s, end_s, confidence, names[channel]))
            skipped = np.array(state.skipped.get(channel, [])).reshape(-1, 2) / rate
            evaluated.append(duration - covered(np.concatenate([blocked, skipped]), duration))
        minutes = sum(evaluated) / 60
        columns = {
            "duration_s": duration,
            "channels": [names[channel] for channel in state.channels],
            "evaluated_s": evaluated,
            "events_per_min": len(events) / minutes if minutes else None,
        }
        values = zip(*events, strict=True) if events else ([], [], [], [])
        return Result(columns, rows=dict(zip(self.row_columns.names, map(list, values), strict=True)))


def _mean(values: Any, valid: Any) -> Any:
    """Mean of the valid samples along the last axis."""
    return (values * valid).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)


def _standardised(values: Any, valid: Any) -> Any:
    """Mean 0 and deviation 1 of the valid samples along the last axis; what does not vary is 0."""
    centred = values - _mean(values, valid)
    deviation = _mean(centred**2, valid).sqrt()
    return (centred / deviation).where(deviation > 0, 0.0)
