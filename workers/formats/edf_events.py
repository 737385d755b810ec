"""Events of EDF+ and BDF: the time-stamped annotation lists (TAL) of each record, and triggers of a status channel."""

import math
import re
from collections.abc import Iterator

import numpy as np

from diastole.lake.errors import ItemError

from .events import MOST

_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14([^\x00]*)\x14\x00")
_TRIGGER_BITS = 0xFFFF
"""BioSemi uses the bits above for its own state."""
_NEAR_S = 1e-4
"""How far from its place a record may start and still follow the one before it."""


class Events:
    """Collects events while records are read. Onsets count from the first sample, which the first record's time tells."""

    def __init__(self, duration: float, *, discontinuous: bool) -> None:
        self._duration = duration
        self._discontinuous = discontinuous
        self._start: float | None = None
        self._annotations: list[tuple[float, float, str]] = []
        self._triggers: list[tuple[float, float, str]] = []
        self._samples = 0
        self._last: int | None = None

    def add(self, first: int, annotations: list[np.ndarray]) -> None:
        """Annotation signals of records from `first` on, (record, byte) each. Raises ItemError."""
        if self._discontinuous and not annotations:
            raise ItemError("unsupported", "it is EDF+D, but has no times of its records; export it as EDF+C")
        for place, signal in enumerate(annotations):
            for number, record in enumerate(signal):
                self._record(first + number, record.tobytes(), keeps_time=place == 0)

    def _record(self, number: int, content: bytes, *, keeps_time: bool) -> None:
        for at, match in enumerate(_TAL.finditer(content)):
            onset, duration = float(match[1]), float(match[2] or 0)
            texts = match[3].split(b"\x14")
            if keeps_time and at == 0 and not texts[0]:
                self._starts(number, onset)
                texts = texts[1:]
            self._annotations.extend((onset, duration, text.decode("utf-8", "replace")) for text in texts if text)
        if len(self._annotations) > MOST:
            raise ItemError("too_large", f"it has more than {MOST} events; cut it, or remove those that are not needed")

    def _starts(self, number: int, onset: float) -> None:
        """Hold the time of a record to where it would be without gaps. Raises ItemError."""
        if self._start is None:
            self._start = onset - number * self._duration
        if self._discontinuous and abs(onset - self._start - number * self._duration) > _NEAR_S:
            raise ItemError("unsupported", "its recording has gaps (EDF+D); split it into continuous recordings")

    def add_status(self, values: np.ndarray, rate: float) -> None:
        """The next samples of a status channel; each change to another number than zero is an event. Raises ItemError."""
        triggers = values.ravel() & _TRIGGER_BITS
        before = np.concatenate([triggers[:1] if self._last is None else [self._last], triggers[:-1]])
        for at in np.flatnonzero((triggers != before) & (triggers != 0)):
            self._triggers.append(((self._samples + int(at)) / rate, 0.0, str(int(triggers[at]))))
            if len(self._triggers) > MOST:
                raise ItemError("too_large", f"its status channel has more than {MOST} triggers; cut the recording")
        self._samples += len(triggers)
        self._last = int(triggers[-1])

    def found(self) -> Iterator[tuple[float, float, str]]:
        """All events."""
        start = self._start if self._start is not None and math.isfinite(self._start) else 0.0
        yield from ((onset - start, duration, text) for onset, duration, text in self._annotations)
        yield from self._triggers
