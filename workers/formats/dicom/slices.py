"""The slices that files hold, each with its place in space: one for a single-frame file, one for each frame of others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from . import dataset
from .dataset import File
from .pixels import Layout

MARKS = (
    ("temporal_position", "TemporalPositionIdentifier"),
    ("trigger_time_ms", "TriggerTime"),
    ("frame_reference_time_ms", "FrameReferenceTime"),
    ("echo_time_ms", "EchoTime"),
    ("b_value", "DiffusionBValue"),
    ("gradient", "DiffusionGradientOrientation"),
    ("inversion_time_ms", "InversionTime"),
    ("flip_angle", "FlipAngle"),
    ("acquisition", "AcquisitionNumber"),
)
"""What may tell slices at one place apart, in the order in which it is tried: name, keyword."""


@dataclass(frozen=True)
class Slice:
    """One slice; lengths in mm, in the patient system of DICOM: x to the left, y to the back, z to the head (LPS)."""

    file: int
    """Which of the source's files."""
    frame: int
    layout: Layout
    position: tuple[float, ...] | None
    """Of the centre of the first voxel."""
    orientation: tuple[float, ...] | None
    """Unit vectors along a row, and along a column."""
    spacing: tuple[float, ...] | None
    """Between rows, and between columns."""
    between: float | None
    """What the header says of the distance between slices."""
    thickness: float | None
    rescale: tuple[float, float]
    """Slope and intercept."""
    segment: int | None = None
    """Of a segmentation."""
    image_type: tuple[str, ...] = ()
    marks: dict[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    """By keyword of MARKS."""


def of_file(file: File, number: int, layout: Layout) -> Iterator[Slice]:
    """The slices of a file. Raises ItemError."""
    header = file.header
    per_frame = dataset.items(header, "PerFrameFunctionalGroupsSequence")
    shared = dataset.first(header, "SharedFunctionalGroupsSequence")
    if per_frame and len(per_frame) != layout.frames:
        raise ItemError("header_lies", f"it describes {len(per_frame)} frames and claims {layout.frames}")
    if per_frame or shared is not None:
        for index in range(layout.frames):
            yield _enhanced(header, shared, per_frame[index] if per_frame else None, number, index, layout)
        return
    places = _offsets(header, layout)
    for index in range(layout.frames):
        yield _plain(header, number, index, layout, None if places is None else places[index])


def _plain(header: Any, number: int, index: int, layout: Layout, position: tuple[float, ...] | None) -> Slice:
    if "ModalityLUTSequence" in header:
        raise ItemError("unsupported", "its values stand for others by a table (modality LUT); apply it first")
    detector = dataset.first(header, "DetectorInformationSequence")
    orientation = dataset.measured(header, "ImageOrientationPatient", 6)
    if orientation is None and detector is not None:
        orientation = dataset.measured(detector, "ImageOrientationPatient", 6)
    dose = _one(header, "DoseGridScaling")
    return Slice(
        number,
        index,
        layout,
        position,
        _orthonormal(orientation),
        _spacing(dataset.measured(header, "PixelSpacing", 2)),
        _one(header, "SpacingBetweenSlices"),
        _one(header, "SliceThickness"),
        _rescale(header) if dose is None else (_slope(dose), 0.0),
        None,
        dataset.texts(header, "ImageType"),
        _marks(header),
    )


def _offsets(header: Any, layout: Layout) -> list[tuple[float, ...] | None] | None:
    """Positions of the frames of a file without functional groups: a dose grid, a tomogram of nuclear medicine, one slice."""
    detector = dataset.first(header, "DetectorInformationSequence")
    holder = header if "ImagePositionPatient" in header or detector is None else detector
    first = dataset.measured(holder, "ImagePositionPatient", 3)
    if layout.frames == 1:
        return [first]
    along = _orthonormal(dataset.measured(holder, "ImageOrientationPatient", 6))
    if first is None or along is None:
        return None
    across = np.cross(along[:3], along[3:])
    offsets = dataset.measured(header, "GridFrameOffsetVector")
    if offsets is not None:
        if len(offsets) != layout.frames:
            raise ItemError("header_lies", f"it has {len(offsets)} frame offsets and claims {layout.frames} frames")
        if (
            offsets[0] != 0
        ):  # places on z, not distances from the first frame; the standard has it for axial planes only
            if abs(abs(across[2]) - 1) > 1e-3 or abs(offsets[0] - first[2]) > 1e-2:
                raise ItemError("header_lies", "its frame offsets do not begin where its first frame lies")
            return [(first[0], first[1], offset) for offset in offsets]
    else:
        between = _one(header, "SpacingBetweenSlices")
        if between is None:
            return None
        offsets = tuple(between * index for index in range(layout.frames))
    return [tuple(float(n) for n in np.add(first, across * offset)) for offset in offsets]


def _enhanced(header: Any, shared: Any, own: Any, number: int, index: int, layout: Layout) -> Slice:
    def group(*keywords: str) -> Any:
        found = dataset.first(own, *keywords) if own is not None else None
        return found if found is not None else dataset.first(shared, *keywords) if shared is not None else None

    measures, transform = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    plane, turned = group("PlanePositionSequence"), group("PlaneOrientationSequence")
    holder = measures if measures is not None else header
    frame_type = next(
        (found for name in _FRAME_TYPES if (found := group(name)) is not None),
        None,
    )
    segment = group("SegmentIdentificationSequence")
    return Slice(
        number,
        index,
        layout,
        None if plane is None else dataset.measured(plane, "ImagePositionPatient", 3),
        _orthonormal(None if turned is None else dataset.measured(turned, "ImageOrientationPatient", 6)),
        _spacing(dataset.measured(holder, "PixelSpacing", 2)),
        _one(holder, "SpacingBetweenSlices"),
        _one(holder, "SliceThickness"),
        (1.0, 0.0) if transform is None else _rescale(transform),
        None if segment is None else dataset.integer(segment, "ReferencedSegmentNumber"),
        () if frame_type is None else dataset.texts(frame_type, "FrameType"),
        _enhanced_marks(group),
    )


_FRAME_TYPES = (
    "CTImageFrameTypeSequence",
    "MRImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "MRSpectroscopyFrameTypeSequence",
)


def _enhanced_marks(group: Any) -> dict[str, tuple[float, ...]]:
    places = (
        ("TemporalPositionIdentifier", ("FrameContentSequence",), "TemporalPositionIndex"),
        ("TriggerTime", ("CardiacSynchronizationSequence",), "NominalCardiacTriggerDelayTime"),
        ("EchoTime", ("MREchoSequence",), "EffectiveEchoTime"),
        ("DiffusionBValue", ("MRDiffusionSequence",), "DiffusionBValue"),
        (
            "DiffusionGradientOrientation",
            ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
            "DiffusionGradientOrientation",
        ),
        ("FlipAngle", ("MRTimingAndRelatedParametersSequence",), "FlipAngle"),
        ("AcquisitionNumber", ("FrameContentSequence",), "FrameAcquisitionNumber"),
    )
    marks = {}
    for mark, sequences, keyword in places:
        holder = group(*sequences)
        found = None if holder is None else dataset.numbers(holder, keyword)
        if found is not None:
            marks[mark] = found
    return marks


def _marks(header: Any) -> dict[str, tuple[float, ...]]:
    found = {keyword: dataset.numbers(header, keyword) for _, keyword in MARKS if keyword in header}
    return {keyword: values for keyword, values in found.items() if values}


def _orthonormal(found: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Two unit vectors at right angles. Raises ItemError where they are not, within a thousandth."""
    if found is None:
        return None
    row, column = np.array(found[:3]), np.array(found[3:])
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 2e-3:
        raise ItemError("header_lies", "the directions of its rows and columns are not at right angles")
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return tuple(float(n) for n in (*row, *(column / np.linalg.norm(column))))


def _spacing(found: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if found is not None and min(found) <= 0:
        raise ItemError("header_lies", "its pixels have no size")
    return found


def _rescale(holder: Any) -> tuple[float, float]:
    slope, intercept = _one(holder, "RescaleSlope"), _one(holder, "RescaleIntercept")
    return (1.0 if slope is None else _slope(slope), 0.0 if intercept is None else intercept)


def _slope(found: float) -> float:
    if found == 0:
        raise ItemError("header_lies", "its rescale slope is zero, so that its values mean nothing")
    return found


def _one(holder: Any, keyword: str) -> float | None:
    found = dataset.measured(holder, keyword, 1)
    return None if found is None else found[0]
