"""DICOM files for the tests: those that pydicom's package holds, and series made from its slices."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

FOLDER = Path(pydicom.__file__).parent / "data"
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
"""Directions of rows and columns, at right angles and along no axis."""


def packaged(name: str) -> Path:
    """A file of pydicom's package."""
    [found] = [path for path in FOLDER.rglob(name) if path.is_file()]
    return found


def files() -> list[Path]:
    """All files of pydicom's package that are data and not code."""
    return sorted(p for p in FOLDER.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".json"))


def slice_at(number: int, place: float, orientation=(1, 0, 0, 0, 1, 0), drift=(0, 0, 0), **fields: Any) -> Any:
    """A slice of CT of pydicom's, with its rows turned by `number`, so many mm along the normal."""
    made = copy.deepcopy(pydicom.dcmread(packaged("CT_small.dcm")))
    pixels = np.roll(made.pixel_array, 3 * number, axis=0)
    normal = np.cross(orientation[:3], orientation[3:])
    made.ImageOrientationPatient = list(orientation)
    made.ImagePositionPatient = [
        float(f"{n:.6f}") for n in np.array([-80.0, 30, 12]) + place * normal + np.array(drift)
    ]
    made.PixelSpacing = [0.5, 0.75]
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.InstanceNumber = (number * 7) % 11
    made.PixelData = pixels.tobytes()
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made


def write(folder: Path, slices: list[Any], seed: int = 0) -> tuple[Path, ...]:
    """Save slices under names that say nothing of their order; the paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    names = random.Random(seed).sample(range(1000, 9999), len(slices))
    for name, one in zip(names, slices, strict=True):
        one.save_as(folder / f"{name}")
    return tuple(sorted(folder.iterdir()))


def enhanced(slices: list[Any], **fields: Any) -> Any:
    """One multi-frame CT of several slices, their places in functional groups."""
    made = copy.deepcopy(slices[0])
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.NumberOfFrames = len(slices)
    made.PixelData = b"".join(one.PixelData for one in slices)

    def item(**values: Any) -> Any:
        found = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(found, keyword, value)
        return found

    turned, size = item(ImageOrientationPatient=made.ImageOrientationPatient), item(PixelSpacing=made.PixelSpacing)
    transform = item(RescaleSlope=made.RescaleSlope, RescaleIntercept=made.RescaleIntercept)
    made.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[turned],
            PixelMeasuresSequence=[size],
            PixelValueTransformationSequence=[transform],
        )
    ]
    made.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)]) for one in slices
    ]
    for keyword in (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(made, keyword)
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made
