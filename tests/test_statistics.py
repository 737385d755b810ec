"""Statistics of a cohort: equal to numpy, scipy and a plain Counter on the whole data, whoever computes them."""

import json
import os
from collections import Counter
from itertools import product

import cyvcf2
import debian
import edfio
import made
import nibabel
import numpy as np
import pytest
import scipy.signal
from published import data as examples

from diastole.cluster import cohort, private_ray
from diastole.cluster.driver import give_up
from diastole.cluster.repair import mend
from diastole.jobs import covered
from diastole.jobs.withdraw import withdraw, would_withdraw
from diastole.lake import integrity, statistics
from diastole.lake.errors import BusyError, EnvironmentFailure, LakeError
from diastole.lake.items import read_items
from diastole.lake.leases import exclusive
from diastole.lake.scrub import scrub
from diastole.workers.ingest import IngestOptions, ingest
from diastole.workers.statistics.batch import Partial, count, merged
from diastole.workers.statistics.intensity import Intensity
from diastole.workers.statistics.letters import BASES, Letters
from diastole.workers.statistics.spectrum import Spectrum


def groups(lake, dataset="d", **how):
    found = cohort.dataset_statistics(lake, dataset, **how).found
    assert found["left_out"] == {}
    return found["groups"]


def assert_intensities(group, values):
    """Counts of each bin, moments and percentiles are numpy's, of all `values` (float64) at once."""
    values = np.ravel(values)
    near, told = values.astype(np.float32), group["histogram"]
    low, high = np.array(told["low"], np.float32), np.array(told["high"], np.float32)
    assert (high >= low).all()
    assert (low[1:] > high[:-1]).all()
    order = np.sort(near)
    counts = np.searchsorted(order, high, side="right") - np.searchsorted(order, low, side="left")
    assert told["counts"] == counts.tolist()
    assert sum(told["counts"]) == group["values"] == len(values)
    assert (group["min"], group["max"]) == (values.min(), values.max())
    np.testing.assert_allclose([group["mean"], group["std"]], [values.mean(), values.std(ddof=1)], rtol=1e-9)
    for percent, value in group["percentiles"].items():
        known = np.percentile(values, float(percent), method="inverted_cdf")
        np.testing.assert_allclose(value, known, rtol=1 / 2048, atol=0)


# Intensities


@pytest.fixture(scope="module")
def brain():
    return nibabel.load(examples.brain())


def test_intensities_of_volumes_are_numpys_by_site_and_in_all(lake, tmp_path, brain):
    (tmp_path / "v").mkdir()
    whole, lines = np.asarray(brain.dataobj), ["path,site"]
    held = {"north": [], "south": []}
    for number, (site, kind) in enumerate(product(held, (np.int16, np.uint8, np.float32))):
        part = (whole[:, :, 60 + number :: 40] * 1.5).astype(kind)
        image = nibabel.Nifti1Image(part, brain.affine)
        if kind is np.int16:
            image.header.set_slope_inter(0.25, -1000.0)
        nibabel.save(image, tmp_path / "v" / f"{number}.nii.gz")
        held[site].append(nibabel.load(tmp_path / "v" / f"{number}.nii.gz").get_fdata().ravel())
        lines.append(f"v/{number}.nii.gz,{site}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    ingest(lake, "d", [tmp_path / "v"], IngestOptions(modality="MR", manifest=tmp_path / "m.csv"))
    [one] = groups(lake)
    assert (one["modality"], one["site"], one["items"], one["non_finite"]) == ("MR", None, 6, 0)
    assert_intensities(one, np.concatenate([*held["north"], *held["south"]]))
    split = groups(lake, by="site")
    assert [group["site"] for group in split] == ["north", "south"]
    for group in split:
        assert_intensities(group, np.concatenate(held[group["site"]]))
    assert len(statistics.stored(lake, "d")) == 2


def test_each_channel_of_images_has_its_own_and_their_values_have_a_bin_each(lake, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 40, 30, 3)).astype(np.uint8)
    (tmp_path / "i").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "i" / f"{number}.png")
    ingest(lake, "d", [tmp_path / "i"], IngestOptions(modality="XC"))
    found = groups(lake)
    assert [group["channel"] for group in found] == [0, 1, 2]
    for group in found:
        values = pixels[..., group["channel"]]
        assert_intensities(group, values.astype(np.float64))
        assert group["histogram"]["low"] == list(range(256))
        assert group["histogram"]["counts"] == np.bincount(values.ravel(), minlength=256).tolist()
        for percent, value in group["percentiles"].items():
            assert value == np.percentile(values, float(percent), method="inverted_cdf")


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"),
    [("int16", 1.0, 0.0), ("int8", -2.0, 7.0), ("uint16", 1e-3, 1e6), ("float32", 1.0, 0.0), ("float64", 3.0, -1e4)],
)
def test_values_below_and_above_zero_near_and_far_are_counted_where_they_belong(dtype, slope, intercept):
    rng = np.random.default_rng(1)
    raw = (rng.standard_t(1.5, (3, 50_000)) * 40 + 20).clip(-30_000, 30_000).astype(dtype)
    held = Intensity()
    for item in raw:
        held.add(item, slope, intercept)
    assert_intensities(held.told(), raw.astype(np.float64) * slope + intercept)


def test_what_is_not_finite_is_counted_and_left_out():
    raw = np.array([1.0, np.nan, np.inf, -np.inf, 3.0, 1e300, -0.0])
    held = Intensity()
    held.add(raw, 1.0, 0.0)
    told = held.told()
    assert (told["values"], told["non_finite"], told["min"], told["max"]) == (3, 4, 0.0, 3.0)
    assert told["histogram"]["low"][0] == 0.0
    nothing = Intensity()
    nothing.add(np.array([np.nan]), 1.0, 0.0)
    assert nothing.told() == {"items": 1, "values": 0, "non_finite": 1}
    nothing.merge(held)
    assert nothing.told()["values"] == 3


# Power spectra


def test_power_spectra_are_those_of_scipy(lake, tmp_path):
    (tmp_path / "e").mkdir()
    eeg = examples.eeg()
    longer = np.tile(eeg, 40)  # more than one block of windows
    examples.write_edf(tmp_path / "e" / "a.edf", [longer, longer[::-1]], ["EEG Cz", "EEG Pz"])
    ingest(lake, "d", [tmp_path / "e"], IngestOptions(modality="EEG"))
    stored = edfio.read_edf(tmp_path / "e" / "a.edf")
    found = {group["channel"]: group for group in groups(lake)}
    assert sorted(found) == ["EEG Cz", "EEG Pz"]
    for signal in stored.signals:
        group = found[signal.label]
        frequencies, power = scipy.signal.welch(signal.data, 250.0, nperseg=1000)
        np.testing.assert_allclose(group["frequencies"], frequencies)
        np.testing.assert_allclose(group["power"], power, rtol=1e-6)
        assert (group["unit"], group["rate_hz"], group["items"]) == ("uV", 250.0, 1)
        assert group["windows"] > 2 * 256


def test_recordings_count_by_their_windows_and_one_that_is_too_short_is_said():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 100, 1000).astype(np.int16), rng.normal(0, 100, 3300).astype(np.int16)
    held = Spectrum(50.0)
    for raw in (first, second, first[:100]):
        held.add(raw, 0.5, 2.0)
    told = held.told()
    windows = [9, 32]
    powers = [scipy.signal.welch(raw * 0.5 + 2.0, 50.0, nperseg=200)[1] for raw in (first, second)]
    assert (told["windows"], told["short"], told["items"]) == (sum(windows), 1, 2)
    np.testing.assert_allclose(told["power"], np.average(powers, axis=0, weights=windows), rtol=1e-9)
    held.add(np.full(1000, np.nan, np.float32), 1.0, 0.0)
    assert held.told()["non_finite"] == 1


# Sequences


def test_letters_and_kmers_of_real_contigs_and_proteins_are_those_of_a_counter(lake):
    paths = {"dna": examples.contigs("mitochondria"), "protein": None}
    ingest(lake, "dna", [paths["dna"]], IngestOptions(alphabet="dna"))
    text = paths["dna"].read_text().split(">")[1:]
    records = ["".join(record.splitlines()[1:]).upper() for record in text]
    [group] = groups(lake, "dna")
    assert group["items"] == len(records)
    assert_letters(group, records, 4, "ACGT")


def test_proteins_of_the_pdb(lake, tmp_path):
    chains = {f"{name}{c}": s for name in examples.STRUCTURES for c, (s, _) in examples.chains(name).items()}
    examples.write_fasta(tmp_path / "p.fasta", chains)
    ingest(lake, "d", [tmp_path / "p.fasta"], IngestOptions(alphabet="protein"))
    [group] = groups(lake)
    assert_letters(group, list(chains.values()), 3, BASES["protein"])


def assert_letters(group, records, k, bases):
    assert group["letters"] == Counter("".join(records))
    words = Counter(r[at : at + k] for r in records for at in range(len(r) - k + 1))
    assert group["kmers"] == {word: n for word, n in words.items() if set(word) <= set(bases)}


def test_a_kmer_over_the_end_of_a_piece_is_counted_once(monkeypatch):
    monkeypatch.setattr("diastole.workers.statistics.letters.PART", 5)
    text = "acgtNacgtacgtTTTTTgac" * 3
    held = Letters("dna")
    held.add(np.frombuffer(text.encode(), np.uint8))
    held.add(np.frombuffer(b"AC", np.uint8))
    assert_letters(held.told(), [text.upper(), "AC"], 4, "ACGT")


# Variants


def test_allele_frequencies_are_those_of_cyvcf2(lake):
    path = debian.file("EUR_test.vcf.gz")
    ingest(lake, "d", [path], IngestOptions())
    [group] = groups(lake)
    frequencies, counts, missing, called = [], [], 0, 0
    records = list(cyvcf2.VCF(str(path)))
    for record in records:
        calls = np.array([call[:-1] for call in record.genotypes]).ravel()
        missing, called = missing + int((calls == -1).sum()), called + int((calls >= 0).sum())
        for allele in range(1, 1 + len(record.ALT)):
            counts.append(int((calls == allele).sum()))
            frequencies.append(counts[-1] / max(int((calls >= 0).sum()), 1))
    assert (group["variants"], group["alternates"]) == (len(records), len(counts))
    assert (group["missing"], group["called"]) == (missing, called)
    assert (group["absent"], group["singletons"]) == (counts.count(0), counts.count(1))
    assert group["alternate"] == sum(counts)
    known = np.bincount(np.minimum(np.floor(np.array(frequencies) * 100 + 1e-9), 99).astype(int), minlength=100)
    assert group["spectrum"] == known.tolist()


# Whoever computes them


@pytest.fixture
def mixed(lake, tmp_path, monkeypatch):
    """Volumes and recordings of reals, whose sums depend on the order, in many small batches."""
    monkeypatch.setattr("diastole.jobs.covered.BATCH_BYTES", 4000)
    rng = np.random.default_rng(3)
    (tmp_path / "v").mkdir()
    (tmp_path / "e").mkdir()
    for number in range(40):
        data = rng.lognormal(0, 3, (9, 8, 7)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "v" / f"{number}.nii")
    for number in range(6):
        examples.write_edf(tmp_path / "e" / f"{number}.edf", [rng.normal(0, 9, 2500)])
    ingest(lake, "v", [tmp_path / "v"], IngestOptions(modality="MR"))
    ingest(lake, "e", [tmp_path / "e"], IngestOptions(modality="EEG"))
    return lake


def test_results_are_the_same_for_any_number_of_workers_and_rounds(mixed, monkeypatch):
    found = {name: groups(mixed, name) for name in ("v", "e")}
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    for name, known in found.items():
        statistics.drop(mixed, name)
        assert groups(mixed, name) == known
    with private_ray.private_ray(2):
        for name, known in found.items():
            statistics.drop(mixed, name)
            assert groups(mixed, name, workers=2) == known
        statistics.drop(mixed, "e")

        def fails(*_):  # a local function travels to the worker as it is
            raise EnvironmentFailure("storage failed at items")

        monkeypatch.setattr(cohort, "count", fails)
        with pytest.raises(EnvironmentFailure, match="storage failed"):
            groups(mixed, "e", workers=2)
    assert statistics.stored(mixed, "e") == []


def test_counts_that_came_from_elsewhere_are_only_read(mixed):
    with covered.covered(mixed, "e") as (_, items):
        first, second = (count(mixed.store.root, items.slice(start, 3)) for start in (0, 3))
    for partial in (first, second):
        for held in partial.groups.values():
            held.power.flags.writeable = False
    assert merged([first, second, Partial()]).items == 6


def test_batches_are_cut_by_bytes_and_items_and_leave_nothing_out(mixed, monkeypatch):
    with covered.covered(mixed, "v") as (_, items):
        sizes = items["nbytes"].to_pylist()
        spans = covered.cuts(items)
        assert [at for span in spans for at in range(*span)] == list(range(40))
        assert all(sum(sizes[start:stop]) <= 4000 for start, stop in spans)
        monkeypatch.setattr(covered, "BATCH_BYTES", 1)
        assert covered.cuts(items) == [(at, at + 1) for at in range(40)]
        monkeypatch.setattr(covered, "BATCH_BYTES", 2**40)
        monkeypatch.setattr(covered, "BATCH_ITEMS", 16)
        assert covered.cuts(items) == [(0, 16), (16, 32), (32, 40)]
        assert covered.cuts(items.slice(0, 0)) == []


# In the lake


def test_statistics_are_made_once_and_anew_when_the_dataset_has_changed(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(5))
    first = cohort.dataset_statistics(lake, "d")
    again = cohort.dataset_statistics(lake, "d")
    assert (first.made, again.made) == (True, False)
    assert again.found == first.found
    assert covered.covered_digest(lake, "d") == first.found["digest"]
    assert integrity.check(lake, deep=True) == []
    assert f"statistics/d/{first.found['digest']}.json" in integrity.read(lake)["path"].to_pylist()
    made.add_proteins(lake, tmp_path / "src", made.proteins(6))
    changed = cohort.dataset_statistics(lake, "d")
    assert changed.made
    assert changed.found["items"] == 6
    assert statistics.read(lake, "d", first.found["digest"]) == first.found


def test_a_damaged_file_is_found_and_made_anew(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(5))
    found = cohort.dataset_statistics(lake, "d").found
    path = lake.store.path(f"statistics/d/{found['digest']}.json")
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert statistics.read(lake, "d", found["digest"]) is None
    path.write_bytes(whole[:50])
    assert [name for name, _ in integrity.check(lake, deep=True)] == [f"statistics/d/{found['digest']}.json"]
    assert cohort.dataset_statistics(lake, "d").made
    assert path.read_bytes() == whole
    assert integrity.check(lake, deep=True) == []


def test_of_items_that_cannot_be_read_nothing_is_stored_and_the_command_says_so(lake, tmp_path):
    (tmp_path / "v").mkdir()
    for number in range(3):
        data = np.full((5, 5, 5), number, np.int16)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "v" / f"{number}.nii")
    ingest(lake, "d", [tmp_path / "v"], IngestOptions(modality="MR"))
    array = read_items(lake, "d")["array"][0].as_py()
    [shard] = [path for path, _ in lake.store.list(array) if "/c/" in path]
    lake.store.path(shard).write_bytes(b"")
    done = made.cli(lake, "stats", "d", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["left_out"], told["items"]) == (1, {"array_unreadable": 1}, 2), done.stderr
    assert statistics.stored(lake, "d") == []
    ingest(lake, "d", [tmp_path / "v"], IngestOptions(modality="MR", verify=True))
    assert cohort.dataset_statistics(lake, "d").found["items"] == 3


def test_nothing_is_computed_while_another_has_the_lake_alone_and_unknown_datasets_are_named(
    lake, tmp_path, monkeypatch
):
    made.add_proteins(lake, tmp_path / "src", made.proteins(2))
    with pytest.raises(LakeError, match="there is: d"):
        cohort.dataset_statistics(lake, "e")
    monkeypatch.setattr("diastole.cluster.cohort.WAIT", 0.1)
    with exclusive(lake, "sweep"), pytest.raises(BusyError):
        cohort.dataset_statistics(lake, "d")


# Consent


@pytest.fixture
def consented(lake, tmp_path):
    """Proteins of two subjects in d, and of one in e; both have statistics."""
    for dataset, subjects in (("d", ("01", "02")), ("e", ("02",))):
        folder = tmp_path / dataset
        folder.mkdir()
        lines = ["path,subject"]
        for number, subject in enumerate(subjects):
            (folder / f"{subject}.fasta").write_text(f">x\n{made.proteins(1, seed=number)[0]}\n")
            lines.append(f"{subject}.fasta,{subject}")
        (folder / "m.csv").write_text("\n".join(lines))
        ingest(lake, dataset, [folder], IngestOptions(alphabet="protein", manifest=folder / "m.csv"))
        cohort.dataset_statistics(lake, dataset)
        cohort.dataset_statistics(lake, dataset, "site")
    return lake


def test_a_withdrawal_drops_the_statistics_that_included_the_subject_and_no_other(consented):
    subject = consented.subject_id("01")
    assert would_withdraw(consented, [subject]).statistics == 2
    assert withdraw(consented, [subject], give_up).statistics == 2
    assert statistics.stored(consented, "d") == []
    assert len(statistics.stored(consented, "e")) == 2
    assert not [p for p in integrity.read(consented)["path"].to_pylist() if p.startswith("statistics/d/")]
    assert integrity.check(consented, deep=True) == []
    assert cohort.dataset_statistics(consented, "d").found["items"] == 1


@pytest.mark.parametrize(
    "point",
    ["statistics", *(pytest.param(point, marks=pytest.mark.slow) for point in ("packed", "items"))],
)
def test_a_withdrawal_that_was_killed_leaves_no_statistics_either(consented, tmp_path, point):
    command = ("withdraw", "01")
    killed = made.cli(consented, *command, DIASTOLE_CRASH=f"withdraw-{point}:{tmp_path / 'flag'}")
    assert killed.returncode < 0
    assert made.cli(consented, *command).returncode == 0
    assert statistics.stored(consented, "d") == []
    assert integrity.check(consented, deep=True) == []


def test_a_subject_that_is_suppressed_is_not_counted_though_its_items_are_still_there(consented):
    before = covered.covered_digest(consented, "d")
    with exclusive(consented, "sweep"), pytest.raises(BusyError):
        withdraw(consented, [consented.subject_id("01")], give_up)
    assert covered.covered_digest(consented, "d") != before
    assert cohort.dataset_statistics(consented, "d").found["items"] == 1


def test_a_repair_removes_damaged_statistics_and_says_how_to_make_them_anew(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(5))
    name = cohort.dataset_statistics(lake, "d").found["digest"]
    lake.store.path(f"statistics/d/{name}.json").write_text("{}")
    done = mend(lake, scrub(lake, deep=True).findings, 0.0)
    assert done.mended == [(f"statistics/d/{name}.json", "removed; make it anew with: diastole stats d")]
    assert done.left == []
    assert integrity.check(lake, deep=True) == []
    assert cohort.dataset_statistics(lake, "d").made
