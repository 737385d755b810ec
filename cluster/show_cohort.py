"""What is printed of a dataset as a whole."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

from ..jobs.describe import Description, Group
from .cohort import Statistics
from .show import console, print_json

VALUES = 5
"""Values of a field that people see; scripts get all that are told."""


def _say(text: str) -> None:
    console.print(text, markup=False)  # a channel may be called [x]


def show_description(found: Description, *, as_json: bool) -> None:
    """What a dataset holds."""
    if as_json:
        print_json(asdict(found))
        return
    states = ", ".join(f"{count} {state}" for state, count in found.states.items()) or "no items"
    _say(f"{found.dataset}: {states}; {found.subjects} subjects, {found.sessions} sessions")
    for group in found.groups:
        _show_group(group)
    if found.quarantined:
        codes = ", ".join(f"{count} {code}" for code, count in found.quarantined.items())
        _say(f"quarantined sources: {codes}; see: diastole quarantine")
    for outlier in found.outliers:
        _say(f"stands out: {outlier.what}: {outlier.code}: {outlier.items} items")
        for one in outlier.first[:VALUES]:
            usual = "" if one["usual"] is None else f"{_text(one['value'])}, usual is {_text(one['usual'])}"
            _say(f"    {one['item_id']} {usual}".rstrip())
    for item in found.unsound:
        _say(f"cannot be: item {item.item_id}: {item.problem} ({item.code})")


def _show_group(group: Group) -> None:
    _say(f"{group.modality or 'unknown modality'}, {group.kind}: {group.items} items, {group.nbytes / 1e6:.1f} MB")
    for name, values in group.fields.items():
        shown = list(values.items())[:VALUES]
        left = len(values) - len(shown) + group.others.get(name, 0)
        more = f" and {left} others" if left else ""
        _say(f"  {name:14} {'; '.join(f'{value}: {count}' for value, count in shown)}{more}")
    for name, summary in group.measures.items():
        _say(f"  {name:14} {', '.join(f'{word} {_text(value)}' for word, value in summary.items())}")


def progress_to(stream: TextIO, *, quiet: bool) -> Callable[[int, int], None]:
    """What is called with the items that were read, and all of them."""

    def told(done: int, whole: int) -> None:
        if not quiet:
            print(f"{done} of {whole} items", file=stream)

    return told


def show_statistics(statistics: Statistics, *, as_json: bool) -> None:
    """Statistics of a dataset, without their histograms and spectra, which are in the JSON."""
    found = statistics.found
    if as_json:
        print_json({**found, "made": statistics.made})
        return
    _say(f"{found['dataset']}: {found['items']} items, {'made' if statistics.made else 'as stored'}")
    for group in found["groups"]:
        _say(f"  {_group_name(group)}: {_SUMMARY[group['what']](group)}")
    for kind, count in found["not_counted"].items():
        _say(f"  {count} {kind}: of these there are no statistics")
    if left := statistics.left_out:
        codes = ", ".join(f"{count} {code}" for code, count in left.items())
        _say(f"not stored, since items could not be read: {codes}; heal them: diastole ingest --verify")
    else:
        _say(f"stored as statistics/{found['dataset']}/{found['digest']}.json")


def _group_name(group: dict[str, Any]) -> str:
    named = [group["modality"] or "unknown modality"]
    named += [f"site {group['site']}"] if group["site"] is not None else []
    named += [f"channel {group['channel']}"] if "channel" in group else []
    named += [f"{group['rate_hz']:g} Hz"] if "rate_hz" in group else []
    return ", ".join(named)


def _intensity(group: dict[str, Any]) -> str:
    if not group["values"]:
        return f"{group['items']} items without a finite value"
    shares = ", ".join(f"{share} % {_text(group['percentiles'][share])}" for share in ("1", "50", "99"))
    return (
        f"{group['items']} items, mean {_text(group['mean'])}, std {_text(group['std'])}, "
        f"{_text(group['min'])} to {_text(group['max'])}, {shares}, {group['non_finite']} not finite"
    )


def _power(group: dict[str, Any]) -> str:
    if not group["windows"]:
        return f"no window; {group['short']} recordings too short, {group['non_finite']} not finite"
    peak = max(range(len(group["power"])), key=group["power"].__getitem__)
    return f"{group['items']} recordings, {group['windows']} windows, most at {group['frequencies'][peak]:g} Hz"


def _letters(group: dict[str, Any]) -> str:
    total = sum(group["letters"].values())
    most = sorted(group["letters"].items(), key=lambda pair: (-pair[1], pair[0]))[:VALUES]
    shares = ", ".join(f"{letter} {100 * count / total:.1f} %" for letter, count in most)
    return f"{group['items']} sequences, {total} letters: {shares}; {len(group['kmers'])} {group['k']}-mers"


def _alleles(group: dict[str, Any]) -> str:
    return (
        f"{group['items']} files, {group['variants']} variants, {group['alternates']} alternate alleles, of which "
        f"{group['absent']} are in no sample and {group['singletons']} in one; {group['missing']} of "
        f"{group['called'] + group['missing']} calls are missing"
    )


_SUMMARY = {"alleles": _alleles, "intensity": _intensity, "power": _power, "letters": _letters}


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)
