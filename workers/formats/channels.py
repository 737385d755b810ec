"""What channels of a recording are called, measure and are held against: what is not on an allow-list is dropped.

A label may hold a name (`EEG John Smith`), so a label stays only where each of its words is one of the field.
"""

import re
from collections.abc import Sequence

_TYPES = """EEG EOG VEOG HEOG EMG ECG SEEG ECOG DBS MEGMAG MEGGRADPLANAR MEGGRADAXIAL MEGREFMAG MEGREFGRADAXIAL TRIG RESP PPG GSR
    TEMP AUDIO PUPIL EYEGAZE SYSCLOCK MISC REF ADC DAC HLU FITERR NIRS OTHER"""
TYPES = frozenset(_TYPES.split())
"""Channel types of BIDS that `channel_types` may have, beside `other` for what is not known."""
_PREFIXES = {"EEG": "EEG", "EOG": "EOG", "EMG": "EMG", "ECG": "ECG", "EKG": "ECG"}
_ELECTRODE = re.compile(
    r"(?:(?:FP|AFP?|AFF|F|FT|FFT|FC|FFC|FCC|FTT|T|TP|TTP|TPP|C|CCP|CP|CPP|P|PPO|PO|POO|O|OI|I)(?:Z|\d{1,2}H?)|NZ|[AM][12])",
    re.IGNORECASE,
)
"""Of the 10-20, 10-10 and 10-5 systems."""
_REFERENCE = re.compile(r"(?:REF|LE|AVG|AV|AR|[AM]1[AM]2)", re.IGNORECASE)
_FIELD = """eeg eog emg ecg ekg meg seeg ecog ieeg veog heog exg aux misc dc gsr eda ppg egg dbs sti stim status trigger trig event
    marker markers annotations left right l r horizontal vertical horiz vert upper lower hor ver loc roc chin submental mental
    leg arm tib tibialis anterior ant post lat rat plm masseter deltoid resp respiration nasal oral oro oronasal flow airflow therm
    thermistor cannula press pressure ptaf pneumo thorax thor thoracic chest abdomen abdo abdominal abd rip sum effort snore mic
    sound audio spo2 sao2 osat sat ox pulse hr heart rate pr pleth plethysmogram plethysmograph bpm position pos body light lux
    temp temperature rectal skin core room co2 etco2 tcco2 cpap ipap epap leak volume tidal photic acc accel accelerometer gyro battery
    impedance ref gnd ground avg average av ave ar le lm rm mastoid linked ears ear common pol signal ch chan channel dif diff
    ii iii avr avl avf bio sys chpi lpa rpa nasion vref hz raw"""
_WORDS = frozenset(_FIELD.split())
_CODE = re.compile(r"[A-Z]|\d{1,4}|[A-Z]'?\d{1,3}'?|[A-Z]{2,3}'?\d{1,2}'?", re.IGNORECASE)
_BOUNDARY = re.compile(r"[\s\-:/._+,()\[\]]+")
_LABEL_LENGTH = 40

_COMMON = {
    "common": ("ref", "common", "common reference"),
    "average": ("avg", "av", "ave", "ar", "average", "averef", "average reference", "common average", "common average reference", "car"),
    "linked ears": ("le", "a1a2", "linked ears", "a1+a2", "a1-a2", "linked earlobes"),
    "linked mastoids": ("lm", "m1m2", "linked mastoids", "averaged mastoids", "average mastoids", "mastoids", "tp9tp10"),
    "nose": ("nose", "nose tip"),
    "left mastoid": ("left mastoid",),
    "right mastoid": ("right mastoid",),
}  # fmt: skip
_SAID = {said: name for name, texts in _COMMON.items() for said in texts}

_MICRO = ("µ", "μ", "Âµ", "Î¼")
"""Two code points look like micro; the last two are their UTF-8 read as Latin-1."""
_UNITS = """V mV uV nV pV A mA uA nA pA % Hz kHz s ms min Ohm kOhm MOhm S uS nS T mT uT nT pT fT T/m fT/cm fT/mm lx L mL L/min mL/min
    L/s mL/s deg rad Pa kPa hPa m cm mm m/s2 m/s K Cel mm[Hg] cm[H2O] /min mol/L umol/L mmol/L W mW"""
_SAME = _UNITS.split()
_UCUM = {unit.lower(): unit for unit in _SAME if unit not in ("mT", "MOhm", "S", "mW", "pT", "pA", "pV", "nS")} | {
    "c": "Cel", "°c": "Cel", "degc": "Cel", "oc": "Cel", "mmhg": "mm[Hg]", "cmh2o": "cm[H2O]", "percent": "%", "bpm": "/min", "1/min": "/min",
    "lux": "lx", "°": "deg", "volt": "V", "volts": "V", "microv": "uV", "microvolt": "uV", "microvolts": "uV", "millivolt": "mV", "sec": "s", "msec": "ms",
    "ohms": "Ohm", "ω": "Ohm", "kω": "kOhm", "lpm": "L/min", "m/s^2": "m/s2", "m/s²": "m/s2", "muv": "uV",
}  # fmt: skip


def label(text: str, number: int) -> str:
    """A channel's name as the file has it where all its words are of the field, else `ch` and its number from 1 on."""
    text = " ".join(text.split())
    words = [word for word in _BOUNDARY.split(text) if word]
    few = len(text) <= _LABEL_LENGTH and sum(word.isdigit() for word in words) <= 1  # more may be a date
    return text if words and few and all(map(_known, words)) else f"ch{number}"


def _known(word: str) -> bool:
    stem = word.lower().rstrip("0123456789'+")
    few = len(word) - len(stem) <= 4
    return bool((stem in _WORDS and few) or word.lower() in _WORDS or _ELECTRODE.fullmatch(word)
                or _REFERENCE.fullmatch(word) or _CODE.fullmatch(word))  # fmt: skip


def channel_type(text: str) -> str:
    """EEG, EOG, EMG, ECG or other: by the prefix that EDF+ prescribes, else by the 10-20 and 10-10 names."""
    words = text.upper().split()
    for prefix, kind in _PREFIXES.items():
        if words and re.match(rf"[HV]?{prefix}(?![A-Z])", words[0]):
            return kind
    parts = re.split(r"[-:/]", text.strip())
    if len(words) != 1 or not _ELECTRODE.fullmatch(parts[0]):
        return "other"
    return "EEG" if all(_ELECTRODE.fullmatch(p) or _REFERENCE.fullmatch(p) for p in parts[1:]) else "other"


def stated_type(text: str) -> str | None:
    """A type of BIDS that a file or a sidecar states, None where it is none."""
    text = text.strip().upper()
    return None if text not in TYPES else "other" if text in ("OTHER", "MISC") else text


def unit(text: str) -> str | None:
    """A unit in UCUM, None where it is not known."""
    for micro in _MICRO:
        text = text.replace(micro, "u")
    text = text.strip()
    return text if text in _SAME else _UCUM.get(text.lower())


def reference(text: str) -> str | None:
    """What electrodes are held against, as a file states it: an electrode, `average`, `linked ears`, …; else None."""
    text = " ".join(text.split())
    return _SAID.get(text.lower()) or (text if _ELECTRODE.fullmatch(text) else None)


def reference_of(text: str) -> str | None:
    """What a label says that its channel is held against (`EEG Fpz-Cz`: Cz), None where it does not."""
    parts = re.split(r"[-:/]", text.strip().split(" ")[-1])
    return reference(parts[1]) if len(parts) == 2 and parts[0] else None


def modality(types: Sequence[str]) -> str | None:
    """EEG, MEG or None, by what a recording's channels are."""
    if any(kind.startswith("MEG") for kind in types):
        return "MEG"
    return "EEG" if set(types) & {"EEG", "SEEG", "ECOG"} else None
