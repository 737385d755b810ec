"""The Task interface holds for tasks that are not ours: one with a state, one with tiles and two outputs."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import made
import nibabel
import numpy as np
import pyarrow as pa
import pytest
import torch

from diastole.jobs.task import DenseMap, Options, Result, Task, Window
from diastole.lake import arrays
from diastole.lake.items import read_items
from diastole.workers import tasks
from diastole.workers.ingest import IngestOptions, ingest

RECURRENT = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(2, 5, batch_first=True)
    def forward(self, x, hidden):
        out, last = self.gru(x, hidden.transpose(0, 1).contiguous())
        return out, last.transpose(0, 1)
"""


class Running(Options):
    size: int = 50


@dataclass
class Memory:
    length: int
    hidden: torch.Tensor
    out: list[np.ndarray] = field(default_factory=list)


class Recurrent(Task):
    """Windows of a recording in order; the hidden state travels from each to the next."""

    name, version, ordered, outputs = "recurrent", 1, True, ("trace", "hidden")
    item_columns: ClassVar[pa.Schema] = pa.schema([pa.field("trace", pa.list_(pa.float32()))])
    options_type = Running

    def begin(self, unit: Any) -> Memory:
        return Memory(unit.data["input"].shape[1], torch.zeros(1, 5))

    def windows(self, state, step):
        starts = range(0, state.length, self.options.size)
        cuts = [(slice(None), slice(s, min(s + self.options.size, state.length))) for s in starts]
        return [Window(n, {"input": cut}, bucket=cut[1].stop - cut[1].start) for n, cut in enumerate(cuts)]

    def prepare(self, state, window, raw):
        return raw["input"].T, state.hidden  # what the window before it has left

    def encode(self, step, ready, device):
        x = torch.from_numpy(np.stack([x for x, _ in ready]).astype(np.float32)).to(device)
        return {"x": x, "hidden": torch.stack([hidden for _, hidden in ready]).to(device)}

    def collect(self, state, step, window, outputs):
        assert window.index == len(state.out)
        state.out.append(outputs["trace"].cpu().numpy())
        state.hidden = outputs["hidden"].clone()

    def finish(self, state):
        return Result({"trace": np.concatenate(state.out).ravel()})


TILED = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv3d(1, 4, 3)
        self.second = torch.nn.Conv3d(4, 2, 3)
    def forward(self, x):
        both = self.second(torch.relu(self.first(x)))
        return {"edges": both[:, 0], "heat": both[:, 1]}
"""
HALO = 2


class Tiling(Options):
    tile: int = 6


@dataclass
class Canvas:
    shape: tuple[int, ...]
    padded: np.ndarray
    edges: np.ndarray
    heat: float = 0.0
    tiles: int = 0


class Tiled(Task):
    """Tiles with a halo, stitched; one output becomes a map, the other a column."""

    name, version, outputs = "tiled", 1, ("edges", "heat")
    item_columns: ClassVar[pa.Schema] = pa.schema([pa.field("heat", pa.float64()), pa.field("tiles", pa.int64())])
    options_type = Tiling

    def begin(self, unit):
        data = unit.data["input"].astype(np.float32)
        return Canvas(data.shape, np.pad(data, HALO), np.empty(data.shape, np.float32))

    def windows(self, state, step):
        size, found = self.options.tile, []
        for corner in np.ndindex(*(-(-n // size) for n in state.shape)):
            inner = tuple(slice(c * size, min(c * size + size, n)) for c, n in zip(corner, state.shape, strict=True))
            shape = tuple(s.stop - s.start for s in inner)
            found.append(Window(len(found), {}, bucket=shape, tag=inner))
        return found

    def prepare(self, state, window, raw):
        return state.padded[tuple(slice(s.start, s.stop + 2 * HALO) for s in window.tag)]

    def encode(self, step, ready, device):
        return {"x": torch.from_numpy(np.stack(ready))[:, None].to(device)}

    def collect(self, state, step, window, outputs):
        state.edges[window.tag] = outputs["edges"].cpu().numpy()
        state.heat += float(outputs["heat"].double().sum())
        state.tiles += 1

    def finish(self, state):
        return Result({"heat": state.heat, "tiles": state.tiles}, maps={"edges": DenseMap(state.edges, "input")})


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The tasks, as an installed package brings them: by entry points."""
    points = [SimpleNamespace(name=kind.name, load=lambda kind=kind: kind) for kind in (Recurrent, Tiled)]
    monkeypatch.setattr(tasks, "entry_points", lambda group: points if group == "diastole.tasks" else [])
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


def network(code: str, seed: int) -> tuple[Any, bytes]:
    space: dict[str, Any] = {}
    exec(code, space)
    torch.manual_seed(seed)
    net = space["Net"]().eval()
    return net, made.saved(net.state_dict())


def packaged(lake, code, task, **fields):
    net, weights = network(code, 0)
    made.add_model(
        lake,
        {"net.pt": weights, "code.py": code.encode()},
        task=task,
        runtime="python",
        network="code.py:Net",
        inputs={"input": {}},
        **fields,
    )
    return net


@pytest.fixture
def recordings(lake, tmp_path):
    """Of 1 to 9 windows, of lengths that are no multiple of one."""
    import edfio

    (tmp_path / "src").mkdir()
    rng = np.random.default_rng(0)
    for number, seconds in enumerate([1, 9, 4, 6, 2, 9, 3]):
        signals = [edfio.EdfSignal(rng.normal(0, 9, 47 * seconds), 47, label=f"EEG {c}") for c in "ab"]
        edfio.Edf(signals).write(tmp_path / "src" / f"r{number}.edf")
    ingest(lake, "d", [tmp_path / "src"])
    return lake


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_state_travels_from_window_to_window_as_in_one_pass_over_the_whole(recordings, batch):
    lake = recordings
    net = packaged(lake, RECURRENT, "recurrent", batch=batch)
    assert made.run(lake, options={"size": 50}).scored == 7
    rows = made.table(lake)
    assert len({r["item_id"] for r in rows}) == 7
    items = {i["item_id"]: i for i in read_items(lake, "d").to_pylist()}
    for row in rows:
        item = items[row["item_id"]]
        data, _ = arrays.read_whole(lake, item["array"], item["content_digest"])
        with torch.inference_mode():
            whole, _ = net(torch.from_numpy(data.T.astype(np.float32))[None], torch.zeros(1, 1, 5))
        assert np.allclose(row["trace"], whole.ravel().numpy(), rtol=0, atol=1e-6)


def test_a_window_that_fails_ends_its_recording_and_no_other(recordings):
    lake = recordings
    packaged(lake, RECURRENT, "recurrent", batch=100)
    whole = Recurrent.prepare

    def failing(self, state, window, raw):
        if state.length == 47 * 4 and window.index == 2:
            raise ValueError("it cannot be prepared")
        return whole(self, state, window, raw)

    Recurrent.prepare = failing
    try:
        outcome = made.run(lake)
    finally:
        Recurrent.prepare = whole
    assert (outcome.scored, outcome.failed) == (6, 1)
    assert [r["error_code"] for r in made.table(lake) if r["error_code"]] == ["task_error"]


@pytest.mark.parametrize(("tile", "batch"), [(6, 1), (6, 4), (5, 1000), (64, 1)])
def test_tiles_with_enough_halo_give_what_the_whole_volume_gives(lake, tmp_path, tile, batch):
    rng = np.random.default_rng(1)
    (tmp_path / "src").mkdir()
    volumes = [rng.normal(size=shape).astype(np.float32) for shape in ((13, 17, 11), (8, 6, 20))]
    for number, volume in enumerate(volumes):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "src" / f"v{number}.nii.gz")
    ingest(lake, "d", [tmp_path / "src"], IngestOptions(public=True))
    net = packaged(lake, TILED, "tiled", batch=batch)
    assert made.run(lake, options={"tile": tile}).scored == 2
    for number, volume in enumerate(volumes):
        with torch.inference_mode():
            whole = net(torch.from_numpy(np.pad(volume.T, HALO).copy())[None, None])
        row = next(r for n, r in made.by_name(lake).items() if f"v{number}" in n)
        [dense] = row["maps"]
        stitched, meta = arrays.read_whole(lake, dense["path"], dense["digest"])
        assert np.allclose(stitched, whole["edges"][0].numpy(), rtol=0, atol=1e-5)
        assert row["heat"] == pytest.approx(float(whole["heat"].double().sum()), abs=1e-2)
        assert row["tiles"] == np.prod([-(-n // tile) for n in volume.shape])
        assert meta["spacing"] == [1.0, 1.0, 1.0]


def test_a_task_that_is_not_there_is_named_with_those_that_are(lake):
    from diastole.lake.errors import SpecError

    packaged(lake, TILED, "untold")
    with pytest.raises(SpecError, match=r"there is no task 'untold'; there is: .*segment, .*recurrent, tiled"):
        made.run(lake)


def test_a_unit_that_fails_in_its_first_window_is_failed_though_the_rest_is_fine(lake, tmp_path, monkeypatch):
    whole = Tiled.collect

    def failing(self, state, step, window, outputs):
        if window.index == 0:
            raise ValueError("its first tile cannot be taken in")
        whole(self, state, step, window, outputs)

    monkeypatch.setattr(Tiled, "collect", failing)
    (tmp_path / "src").mkdir()
    volume = np.random.default_rng(1).normal(size=(13, 17, 11)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "src" / "v.nii.gz")
    ingest(lake, "d", [tmp_path / "src"], IngestOptions(public=True))
    packaged(lake, TILED, "tiled", batch=1)
    assert made.run(lake, options={"tile": 3}).failed == 1
    assert [row["error_code"] for row in made.table(lake)] == ["task_error"]
