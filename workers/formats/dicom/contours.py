"""RT structure sets: outlines of structures, as points.

`contours.npy` has (N, 4) float64: x, y, z in RAS mm, and the number of the contour, counted from 0; a point is what the file
has, with two signs changed. A name of a structure is free text: it is kept only if it is one of a nomenclature's (after AAPM
TG-263) or a target's (GTV, CTV, PTV and their kin); else the structure has its number and its type.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from .. import Limits
from . import dataset, series
from .dataset import File

TYPES = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_INTERPRETED = dataset.words(
    "EXTERNAL PTV CTV GTV TREATED_VOLUME IRRAD_VOLUME BOLUS AVOIDANCE ORGAN MARKER REGISTRATION ISOCENTER CONTRAST_AGENT "
    "CAVITY BRACHY_CHANNEL BRACHY_ACCESSORY BRACHY_SRC_APP BRACHY_CHNL_SHLD SUPPORT FIXATION DOSE_REGION CONTROL "
    "DOSE_MEASUREMENT ITV"
)
_ORGANS = dataset.words(
    "A_AORTA A_CAROTID A_CORONARY A_LAD A_PULMONARY ANUS AORTA APPENDIX AXILLA BAG_BOWEL BLADDER BODY BONE BONE_MANDIBLE "
    "BONE_PELVIC BONEMARROW BOWEL BOWEL_LARGE BOWEL_SMALL BRACHIALPLEX BRACHIALPLEXUS BRAIN BRAINSTEM BREAST BREASTS BRONCHUS "
    "CANAL_ANAL CARINA CAUDAEQUINA CAVITY_ORAL CEREBELLUM CEREBRUM CERVIX CHESTWALL COCHLEA COLON COLON_SIGMOID CORD CORNEA "
    "DUODENUM EAR_INTERNAL EAR_MIDDLE ESOPHAGUS EXTERNAL EYE EYES FEMUR FEMUR_HEAD FEMURHEAD GALLBLADDER GENITALS GLND_ADRENAL "
    "GLND_LACRIMAL GLND_SUBMAND GLND_THYROID GLOTTIS HEART HIPPOCAMPUS HYPOTHALAMUS ILEUM JEJUNUM JOINT_TM KIDNEY KIDNEYS "
    "LARYNX LENS LENSES LIPS LIVER LN LN_AX LN_IMN LUNG LUNGS MANDIBLE MUSC_CONSTRICT NASOPHARYNX NIPPLE OPTICCHIASM OPTICNRV "
    "OPTICNERVE ORAL_CAVITY OROPHARYNX OVARY PANCREAS PAROTID PAROTIDS PELVIS PENILEBULB PENIS PERICARDIUM PHARYNX PITUITARY "
    "PROSTATE PROSTATEBED RECTUM RIB SACRUM SCALP SEMINALVES SKIN SPINALCANAL SPINALCORD SPINALCORD_PRV SPINAL_CORD SPLEEN "
    "STERNUM STOMACH TEMPORALLOBE TESTIS THYROID TONGUE TRACHEA TUMORBED TUMOR_BED TUMOUR_BED URETER URETHRA UTERUS VAGINA "
    "VESSEL VULVA"
)
_SIDE = r"(?:_?(?:L|R|LT|RT|LEFT|RIGHT|BILAT|PRV\d{0,2}))*"
_SIDE_FIRST = re.compile(r"(?:L|R|LT|RT|LEFT|RIGHT)_(.+)")
_TARGET = re.compile(
    r"(?:GTV|CTV|PTV|ITV|IGTV|ICTV|TV)(?:[NPTSV]|_?BOOST|_?EVAL|_?LOW|_?MID|_?HIGH|_?OPT){0,2}(?:_?\d{1,4})?(?:_?OPT)?"
)


def standard_name(found: str | None) -> str | None:
    """A structure's name if it is a standard one, case and separators aside; else None."""
    plain = re.sub(r"[\s\-.]+", "_", (found or "").strip().upper())
    bare = _SIDE_FIRST.sub(r"\1", plain)
    if plain in _ORGANS or bare in _ORGANS or _TARGET.fullmatch(plain):
        return (found or "").strip()
    sided = re.fullmatch(rf"([A-Z_]+?){_SIDE}", plain)
    return (found or "").strip() if sided and sided[1] in _ORGANS else None


def write(file: File, out: Path, limits: Limits) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Write the points; gives `meta`, what to say of it, and the series that was outlined. Raises ItemError."""
    named = {dataset.integer(one, "ROINumber"): one for one in dataset.items(file.header, "StructureSetROISequence")}
    types = {
        dataset.integer(one, "ReferencedROINumber"): dataset.text(one, "RTROIInterpretedType")
        for one in dataset.items(file.header, "RTROIObservationsSequence")
    }
    rois = []
    for number in sorted(number for number in named if number is not None):
        kind = types.get(number)
        name = standard_name(dataset.text(named[number], "ROIName"))
        rois.append({"number": number, "name": name, "type": kind if kind in _INTERPRETED else None})
    contours: list[list[Any]] = []
    count = 0
    body = out.with_suffix(".points")
    with body.open("xb") as points:
        for number, kind, found in _contours(file.header):
            contours.append([number, count, len(found), kind])
            count += len(found)
            if count * 32 > limits.item_bytes:
                raise ItemError("too_large", "its contours have more points than max_item_bytes; raise it")
            numbered = np.column_stack([series.to_ras(found), np.full(len(found), float(len(contours) - 1))])
            points.write(numbered.astype("<f8").tobytes())
    if not contours:
        raise ItemError("unsupported", "it names structures, but outlines none")
    with out.open("xb") as made, body.open("rb") as points:
        np.lib.format.write_array_header_1_0(made, {"descr": "<f8", "fortran_order": False, "shape": (count, 4)})
        while piece := points.read(2**20):
            made.write(piece)
    body.unlink()
    said = {"structures": len(rois), "unnamed_structures": sum(one["name"] is None for one in rois)}
    return {"contours": contours, "rois": rois}, said, _outlined(file.header)


def _contours(header: Any) -> Iterator[tuple[int, str, np.ndarray]]:
    """(number of the structure, kind, points (n, 3) in DICOM's system) of each contour. Raises ItemError."""
    for roi in dataset.items(header, "ROIContourSequence"):
        number = dataset.integer(roi, "ReferencedROINumber")
        if number is None:
            raise ItemError("header_lies", "a contour belongs to no structure")
        for contour in dataset.items(roi, "ContourSequence"):
            kind = dataset.text(contour, "ContourGeometricType")
            if kind not in TYPES:
                raise ItemError("header_lies", "a contour is of no kind that the standard has")
            yield number, kind, _points(contour)


def _points(contour: Any) -> np.ndarray:
    """From the bytes: an object for each number, as pydicom makes them, would need thirty times their memory."""
    try:
        raw = contour.get_item("ContourData").value
        if not isinstance(raw, bytes):
            raw = "\\".join(str(one) for one in raw).encode()
        found = np.array(raw.rstrip(b" \0").split(b"\\"), dtype="S16").astype(np.float64)
        claimed = dataset.integer(contour, "NumberOfContourPoints")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ItemError("header_lies", "the points of a contour are not numbers") from error
    if len(found) % 3 or not np.isfinite(found).all() or (claimed is not None and claimed != len(found) // 3):
        raise ItemError("header_lies", "a contour has another number of points than it claims")
    return found.reshape(-1, 3)


def _outlined(header: Any) -> str | None:
    """The series whose slices were outlined, where there is one."""
    found = {
        dataset.uid(one, "SeriesInstanceUID")
        for frame in dataset.items(header, "ReferencedFrameOfReferenceSequence")
        for study in dataset.items(frame, "RTReferencedStudySequence")
        for one in dataset.items(study, "RTReferencedSeriesSequence")
    }
    return found.pop() if len(found) == 1 else None
