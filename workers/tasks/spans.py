"""Stretches of a line: which of those that overlap stay, how much they cover."""

import numpy as np


def suppress(events: np.ndarray, overlap: float) -> np.ndarray:
    """Greedy non-maximum suppression of (start, end, confidence) rows; most confident first, of equals the first."""
    events = events[np.argsort(-events[:, 2], kind="stable")]
    kept: list[int] = []
    alive = np.ones(len(events), bool)
    for place, (start, end, _) in enumerate(events):
        if not alive[place]:
            continue
        kept.append(place)
        common = np.clip(np.minimum(end, events[:, 1]) - np.maximum(start, events[:, 0]), 0, None)
        union = (end - start) + (events[:, 1] - events[:, 0]) - common
        alive &= ~(common >= overlap * np.maximum(union, 1e-12))
    return events[kept]


def overlap(spans: np.ndarray, first: float, last: float) -> float:
    """How much of [first, last] lies in spans that do not overlap each other."""
    return float(np.clip(np.minimum(spans[:, 1], last) - np.maximum(spans[:, 0], first), 0, None).sum())


def covered(spans: np.ndarray, duration: float) -> float:
    """Length of the union of spans within [0, duration]."""
    total, reached = 0.0, 0.0
    for start, stop in np.clip(spans[np.argsort(spans[:, 0])], 0.0, duration):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
