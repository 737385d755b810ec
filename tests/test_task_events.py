"""Spindles of brainmaze-eeg-models in openspindlenet's sample, stored and damaged in several ways, against its own."""

from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.signal import resample_poly

from diastole.jobs.contract import refuse
from diastole.jobs.task import Unit
from diastole.lake.errors import ItemError, SpecError
from diastole.workers.recipes import recipe
from diastole.workers.tasks import make_task
from diastole.workers.tasks.signals import wavelets

from .published import data, drive, golden, new_lake, run, score, weights

GOLDEN = golden("spindles")
CASES = GOLDEN["cases"]
EXACT = ["sample", "sample_3_times", "sample_at_200_hz", "sample_at_500_hz", "sample_plus_1000"]


def signal(case):
    """The signal of a case and its rate, as its recipe makes it."""
    names = {"np": np, "x": data.eeg(), "n": np.arange(15000), "resample_poly": resample_poly}
    return eval(CASES[case]["recipe"], names), CASES[case]["fs"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """All recordings in one job, so that their windows share batches."""
    folder = tmp_path_factory.mktemp("eeg")
    (folder / "in").mkdir()

    def store(name, channels=None, labels=("EEG Cz",), **said):
        data.write_edf(folder / "in" / f"{name}.edf", channels, labels, **said)

    for case in [*EXACT, "flat_29_to_31_s", "flat_from_8960"]:
        values, rate = signal(case)
        store(case, [values], rate=rate)
    x, rng = data.eeg(), np.random.default_rng(1)
    store("millivolt", [x / 1000], unit="mV")
    store("four_channels", [x, rng.normal(0, 20, 7500), x[::-1], x], ["EEG Cz", "ECG", "EEG Pz", "EOG left"])
    store("no_eeg", [x, x], ["EOG left", "ECG"])
    store("short", [x[:7250]])
    store("slow", [resample_poly(x, 2, 5)], rate=100.0)
    store("no_event", [rng.normal(0, 10, 15000)])
    store("all_flat", [np.where(np.arange(7500) < 1, 1.0, 0.0)])
    with new_lake(folder) as lake:
        yield lake, score(lake, folder / "in", "spindles", modality="EEG")


def pairs(rows, known):
    """Rows beside the golden events that they overlap by more than half, and rows that have none."""
    matched, left = [], list(rows)
    for start, end, confidence in zip(known["start"], known["end"], known["confidence"], strict=True):
        best = max(left, key=lambda r: min(end, r["end_s"]) - max(start, r["start_s"]))
        assert min(end, best["end_s"]) - max(start, best["start_s"]) > (end - start) / 2, f"no event at {start:.2f} s"
        left.remove(best)
        shift = max(abs(best["start_s"] - start), abs(best["end_s"] - end))
        matched.append((shift, abs(best["confidence"] - confidence)))
    return np.array(matched), left


@pytest.mark.parametrize("case", EXACT)
def test_the_spindles_are_the_packages_own_to_10_ms_and_in_their_order(scored, case):
    rows, known = scored[1].rows[case], CASES[case]
    assert [row["ordinal"] for row in rows] == list(range(known["count"]))
    deviations = np.abs(
        [[r["start_s"] - s, r["end_s"] - e] for r, s, e in zip(rows, known["start"], known["end"], strict=True)]
    )
    assert deviations.max() <= 0.01
    confidence = np.abs(np.array([row["confidence"] for row in rows]) - known["confidence"])
    assert confidence.max() <= 0.01


@pytest.mark.parametrize("case", [*EXACT, "flat_29_to_31_s", "flat_from_8960"])
def test_the_evaluated_time_is_all_but_gaps_and_their_margins(scored, case):
    row, known = scored[1].items[case], CASES[case]
    missing = sum(stop - start for start, stop in known["not_evaluated"])
    assert row["evaluated_s"] == pytest.approx([row["duration_s"] - missing], abs=0.1)
    assert row["events_per_min"] == pytest.approx(row["n_rows"] / (row["evaluated_s"][0] / 60))


def test_a_flat_stretch_moves_the_other_spindles_by_15_ms_at_most_and_adds_none(scored):
    matched, left = pairs(scored[1].rows["flat_29_to_31_s"], CASES["flat_29_to_31_s"])
    assert left == []
    assert matched.max(axis=0) == pytest.approx([0, 0], abs=0.015)


def test_a_flat_stretch_over_a_spindle_leaves_only_that_one_out(scored):
    # Where 2 s of 30 are gone, and with them the strongest spindle, what is left stands out more: a candidate that
    # has confidence 0.41 in the whole sample comes to 0.53 in both of its copies. The package fills the gap otherwise
    # and keeps it below 0.5.
    matched, left = pairs(scored[1].rows["flat_from_8960"], CASES["flat_from_8960"])
    assert matched.max(axis=0) == pytest.approx([0, 0], abs=0.025)
    assert [round(row["start_s"]) for row in left] == [25, 55]
    assert all(row["confidence"] < 0.55 for row in left)
    assert not any(33 < row["start_s"] < 40 for row in scored[1].rows["flat_from_8960"])


def test_the_unit_of_the_recording_changes_nothing(scored):
    for one, other in zip(scored[1].rows["millivolt"], scored[1].rows["sample"], strict=True):
        for name in ("start_s", "end_s", "confidence"):
            assert one[name] == pytest.approx(other[name], abs=1e-4)


def test_only_eeg_channels_are_searched_each_on_its_own(scored):
    row, rows = scored[1].items["four_channels"], scored[1].rows["four_channels"]
    assert row["channels"] == ["EEG Cz", "EEG Pz"]
    assert row["evaluated_s"] == pytest.approx([30, 30])
    first = [r for r in rows if r["channel"] == "EEG Cz"]
    assert [r["start_s"] for r in first] == pytest.approx([r["start_s"] for r in scored[1].rows["sample"]], abs=1e-3)
    assert {r["channel"] for r in rows} <= {"EEG Cz", "EEG Pz"}


def test_a_job_may_name_the_channels(scored):
    lake, before = scored
    found = run(lake, "spindles", {"channels": ["EOG left"]}, only=["four_channels", "sample"])
    row = found.items["four_channels"]
    assert row["channels"] == ["EOG left"]
    known = [r["start_s"] for r in before.rows["sample"]]
    assert [r["start_s"] for r in found.rows["four_channels"]] == pytest.approx(known, abs=1e-3)
    assert (found.items["sample"]["status"], found.items["sample"]["error_code"]) == ("failed", "channel_missing")


@pytest.mark.parametrize(
    ("item", "code", "said"),
    [
        ("no_eeg", "no_eeg_channel", "options.channels"),
        ("short", "wrong_duration", "29 s is outside of 30"),
        ("slow", "wrong_rate", "100 Hz is outside of 200"),
    ],
)
def test_what_cannot_be_searched_fails_with_the_reason(scored, item, code, said):
    row = scored[1].items[item]
    assert (row["status"], row["error_code"], row["n_rows"]) == ("failed", code, 0)
    assert said in row["error"]


@pytest.mark.fault(50)
def test_a_recording_without_events_is_known_as_scored(scored):
    row = scored[1].items["no_event"]
    assert (row["status"], row["n_rows"], row["events_per_min"]) == ("scored", 0, 0.0)
    assert row["evaluated_s"] == pytest.approx([60])
    assert scored[1].rows["no_event"] == []


def test_of_a_flat_channel_nothing_counts_as_evaluated(scored):
    row = scored[1].items["all_flat"]
    assert (row["status"], row["n_rows"], row["events_per_min"]) == ("scored", 0, None)
    assert row["evaluated_s"] == pytest.approx([0], abs=1e-6)


@pytest.fixture(scope="module")
def session():
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(weights("spindles", "main"), settings, providers=["CPUExecutionProvider"])


@pytest.fixture
def forward(session):
    def run_net(step, inputs):
        found = session.run(["detection"], {name: value.numpy() for name, value in inputs.items()})[0]
        run_net.said.append(found)
        return {"detection": torch.from_numpy(found)}

    run_net.said = []
    return run_net


def unit_of(values, rate=250.0, channels=("EEG",)):
    values = np.atleast_2d(values)
    meta = {"rate": rate, "channels": list(channels), "channel_types": ["EEG"] * len(values)}
    meta |= {"units": ["uV"] * len(values), "gain": [1.0] * len(values), "offset": [0.0] * len(values)}
    return Unit({"input": values}, {"input": meta})


def rows_of(result):
    names = list(result.rows)
    return [dict(zip(names, values, strict=True)) for values in zip(*result.rows.values(), strict=True)]


def test_nan_is_a_gap_like_a_flat_stretch(forward):
    values, rate = signal("nan_29_to_31_s")
    _, result = drive(make_task(recipe("spindles")), unit_of(values, rate), forward)
    matched, left = pairs(rows_of(result), CASES["nan_29_to_31_s"])
    assert left == []
    assert matched.max() <= 0.015
    assert result.columns["evaluated_s"] == pytest.approx([57.0])


def test_the_net_sees_and_says_what_it_does_in_the_package(forward):
    known = GOLDEN["network"]
    x = data.eeg()
    assert (x.mean(), x.std()) == pytest.approx((known["mean"], known["std"]), abs=1e-6)
    spectra = wavelets("shan6-13", (135.0, 270.0, 15), 10, 7500)
    image = np.abs(np.fft.ifft(np.fft.fft(x - x.mean(), spectra.shape[1]) * spectra)[:, :7500])
    assert image[:, ::750] == pytest.approx(np.array(known["scalogram"]), abs=1e-4)
    drive(make_task(recipe("spindles")), unit_of(x), forward)
    [said] = forward.said
    assert 1 / (1 + np.exp(-said[0])) == pytest.approx(np.array(known["detection"]), abs=2e-3)


def inputs_of(values, batch=1):
    task = make_task(recipe("spindles"))
    state = task.begin(unit_of(values))
    windows = task.windows(state, 0)[:batch]
    raw = [{"input": state.data[window.regions["input"]]} for window in windows]
    ready = [task.prepare(state, w, r) for w, r in zip(windows, raw, strict=True)]
    return {name: value.numpy() for name, value in task.encode(0, ready, "cpu").items()}


def test_what_the_net_sees_has_mean_0_and_deviation_1_of_what_is_no_gap():
    n = np.arange(7500)
    missing = (n >= 2000) & (n < 4000)
    for values in inputs_of(np.where(missing, 0.0, data.eeg() + 500)).values():
        known = values[0][:, ~missing].astype(float)
        assert known.mean(axis=1) == pytest.approx(np.zeros(len(known)), abs=1e-2)
        assert known.std(axis=1) == pytest.approx(np.ones(len(known)), abs=1e-2)


def test_a_window_that_does_not_vary_is_0_and_no_nan():
    task = make_task(recipe("spindles"))
    flat = {"signal": np.full(7500, 3.0), "valid": np.ones(7500, bool)}
    for values in task.encode(0, [flat], "cpu").values():
        assert not values.any()


def test_a_window_is_the_same_in_a_batch_as_alone():
    x = np.concatenate([data.eeg(), 3 * data.eeg()[::-1]])
    together, alone = inputs_of(x, batch=3), inputs_of(x)
    assert together["spectrogram"].shape == (3, 15, 7500)
    for name, values in alone.items():
        assert together[name][0] == pytest.approx(values[0], abs=1e-6)


def test_gaps_anywhere_raise_few_candidates_over_the_threshold(forward):
    # 10 gaps of 2 s, one at a time, in the 30 s sample: a straight line over the gap alone raised 7 candidates in 29
    # such gaps. Events that a gap touches are not compared.
    x, n, task = data.eeg(), np.arange(7500), make_task(recipe("spindles"))
    known = ("start", "end", "confidence")
    events = list(zip(*(CASES["sample"][name] for name in known), strict=True))
    added, shifts = 0, []
    for start in range(200, 6800, 660):
        gap = np.where((n >= start) & (n < start + 500), 0.0, x)
        _, result = drive(task, unit_of(gap), forward)
        away = [event for event in events if event[0] > start / 250 + 2.5 or event[1] < start / 250 - 0.5]
        matched, left = pairs(rows_of(result), dict(zip(known, zip(*away, strict=True), strict=True)))
        added += sum(not any(row["start_s"] < end and row["end_s"] > first for first, end, _ in events) for row in left)
        shifts.append(matched.max(axis=0))
    assert added <= 1
    assert np.max(shifts, axis=0)[0] <= 0.05
    assert np.max(shifts, axis=0)[1] <= 0.1


def test_events_at_the_border_of_windows_are_found_once(forward):
    x = np.concatenate([data.eeg()[:6000], data.eeg()])
    _, result = drive(make_task(recipe("spindles")), unit_of(x), forward)
    spans = sorted((row["start_s"], row["end_s"]) for row in rows_of(result))
    assert len(forward.said) == 3
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    assert len(spans) >= 6


def test_an_unknown_option_and_a_channel_that_is_not_there_are_said():
    with pytest.raises(SpecError, match="known options"):
        make_task(recipe("spindles"), options={"treshold": 0.4})
    task = make_task(recipe("spindles"), options={"channels": ["C3"]})
    with pytest.raises(ItemError, match="1 of the job's 1 channels"):
        task.begin(unit_of(data.eeg()))


def in_unit(unit):
    manifest = recipe("spindles")
    said = manifest.inputs["input"].model_copy(update={"unit": unit})
    return make_task(manifest.model_copy(update={"inputs": {"input": said}}))


@pytest.mark.parametrize(("unit", "factor"), [("V", 1e6), ("mV", 1e3), ("uV", 1.0), ("nV", 1e-3)])
def test_the_net_sees_the_unit_that_the_contract_names(unit, factor):
    task, stored = in_unit("uV"), unit_of(np.arange(7500.0))
    stored.meta["input"].update(units=[unit], gain=[2.0], offset=[5.0])
    state = task.begin(stored)
    [window] = task.windows(state, 0)
    ready = task.prepare(state, window, {"input": stored.data["input"][window.regions["input"]]})
    assert ready["signal"] == pytest.approx((2 * np.arange(7500.0) + 5) * factor, rel=1e-12)


@pytest.mark.parametrize("unit", ["mmHg", "", None])
def test_a_unit_that_is_no_voltage_fails_where_the_contract_names_one(unit):
    stored = unit_of(data.eeg())
    stored.meta["input"]["units"] = [unit]
    with pytest.raises(ItemError) as caught:
        in_unit("uV").begin(stored)
    assert caught.value.code == "unknown_unit"
    make_task(recipe("spindles")).begin(stored)


@pytest.mark.parametrize(("units", "refused"), [(["%"], True), ([None], True), (["mV", "%"], False), (["uV"], False)])
def test_a_recording_without_any_voltage_is_refused_by_its_row(units, refused):
    row = {"modality": "EEG", "shape": [len(units), 99999], "geometry": None, "sequence": None}
    row["signal"] = {"rate": 250.0, "channels": ["a"], "units": units}
    found = refuse(in_unit("uV").manifest.inputs["input"], row)
    assert (found is not None and found[0] == "unknown_unit") == refused


def test_a_net_that_gives_no_triples_gives_no_events():
    with pytest.raises(ItemError) as caught:
        drive(
            make_task(recipe("spindles")), unit_of(data.eeg()), lambda step, inputs: {"detection": torch.ones(1, 9, 2)}
        )
    assert caught.value.code == "wrong_outputs"
