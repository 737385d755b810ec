"""DICOM: series of slices, multi-frame volumes, doses, segmentations, outlines, and single images.

What is read, and why the rest is not, is in docs/formats.md; what of a header is kept, in attributes.py.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from .. import Limits, Part, ReadOptions
from . import attributes, classes, contours, dataset, images, pixels, segments, series, slices, structure, volume
from .dataset import File

name = "dicom"

_TELLING = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "ImageType",
    "Modality",
    "FileSetID",
    "DirectoryRecordSequence",
)
"""Elements that tell what a file is a part of."""
_UNITS = {"CT": "[hnsf'U]"}
"""UCUM, of the values after rescaling."""


@dataclass
class _Found:
    """What the slices of a source have in common, as its files are read one by one."""

    called: str = ""
    identity: dict[str, str | None] = field(default_factory=dict)
    every: list[slices.Slice] = field(default_factory=list)
    said: dict[int, dict[str, Any]] = field(default_factory=dict)
    times: dict[int, str | None] = field(default_factory=dict)


def sniff(head: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does, with its preamble or without one."""
    return head[128:132] == b"DICM" or structure.begins_as_dataset(head)


def part_of(path: Path) -> Part:
    """The series that a file is a part of, or the image that it is, from its header alone. Raises ItemError."""
    with dataset.read(path, dataset.UNDECIDED_BYTES, whole=False, tags=_TELLING) as file:
        kind, _ = classes.kind_of(file)
        told = classes.identity(file.header, kind)
        return Part(told["key"], told["subject"], told["session"])


def preflight(path: Path, limits: Limits) -> None:
    """Hold the header to the limits, and to what is in the file. Raises ItemError."""
    with dataset.read(path, limits.item_bytes + pixels.EXTRA_BYTES) as file:
        if classes.kind_of(file)[0] != "contours":
            pixels.layout(file, limits)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Write the volumes, images or points of a source into `folder`: arrays as nifti.py and image.py write them.

    Raises ItemError.
    """
    paths = [Path(part) for part in options.parts] or [path]
    found, others, seen = _Found(), list[tuple[str, list[dict[str, Any]]]](), dict[str, str]()
    for number, one in enumerate(paths):
        with dataset.read(one, options.limits.item_bytes + pixels.EXTRA_BYTES) as file:
            kind, called = classes.kind_of(file)
            if kind == "slices":
                _collect(found, file, number, called, options)
                continue
            instance, content = dataset.uid(file.header, "SOPInstanceUID") or str(number), _content(file)
            if seen.setdefault(instance, content) != content:
                raise ItemError("inconsistent_series", "two of its files have one UID and differ")
            if instance not in dict(others):  # else it is a copy
                others.append((instance, _entries(file, kind, called, folder, f"{number}-", options)))
    entries = _volumes(found, paths, folder, options.limits) if found.every else []
    alone = len(others) == 1 and not entries
    for instance, made in others:
        suffix = "" if alone else "#" + hashlib.sha256(instance.encode()).hexdigest()[:8]
        entries += [entry | {"suffix": suffix + entry["suffix"]} for entry in made]
    return entries


def _collect(found: _Found, file: File, number: int, called: str, options: ReadOptions) -> None:
    """Take the slices of a file into a source's. Raises ItemError."""
    layout = pixels.layout(file, options.limits)
    classes.check_burned_in(file, called, layout.photometric, allowed=options.allow_burned_in)
    identity = classes.identity(file.header, "slices")
    if found.identity not in ({}, identity) or found.called not in ("", called):
        raise ItemError("inconsistent_series", "its files are of several subjects, studies or kinds")
    found.called, found.identity = called, identity
    found.every += slices.of_file(file, number, layout)
    found.said[number] = _said(file, layout) | _values(file, called)
    found.times[number] = attributes.acquired_at(file.header)


def _volumes(found: _Found, paths: Sequence[Path], folder: Path, limits: Limits) -> list[dict[str, Any]]:
    """The volumes of a source's slices. Raises ItemError."""
    entries = []
    for number, stack in enumerate(series.stacks(found.every, volume.digests(paths, limits))):
        used = sorted({one.file for row in stack.slices for one in row})
        out = f"volume-{number}.npy"
        meta, said = volume.write(stack, paths, folder / out, limits)
        times = sorted(time for file in used if (time := found.times[file]) is not None)
        entries.append(
            {
                "kind": "volume",
                "file": out,
                "suffix": stack.suffix,
                "meta": meta,
                "attributes": {**attributes.common([found.said[file] for file in used]), "files": len(used), **said},
                "modality": found.called,
                "acquired_at": times[0] if times else None,
                **found.identity,
            }
        )
    return entries


def _entries(
    file: File, kind: str, called: str, folder: Path, start: str, options: ReadOptions
) -> list[dict[str, Any]]:
    """The items of a file that is not slices, in files whose names begin with `start`. Raises ItemError."""
    shared: dict[str, Any] = {
        "modality": called,
        "suffix": "",
        "acquired_at": attributes.acquired_at(file.header),
        **classes.identity(file.header, "images" if kind == "images" else "segments"),
    }
    if kind == "contours":
        meta, said, outlined = contours.write(file, folder / f"{start}contours.npy", options.limits)
        more = {"kind": "contours", "file": f"{start}contours.npy", "meta": meta, "derived_from": outlined}
        return [shared | more | {"attributes": {"format": name, **said}}]
    layout = pixels.layout(file, options.limits)
    classes.check_burned_in(file, called, layout.photometric, allowed=options.allow_burned_in)
    said = _said(file, layout)
    if kind == "segments":
        source = segments.segmented(file.header)
        return [
            shared | {"kind": "volume", "derived_from": source, "attributes": {**said, **made.pop("said")}} | made
            for made in segments.write(file, layout, folder, start, options.limits)
        ]
    meta, more, numbered = images.write(file, layout, folder / f"{start}images.npy", options.limits)
    side = attributes.laterality(file.header)
    return [
        shared
        | {"kind": "images", "file": f"{start}images.npy", "meta": meta, "numbered": numbered, "laterality": side}
        | {"attributes": {**said, **more}}
    ]


def _said(file: File, layout: pixels.Layout) -> dict[str, Any]:
    said = {"format": name, "transfer_syntax": file.opened.syntax, "photometric": layout.photometric}
    return said | attributes.of_header(file.header)


def _values(file: File, called: str) -> dict[str, Any]:
    """What the values of a volume are."""
    said: dict[str, Any] = {"unit": _UNITS[called]} if called in _UNITS else {}
    if called == "RTDOSE" and dataset.text(file.header, "DoseUnits") == "GY":
        said["unit"] = "Gy"
    if called == "PT":
        said |= {"unit": "Bq/ml"} if dataset.text(file.header, "Units") == "BQML" else {}
        factor = attributes.suv_factor(file.header)
        said |= {} if factor is None else {"suv_bw_factor": factor}
    return said


def _content(file: File) -> str:
    """A hash of all that is in a file after its beginning."""
    digest = hashlib.sha256()
    file.opened.file.seek(file.opened.dataset_at)
    while piece := file.opened.file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()
