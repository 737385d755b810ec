"""Whether an item meets a model's contract, told from its row alone, before any compute."""

from collections.abc import Mapping
from typing import Any

from ..lake.models import InputContract, Range

Refusal = tuple[str, str]
"""(error code, reason)."""

AXES = {2: "channel time", 3: "zyx", 4: "tzyx"}
"""By number, of what is an array of its own."""
VOLTS = {"V": 0, "mV": -3, "uV": -6, "nV": -9}
"""Units that can be converted into each other: powers of ten of a volt."""


def conversion(unit: str | None, wanted: str) -> float | None:
    """By what values in `unit` are multiplied to be in `wanted`; None where that is not known."""
    if unit == wanted:
        return 1.0
    if unit is None or unit not in VOLTS or wanted not in VOLTS:
        return None
    return float(10.0 ** (VOLTS[unit] - VOLTS[wanted]))


def axes_of(item: Mapping[str, Any]) -> str | None:
    """Axes as stored. What has three is an image (`cyx`) where it is a row of a pack, else a volume (`zyx`)."""
    count = len(item["shape"] or ())
    return "cyx" if count == 3 and item.get("row") is not None else AXES.get(count)


def refuse(contract: InputContract, item: Mapping[str, Any]) -> Refusal | None:
    """Why an items row cannot meet the contract, or None."""
    for check in (_modality, _volume, _recording, _sequence):
        refusal = check(contract, item)
        if refusal:
            return refusal
    return None


def refuse_use(item: Mapping[str, Any], purpose: str | None) -> Refusal | None:
    """Why an item's permitted use forbids a job of this purpose, or None."""
    permitted = item["permitted_use"]
    if permitted is None or permitted == purpose:
        return None
    return (
        "use_not_permitted",
        f"the item may be used for {permitted} only; if that is what the job is for, say so in it "
        f"(purpose: {permitted}) and run it with --retry",
    )


def _modality(contract: InputContract, item: Mapping[str, Any]) -> Refusal | None:
    if not contract.modality or item["modality"] in contract.modality:
        return None
    wanted = " or ".join(contract.modality)
    if item["modality"] is None:
        return "modality_unknown", f"the model is for {wanted}, the item's modality is unknown; ingest with --modality"
    return "wrong_modality", f"the model is for {wanted}, the item is {item['modality']}"


def _volume(contract: InputContract, item: Mapping[str, Any]) -> Refusal | None:
    if contract.axes is not None:
        found = axes_of(item) or f"{len(item['shape'] or ())} axes"
        if found != contract.axes:
            return "wrong_axes", f"the model needs axes {contract.axes}, the item has {found}"
    geometry = item["geometry"] or {}
    if contract.orientation is not None and not geometry.get("orientation"):
        return "orientation_unknown", "the model needs a known orientation, the source has none"
    if contract.spacing_mm is not None:
        spacing = geometry.get("spacing")
        if not spacing:
            return "spacing_unknown", "the model needs a known voxel spacing, the source has none"
        outside = [s for s in spacing if not contract.spacing_mm.holds(s)]
        if outside:
            return "wrong_spacing", f"spacing {outside[0]:g} mm is outside of {_span(contract.spacing_mm, 'mm')}"
    return None


def _recording(contract: InputContract, item: Mapping[str, Any]) -> Refusal | None:
    signal = item["signal"] or {}
    if contract.rate_hz is not None:
        rate = signal.get("rate")
        if rate is None:
            return "rate_unknown", "the model needs a sampling rate, the item has none"
        if not contract.rate_hz.holds(rate):
            return "wrong_rate", f"sampling rate {rate:g} Hz is outside of {_span(contract.rate_hz, 'Hz')}"
    if contract.duration_s is not None:
        rate, shape = signal.get("rate"), item["shape"]
        if not rate or not shape:
            return "duration_unknown", "the model needs a recording of known length"
        if not contract.duration_s.holds(shape[-1] / rate):
            return "wrong_duration", f"{shape[-1] / rate:g} s is outside of {_span(contract.duration_s, 's')}"
    if contract.unit is not None and item["signal"]:
        units = signal.get("units") or []
        if not any(conversion(unit, contract.unit) for unit in units):  # which channels matter, the task knows
            return "unknown_unit", f"the model needs {contract.unit}, no channel's unit can be converted into it"
    return None


def _sequence(contract: InputContract, item: Mapping[str, Any]) -> Refusal | None:
    sequence = item["sequence"] or {}
    if contract.alphabet is not None:
        if sequence.get("letters") is None:
            return "not_a_sequence", "the model needs a sequence"
        strange = sorted(set(sequence["letters"]) - set(contract.alphabet))
        if strange:
            return "wrong_alphabet", f"letters {''.join(strange)} are outside of {contract.alphabet}"
    if contract.length is not None and not contract.length.holds(sequence.get("length") or 0):
        return (
            "wrong_length",
            f"{sequence.get('length') or 0} letters are outside of {_span(contract.length, 'letters')}",
        )
    return None


def _span(bounds: Range, unit: str) -> str:
    low = "" if bounds.min is None else f"{bounds.min:g}"
    high = "" if bounds.max is None else f"{bounds.max:g}"
    return f"{low}–{high} {unit}"
