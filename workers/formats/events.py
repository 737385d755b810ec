"""Events of a recording as `meta` has them: [onset in s, duration in s, name], of which only known names are kept.

An annotation is free text and may name the subject. It stays where each of its words is one of the field (sleep stages of
AASM and R&K, events of breathing and limbs, artefacts, stimulus and response codes, …); else its name is `other`.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from diastole.lake.errors import ItemError

MOST = 2**16
"""Events of one recording; more do not fit what the decoder may answer."""
OTHER = "other"
_FIELD = """sleep stage wake w n1 n2 n3 n4 rem nrem s1 s2 s3 s4 movement time mt unscored unknown undefined lights light on off out
    seizure seiz sz onset offset start end begin ictal preictal interictal postictal sharp wave waves spike spikes discharge discharges ied burst
    suppression slow delta theta alpha beta gamma rhythm spindle spindles complex k kcomplex hfo ripple ripples pled pleds lpd gpd
    artefact artifact artefacts artifacts bad noise noisy movements muscle blink blinks eye eyes open closed opened close
    eyesopen eyesclosed eo ec opening closing saccade rest resting task baseline stimulus stim response resp trigger trig marker event
    comment boundary new segment edge acq skip recording paused resumed gap calibration impedance check sync status target standard deviant
    novel oddball go nogo nontarget cue fixation feedback trial block correct incorrect error left right button press hit miss visual auditory
    tactile motor imagery real imagined hand hands foot feet fist fists tongue hyperventilation hv photic stimulation flash ips post
    obstructive central mixed apnea apnoea hypopnea hypopnoea apneas hypopneas rera respiratory effort related arousal arousals ar aro res lm plm plms
    spontaneous desaturation desat spo2 sao2 oxygen drop snore snoring snorevent cheyne stokes breathing periodic paradoxical limb leg
    legs body position supine prone upright bradycardia tachycardia asystole cpap pressure leak hypoventilation flow limitation tib tibial
    jerk awake drowsy cap phase a1 a2 a3 eog emg ecg eeg loud quiet video audio tone tones face faces word image picture
    t0 t1 t2 event1 square rt unsure swallow chew bruxism signal loss lost of the and to type unclassified normal abnormal background"""
_WORDS = frozenset(_FIELD.split())
_CODE = re.compile(r"(?:[srtm]|din?)\d{1,4}")
_LETTERS = frozenset("srtwnk?")
_LENGTH = 64


def name(text: str) -> str:
    """The text where all its words are known, with at most one letter and one number among them; else `other`."""
    text = text.strip()
    words = re.findall(r"[^\W_]+|\?", text.lower())
    numbers = sum(word.isdigit() for word in words)
    letters = sum(word in _LETTERS for word in words)
    known = all(
        w in _WORDS or w in _LETTERS or _CODE.fullmatch(w) or (w.isascii() and w.isdigit() and len(w) <= 5)
        for w in words
    )
    few = words and numbers <= 1 and letters <= 1 and len(text) <= _LENGTH and text.isascii() and text.isprintable()
    return text if known and few else OTHER  # fmt: skip


def listed(found: Iterable[tuple[float, float, str]], most: int = MOST) -> list[list[Any]]:
    """Events by onset, their names held to the allow-list. Raises ItemError for more than `most`."""
    kept: list[list[Any]] = []
    for onset, duration, text in found:
        if not math.isfinite(onset):
            continue  # EEGLAB marks removed events so
        length = duration if math.isfinite(duration) and duration > 0 else 0.0
        kept.append([round(float(onset), 9), round(float(length), 9), name(text)])
        if len(kept) > most:
            raise ItemError("too_large", f"it has more than {most} events; cut it, or remove those that are not needed")
    return sorted(kept)


def others(events: list[list[Any]]) -> int:
    """How many events have a name that is not kept."""
    return sum(event[2] == OTHER for event in events)
