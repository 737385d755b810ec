"""What a DICOM file is, by its SOP class; and whether names may be burnt into its pixels."""

from typing import Any, Literal

from diastole.lake.errors import ItemError

from . import dataset
from .dataset import File

Kind = Literal["slices", "images", "segments", "contours"]
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SLICES = {
    "2": "CT", "2.1": "CT", "2.2": "CT", "4": "MR", "4.1": "MR", "4.4": "MR", "128": "PT", "128.1": "PT", "130": "PT",
    "13.1.1": "XA", "13.1.2": "CT", "13.1.3": "MG", "20": "NM", "481.2": "RTDOSE",
}  # fmt: skip
"""Slices of a volume, one or more in a file; and what the lake calls them."""
_IMAGES = {
    "1": "CR", "1.1": "DX", "1.1.1": "DX", "1.2": "MG", "1.2.1": "MG", "1.3": "IO", "1.3.1": "IO", "3": "US", "3.1": "US",
    "6": "US", "6.1": "US", "7": "OT", "7.1": "OT", "7.2": "OT", "7.3": "OT", "7.4": "OT", "12.1": "XA", "12.1.1": "XA",
    "12.2": "RF", "12.2.1": "RF", "77.1.1": "ES", "77.1.2": "GM", "77.1.4": "XC", "77.1.5.1": "OP", "77.1.5.2": "OP",
    "481.1": "RTIMAGE",
}  # fmt: skip
_OTHER = {
    "9": "a waveform", "11": "a presentation state", "88": "a report", "104": "an encapsulated document", "66": "raw data",
    "481": "a radiotherapy plan or record", "77": "a video, a whole slide or an eye's scan", "4": "spectra",
    "30": "a parametric map", "6.2": "a volume of ultrasound", "67": "a real world mapping", "68": "a surface scan",
}  # fmt: skip
_MODALITIES = dataset.words(
    "CR CT DX ES GM IO IVUS MG MR NM OP OT PT PX RF RG RTDOSE RTIMAGE SM US XA XC BI BMD DG EPS GEN"
)
_CAPTURES = dataset.words("US OT XA RF ES GM XC")
"""Kinds that often have texts in their pixels: they must say that they have none."""
_PALETTE = "1.2.840.10008.5.1.4.39"
_INDEX = "1.2.840.10008.1.3.10"


def kind_of(file: File) -> tuple[Kind, str]:
    """How a file is read, and what the lake calls it. Raises ItemError: index_file, unsupported."""
    header, sop_class = file.header, file.sop_class
    if "DirectoryRecordSequence" in header or "FileSetID" in header or sop_class == _INDEX:
        raise ItemError("index_file", "it is a DICOMDIR, an index of other files; give these")
    what = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    if what in _SLICES:
        planar = what == "20" and "RECON TOMO" not in dataset.texts(header, "ImageType")
        return ("images" if planar else "slices"), _SLICES[what]
    if what in _IMAGES:
        said = dataset.text(header, "Modality")
        return "images", said if said in _MODALITIES and _IMAGES[what] == "OT" else _IMAGES[what]
    if what == "66.4":
        return "segments", "SEG"
    if what == "481.3":
        return "contours", "RTSTRUCT"
    if what in ("66.7",):
        raise ItemError("unsupported", "it is a label map; convert it to a binary segmentation")
    if not sop_class:
        raise ItemError("unsupported", "it does not say what it is (SOP class), or ends before that")
    parts = what.split(".")
    if sop_class.startswith(_PALETTE):
        raise ItemError("unsupported", "it is a palette, not an image, a dose or outlines")
    found = _OTHER.get(what) or _OTHER.get(".".join(parts[:2])) or _OTHER.get(parts[0]) if what else None
    raise ItemError("unsupported", f"it is {found or 'of a kind that is not read'}, not an image, a dose or outlines")


def check_burned_in(file: File, called: str, photometric: str, *, allowed: bool) -> None:
    """Refuse pixels that have texts in them, or may have: captures and colours that do not say that they have none.

    Raises ItemError.
    """
    said = dataset.text(file.header, "BurnedInAnnotation")
    if allowed or said == "NO":
        return
    if said == "YES":
        raise ItemError(
            "burned_in_annotation", "it says that texts are burnt into its pixels; allow that, or leave it out"
        )
    what = file.sop_class.removeprefix(_STORAGE)
    captured = (
        _IMAGES.get(what) in _CAPTURES
        or _colour(photometric)
        or "SCREEN SAVE" in dataset.texts(file.header, "ImageType")
    )
    if captured and called != "OP":
        raise ItemError(
            "burned_in_annotation",
            "it is a capture that does not say whether texts are burnt into its pixels; look at it, and allow that if not",
        )


def _colour(photometric: str) -> bool:
    return photometric not in ("MONOCHROME1", "MONOCHROME2")


def identity(header: Any, kind: Kind) -> dict[str, str | None]:
    """`key`, `subject` and `session`, for the parent to make hashes of.

    Slices, segments and contours belong to their series; an image is a source by itself, so its key is its own UID.
    """
    own = "SOPInstanceUID" if kind == "images" else "SeriesInstanceUID"
    return {
        "key": dataset.uid(header, own) or dataset.uid(header, "SOPInstanceUID"),
        "subject": dataset.text(header, "PatientID"),
        "session": dataset.uid(header, "StudyInstanceUID"),
    }
