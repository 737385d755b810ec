"""Models that normalise by statistics of the dataset: the numbers are frozen in the plan, and part of what a result is of."""

import json

import made
import nibabel
import numpy as np
import pytest
from PIL import Image

from diastole.cluster import cohort
from diastole.cluster.driver import Choice, plan_job
from diastole.jobs.withdraw import withdraw
from diastole.lake import arrays, statistics
from diastole.lake.errors import SpecError
from diastole.lake.items import read_items
from diastole.workers.ingest import IngestOptions, ingest
from diastole.workers.tasks import make_task

NET = """
import torch
class Same(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))
    def forward(self, x):
        return x * self.one
class Mean(Same):
    def forward(self, x):
        return x.mean((2, 3)) * self.one
"""


def package(lake, network, **fields):
    import torch

    files = {"net.pt": made.saved({"one": torch.ones(1)}), "code.py": NET.encode()}
    return made.add_model(lake, files, **{"runtime": "python", "network": f"code.py:{network}", **fields})


def volumes(lake, folder, numbers, subject=None):
    (folder / "v").mkdir(exist_ok=True)
    lines = ["path,subject,name"]
    for number in numbers:
        data = np.random.default_rng(number).normal(100 + number, 20, (6, 7, 8)).astype(np.int16)
        image = nibabel.Nifti1Image(data, np.eye(4))
        image.header.set_slope_inter(0.5, 3.0)
        nibabel.save(image, folder / "v" / f"{number}.nii")
        lines.append(f"v/{number}.nii,s{number},{number}")
    (folder / "m.csv").write_text("\n".join(lines))
    ingest(lake, "d", [folder / "v"], IngestOptions(modality="MR", manifest=folder / "m.csv"))


@pytest.fixture
def scans(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    volumes(lake, tmp_path, range(4))
    package(
        lake,
        "Same",
        task="segment",
        inputs={"input": {"modality": ["MR"], "axes": "zyx", "orientation": "RAS"}},
        classes=["bright"],
        options={"passes": [{"net": "net"}], "intensity": {"normalise": {"from": "dataset"}}},
    )
    return lake


def values(lake):
    """By name of the item, in the unit of the source."""
    rows = read_items(lake, "d").to_pylist()
    found = {}
    for row in rows:
        data, meta = arrays.read_whole(lake, row["array"], row["content_digest"])
        found[row["name"]] = data * meta["rescale"][0] + meta["rescale"][1]
    return found


def test_a_job_without_statistics_is_refused_with_the_command_that_makes_them(scans, tmp_path):
    with pytest.raises(SpecError, match="there are none; make them with: diastole stats d"):
        made.run(scans)
    cohort.dataset_statistics(scans, "d", "site")
    with pytest.raises(SpecError, match="there are none as it is now; make them with: diastole stats d"):
        made.run(scans)
    cohort.dataset_statistics(scans, "d")
    assert made.run(scans).scored == 4
    volumes(scans, tmp_path, range(5))
    with pytest.raises(SpecError, match="as it is now"):
        made.run(scans)


def test_what_a_net_sees_is_normalised_by_mean_and_deviation_of_all_values(scans):
    cohort.dataset_statistics(scans, "d")
    made.run(scans)
    known = values(scans)
    whole = np.concatenate([data.ravel() for data in known.values()])
    rows = made.by_name(scans)
    assert sorted(rows) == sorted(known)
    for name, data in known.items():
        seen = (data - whole.mean()) / whole.std(ddof=1)
        assert not ((seen > 0.499) & (seen < 0.501)).any()
        assert rows[name]["voxels"] == int((seen > 0.5).sum())
        assert rows[name]["mean_probability"] == pytest.approx(seen[seen > 0.5].mean(), rel=1e-5)


def test_the_numbers_are_in_the_plan_and_others_are_another_spec(scans, tmp_path):
    found = cohort.dataset_statistics(scans, "d").found
    plan, _, task = plan_job(scans, made.job(), Choice())
    [group] = found["groups"]
    frozen = {"digest": found["digest"], "mean": [group["mean"]], "std": [group["std"]]}
    assert plan.options["statistics"] == frozen
    assert make_task(task.manifest, plan.task, plan.options).options.statistics.mean == frozen["mean"]
    made.run(scans)
    volumes(scans, tmp_path, range(5))
    cohort.dataset_statistics(scans, "d")
    later, _, _ = plan_job(scans, made.job(), Choice())
    assert later.spec_digest != plan.spec_digest
    assert (later.units.num_rows, later.reasons["new"]) == (5, 1)


def test_a_job_may_keep_its_statistics_while_the_dataset_grows(scans, tmp_path):
    digest = cohort.dataset_statistics(scans, "d").found["digest"]
    options = {"statistics": {"digest": digest}}
    first, _, _ = plan_job(scans, made.job(options=options), Choice())
    assert made.run(scans, options=options).scored == 4
    volumes(scans, tmp_path, range(5))
    assert made.run(scans, options=options).scored == 1
    later, _, _ = plan_job(scans, made.job(options=options), Choice())
    assert later.spec_digest == first.spec_digest
    assert plan_job(scans, made.job(options={"statistics": {"digest": digest, "mean": [7.0], "std": [1.0]}}), Choice())[
        0
    ].spec_digest == (first.spec_digest)  # what a job says of the numbers is not taken
    from diastole.cluster.driver import give_up

    withdraw(scans, [scans.subject_id("s2")], give_up)
    assert statistics.stored(scans, "d") == []
    with pytest.raises(SpecError, match="diastole stats d"):
        made.run(scans, options=options)


def test_the_command_line_refuses_in_one_line(scans, tmp_path):
    done = made.cli(scans, "plan", made.job_file(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("make them with: diastole stats d")


@pytest.mark.parametrize("channels", [None, [2, 0, 0]])
def test_images_are_normalised_channel_by_channel(lake, tmp_path, monkeypatch, channels):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    rng = np.random.default_rng(0)
    pixels = (rng.random((6, 16, 12, 3)) * [250, 120, 60]).astype(np.uint8)
    (tmp_path / "i").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "i" / f"{number}.png")
    ingest(lake, "d", [tmp_path / "i"], IngestOptions(modality="XC", public=True))
    options = {"normalise": {"from": "dataset"}, "scale": 1 / 255, "activation": "none"}
    options |= {"channels": channels} if channels else {}
    package(
        lake, "Mean", task="classify", inputs={"input": {"modality": ["XC"]}}, classes=["a", "b", "c"], options=options
    )
    with pytest.raises(SpecError, match="diastole stats d"):
        made.run(lake)
    cohort.dataset_statistics(lake, "d")
    assert made.run(lake).scored == 6
    seen = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2), ddof=1)
    wanted = seen.mean((1, 2))[:, channels or [0, 1, 2]]
    found = made.scores(lake)
    for number in range(6):
        np.testing.assert_allclose(found[str(number)], wanted[number], atol=1e-5)


def test_statistics_that_no_model_could_use_are_refused(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    made.images(lake, tmp_path, np.full((2, 8, 8), 3, np.uint8))
    options = {"normalise": {"from": "dataset"}, "activation": "none"}
    package(lake, "Mean", task="classify", inputs={"input": {}}, classes=["a"], options=options)
    cohort.dataset_statistics(lake, "d")
    with pytest.raises(SpecError, match="not all alike"):
        made.run(lake)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"intensity": {"normalise": {"from": "dataset"}, "standardise": True}}, "stands alone"),
        ({"intensity": {"normalise": {"from": "elsewhere"}}}, "dataset"),
        ({"statistics": {"digest": "0" * 32}}, "only of use"),
        ({"intensity": {"normalise": {"from": "dataset"}}, "statistics": {"digest": "x"}}, "digest"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(lake, monkeypatch, said, message):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    fields = {"task": "segment", "inputs": {"input": {"modality": ["MR"]}}, "classes": ["x"]}
    manifest = package(lake, "Same", **fields, options={"passes": [{"net": "net"}], **said})
    with pytest.raises(SpecError, match=message):
        make_task(manifest)


def test_options_that_normalise_nothing_are_written_as_they_always_were():
    from diastole.workers.recipes import recipe

    told = json.dumps(make_task(recipe("deepbet")).options.model_dump(mode="json"))
    assert "normalise" not in told
    assert "statistics" not in told
