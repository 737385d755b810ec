"""brainmaze_eeg_models and openspindlenet (with PyWavelets <= 1.8) on openspindlenet's sample: make_spindles.py OUT.json"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import brainmaze_eeg_models.spindles._detector as detector_module
import numpy as np
import openspindlenet
import pywt
from brainmaze_eeg_models.spindles import SpindleDetector, scalogram
from brainmaze_utils.gaps import fill_gaps
from make_common import rounded, write
from openspindlenet.inference import detect_spindles
from scipy.signal import resample_poly

RECIPES = {
    "sample": ("x", 250.0),
    "sample_3_times": ("np.tile(x, 3)", 250.0),
    "sample_at_200_hz": ("resample_poly(x, 4, 5, padtype='line')", 200.0),
    "sample_at_500_hz": ("resample_poly(x, 2, 1, padtype='line')", 500.0),
    "sample_plus_1000": ("x + 1000.0", 250.0),
    "random_walk": ("np.random.default_rng(20240501).standard_normal(15000).cumsum()", 250.0),
    "flat_29_to_31_s": ("np.where((n >= 7250) & (n < 7750), 0.0, np.tile(x, 2))", 250.0),
    "flat_29_to_31_s_linear_fill": ("np.where((n >= 7250) & (n < 7750), 0.0, np.tile(x, 2))", 250.0),
    "flat_from_8960": ("np.where((n >= 8960) & (n < 9460), 0.0, np.tile(x, 2))", 250.0),
    "nan_29_to_31_s": ("np.where((n >= 7250) & (n < 7750), np.nan, np.tile(x, 2))", 250.0),
}
NOTES = """
names: x = np.loadtxt of openspindlenet/data/eeg_sample.txt (30 s at 250 Hz), n = np.arange(15000)
times: start, end and not_evaluated in seconds from the first sample
flat_from_8960: 2 s from the first sample of the second copy's spindle that starts at 5.84 s
flat_29_to_31_s_linear_fill: not the package's default: fill_gaps(x, fs, method='linear') to show what the filling does
network: predict_windows(x), one window: detection 30 x (confidence, centre in its second, duration / 2 s)
segmentation: the per sample probability of that window, samples 124, 374, 624, ...
scalogram: scalogram(x - x.mean())[:, ::750], 15 scales x 10, before z-scoring
openspindlenet: detect_spindles(file, 'eeg'), intervals / 250, most confident first (no demeaning)
"""


def main(out: Path) -> None:
    assert tuple(map(int, pywt.__version__.split(".")[:2])) <= (1, 8), "PyWavelets 1.9 changes the wavelet"
    source = Path(openspindlenet.__file__).parent / "data" / "eeg_sample.txt"
    x, detector = np.loadtxt(source), SpindleDetector("eeg", device="cpu", threads=1)
    names = {"np": np, "x": x, "n": np.arange(15000), "resample_poly": resample_poly}
    cases: dict[str, dict[str, Any]] = {}
    for name, (recipe, fs) in RECIPES.items():
        signal, start = eval(recipe, dict(names)), time.perf_counter()
        fill = partial(fill_gaps, method="linear") if name.endswith("linear_fill") else fill_gaps
        with mock.patch.object(detector_module, "fill_gaps", fill):
            result = detector.detect(signal, fs)
        cases[name] = {"fs": fs, "recipe": recipe, "seconds": rounded(time.perf_counter() - start, 3)}
        cases[name] |= {"count": len(result), "start": rounded(result.start), "end": rounded(result.end)}
        cases[name] |= {"confidence": rounded(result.confidence), "windows": result.params["n_windows"]}
        cases[name]["not_evaluated"] = rounded(result.not_evaluated[0])
    heads, own = detector.predict_windows(x), detect_spindles(str(source), "eeg")
    network = {name: rounded(head) for name, head in (("mean", x.mean()), ("std", x.std()))}
    network["detection"] = rounded(heads["detection"][0])
    network["segmentation"] = rounded(heads["segmentation"][0, 124::250])
    network["scalogram"] = rounded(scalogram(x - x.mean())[:, ::750])
    columns = zip(("start", "end", "confidence"), own["detection_intervals"].T, (250, 250, 1), strict=True)
    original = {name: rounded(column / unit) for name, column, unit in columns}
    original["detection"] = rounded(own["detection"])
    call = "SpindleDetector('eeg', device='cpu', threads=1).detect(signal, fs)"
    packages = "brainmaze-eeg-models brainmaze-utils numpy onnxruntime openspindlenet pywavelets scipy"
    write(out, call, NOTES, packages, {"cases": cases, "network": network, "openspindlenet": original})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
