"""What of a header may enter the lake, after the Basic Profile of PS3.15 (table E.1-1), and stricter where a text is free.

Numbers of the acquisition are kept; texts only if they are on a list of the standard's own terms, or of makers and kernels
that are known. Nothing of a person, a device's number, a place, a description or a private element; dates and UIDs go to
the parent alone, which shifts the ones and makes keyed hashes of the others.
"""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import dataset

NUMBERS: Mapping[str, str] = {
    "KVP": "kvp",
    "XRayTubeCurrent": "tube_current_ma",
    "ExposureTime": "exposure_time_ms",
    "Exposure": "exposure_mas",
    "SliceThickness": "slice_thickness_mm",
    "SpacingBetweenSlices": "spacing_between_slices_mm",
    "GantryDetectorTilt": "gantry_tilt",
    "SpiralPitchFactor": "pitch",
    "ReconstructionDiameter": "reconstruction_diameter_mm",
    "DistanceSourceToDetector": "source_to_detector_mm",
    "DistanceSourceToPatient": "source_to_patient_mm",
    "BodyPartThickness": "body_part_thickness_mm",
    "CompressionForce": "compression_force_n",
    "EchoTime": "echo_time_ms",
    "RepetitionTime": "repetition_time_ms",
    "InversionTime": "inversion_time_ms",
    "FlipAngle": "flip_angle",
    "EchoTrainLength": "echo_train_length",
    "NumberOfAverages": "averages",
    "MagneticFieldStrength": "field_strength_t",
    "ImagingFrequency": "imaging_frequency_mhz",
    "PixelBandwidth": "pixel_bandwidth_hz",
    "DiffusionBValue": "b_value",
    "ActualFrameDuration": "frame_duration_ms",
    "PixelPaddingValue": "padding_value",
    "PixelPaddingRangeLimit": "padding_range_limit",
    "BitsStored": "bits_stored",
    "TransducerFrequency": "transducer_frequency_khz",
}
WINDOWS = {"WindowCenter": "window_centre", "WindowWidth": "window_width"}
_TERMS: Mapping[str, tuple[str, frozenset[str]]] = {
    "BodyPartExamined": (
        "body_part",
        dataset.words(
"ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS "
            "CALF CAROTID CEREBELLUM CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA "
            "CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT "
            "FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG "
            "LIVER LSPINE LSSPINE LUNG MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN "
            "NECKCHESTABDPELV NOSE OPTICCANAL ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RECTUM "
            "RIB SACRUM SCALP SCAPULA SCLERA SCROTUM SELLA SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM "
            "STOMACH SUBMANDIBULAR TESTIS THIGH THUMB THYMUS THYROID TIBIA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA "
            "URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
),
    ),
    "ViewPosition": (
        "view_position",
        dataset.words(
"AP PA LL RL RLD LLD RLO LLO LATERAL LAT CC MLO ML LM LMO FB SIO ISO XCCL XCCM XCC MLOID"
),
    ),
    "PatientPosition": (
        "patient_position",
        dataset.words(
"HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL"
),
    ),
    "MRAcquisitionType": ("mr_acquisition_type", frozenset(("1D", "2D", "3D"))),
    "ScanningSequence": ("scanning_sequence", frozenset(("SE", "IR", "GR", "EP", "RM"))),
    "SequenceVariant": ("sequence_variant", dataset.words(
"SK MTC SS TRSS SP MP OSP NONE"
)),
    "DoseUnits": ("dose_units", frozenset(("GY", "RELATIVE"))),
    "DoseType": ("dose_type", frozenset(("PHYSICAL", "EFFECTIVE", "ERROR"))),
    "DoseSummationType": (
        "dose_summation",
        dataset.words(
"PLAN MULTI_PLAN PLAN_OVERVIEW FRACTION BEAM BRACHY FRACTION_SESSION BEAM_SESSION BRACHY_SESSION "
            "CONTROL_POINT RECORD"
),
    ),
    "Units": (
        "units",
        dataset.words(
"CNTS NONE CM2 CM2ML PCNT CPS BQML MGMINML UMOLMINML MLMING MLG 1CM UMOLML PROPCNTS PROPCPS MLMINML "
                  "MLML GML STDDEV SUV"
),
    ),
    "DecayCorrection": ("decay_correction", frozenset(("NONE", "START", "ADMIN"))),
    "LossyImageCompression": ("lossy", frozenset(("00", "01"))),
    "PresentationIntentType": ("presentation_intent", frozenset(("FOR PRESENTATION", "FOR PROCESSING"))),
    "SegmentationType": ("segmentation_type", frozenset(("BINARY", "FRACTIONAL", "LABELMAP"))),
    "SegmentationFractionalType": ("fractional_type", frozenset(("PROBABILITY", "OCCUPANCY"))),
}  # fmt: skip
"""Elements whose values are terms: how they are called here, and the terms."""
_MAKERS = {
    "SIEMENS": "Siemens", "GE": "GE", "GENERAL ELECTRIC": "GE", "PHILIPS": "Philips", "CANON": "Canon",
    "TOSHIBA": "Toshiba", "HITACHI": "Hitachi", "FUJI": "Fujifilm", "FUJIFILM": "Fujifilm", "HOLOGIC": "Hologic", "CARESTREAM": "Carestream",
    "AGFA": "Agfa", "KONICA": "Konica Minolta", "SHIMADZU": "Shimadzu", "SAMSUNG": "Samsung", "VARIAN": "Varian",
    "ELEKTA": "Elekta", "UIH": "United Imaging", "UNITED IMAGING": "United Imaging", "PICKER": "Picker", "ACUSON": "Acuson",
    "MINDRAY": "Mindray", "KODAK": "Kodak", "BRUKER": "Bruker", "ESAOTE": "Esaote", "ACCURAY": "Accuray",
}  # fmt: skip
"""How a maker's name begins."""
_KERNEL = re.compile(
    r"(?:STANDARD|SOFT|BONE|BONEPLUS|LUNG|DETAIL|EDGE|CHEST|[ABCDEFL]|Y[A-D]|FC\d\d|[A-Z][a-z]?\d\d[a-z]?)"
)
"""GE's by their names, Philips' by one letter, Canon's by FC and Siemens' by a letter and the sharpness."""
_TYPES = dataset.words(
    "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER HELICAL CT_SOM5 REFORMATTED MPR AVERAGE STATIC DYNAMIC GATED "
    "RECON TOMO WHOLE BODY M P R I M_SE M_IR M_FFE MAGNITUDE PHASE REAL IMAGINARY ADC TRACE FA DIFFUSION PERFUSION "
    "MIN MAX MIP PROJECTION VOLUME NONE OTHER MONOENERGETIC"
)
_LARGEST = 1e9


def common(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Attributes that are the same in all files of an item."""
    return {key: value for key, value in said[0].items() if all(other.get(key) == value for other in said[1:])}


def of_header(header: Any) -> dict[str, Any]:
    """Attributes of one header."""
    said: dict[str, Any] = {}
    for keyword, name in NUMBERS.items():
        one = dataset.number(header, keyword)
        if one is not None and abs(one) < _LARGEST:
            said[name] = int(one) if one == int(one) else one
    for keyword, name in WINDOWS.items():
        several = dataset.numbers(header, keyword)
        if several and max(map(abs, several)) < _LARGEST:
            said[name] = list(several[:8])
    for keyword, (name, terms) in _TERMS.items():
        values = [one.strip() for one in dataset.texts(header, keyword)]
        if values and all(one in terms for one in values):
            said[name] = values[0] if len(values) == 1 else values
    said["image_type"] = image_type(dataset.texts(header, "ImageType"))
    maker = (dataset.text(header, "Manufacturer") or "").upper()
    said["manufacturer"] = next((name for start, name in _MAKERS.items() if _starts(maker, start)), None)
    kernels = dataset.texts(header, "ConvolutionKernel")
    said["kernel"] = kernels[0] if kernels and _KERNEL.fullmatch(kernels[0]) else None
    if dataset.value(header, "ContrastBolusAgent") is not None or dataset.items(header, "ContrastBolusAgentSequence"):
        said["contrast"] = True
    return {key: value for key, value in said.items() if value not in (None, [])}


def image_type(values: Sequence[str]) -> list[str]:
    """Values of an image type that are the standard's, or usual; others are `?`, which keeps their places."""
    return [value if value in _TYPES else "?" for value in values]


def _starts(maker: str, start: str) -> bool:
    return re.match(rf"{re.escape(start.strip())}(?![A-Z0-9])", maker) is not None


def laterality(header: Any) -> str | None:
    """L, R or B, if it is said."""
    for keyword in ("ImageLaterality", "Laterality"):
        found = dataset.text(header, keyword)
        if found in ("L", "R", "B"):
            return found
    return None


def acquired_at(header: Any) -> str | None:
    """When it was acquired, as ISO 8601, for the parent to shift or drop."""
    offset = re.fullmatch(r"([+-]\d\d)(\d\d)", dataset.text(header, "TimezoneOffsetFromUTC") or "")
    zone = f"{offset[1]}:{offset[2]}" if offset else ""
    for keyword in ("AcquisitionDateTime", "FrameAcquisitionDateTime"):
        if made := _moment(dataset.text(header, keyword) or "", zone):
            return made
    for what in ("Acquisition", "Content", "Series", "Study"):
        date, time = dataset.text(header, f"{what}Date") or "", dataset.text(header, f"{what}Time") or ""
        if made := _moment(date.replace(".", "") + time.replace(":", ""), zone) or _moment(date.replace(".", ""), zone):
            return made
    return None


def _moment(raw: str, zone: str) -> str | None:
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)?(\d\d)?(\.\d{1,6})?)?([+-]\d{4})?", raw)
    if found is None:
        return None
    year, month, day, hour, minute, second, part, own = found.groups()
    text = f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}{part or ''}"
    text += f"{own[:3]}:{own[3:]}" if own else zone
    try:
        dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return text


def suv_factor(header: Any) -> float | None:
    """What turns Bq/ml into g/ml (SUV by body weight), where decay is corrected to the start or to administration.

    The weight and the dose themselves are not kept.
    """
    if dataset.text(header, "Units") != "BQML":
        return None
    drug = dataset.first(header, "RadiopharmaceuticalInformationSequence")
    weight, dose = dataset.number(header, "PatientWeight"), drug and dataset.number(drug, "RadionuclideTotalDose")
    half_life = drug and dataset.number(drug, "RadionuclideHalfLife")
    if not weight or not dose or not half_life or min(weight, dose, half_life) <= 0:
        return None
    if dataset.text(header, "DecayCorrection") == "ADMIN":
        return weight * 1000.0 / dose
    if dataset.text(header, "DecayCorrection") != "START":
        return None
    date = dataset.text(header, "SeriesDate") or ""
    scan = _moment(date + (dataset.text(header, "SeriesTime") or "?"), "")
    given = _moment(dataset.text(drug, "RadiopharmaceuticalStartDateTime") or "?", "")
    given = given or _moment(date + (dataset.text(drug, "RadiopharmaceuticalStartTime") or "?"), "")
    if scan is None or given is None:
        return None
    times = [dt.datetime.fromisoformat(moment).replace(tzinfo=None) for moment in (given, scan)]
    waited = (times[1] - times[0]).total_seconds()
    if not 0 <= waited < 86400:
        return None
    return float(weight * 1000.0 / (dose * 2.0 ** (-waited / half_life)))
