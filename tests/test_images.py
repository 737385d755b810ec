"""Images from files to packs, and from packs to predictions."""

import gzip

import made
import numpy as np
import pytest
import torch

from diastole.lake import integrity, items, packs
from diastole.workers import images, publish
from diastole.workers.ingest import IngestOptions, ingest
from diastole.workers.tasks.classify import Classify

PUBLIC = IngestOptions(public=True, modality="XC")
VERIFY = IngestOptions(public=True, modality="XC", verify=True)


def stack(count=10, shape=(20, 24), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (count, *shape)).astype(dtype)


def put(folder, name, data):
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", data)
    return folder


def rows_by_name(lake):
    return {row["name"]: row for row in items.read_items(lake, "d").to_pylist() if row["state"] == "live"}


def stored(lake, row):
    """An image, read back, held to its digest."""
    pack = packs.Pack.open(lake, row["array"])
    data, bad = pack.read(row["row"], row["row"] + 1, packs.raw_digests([row["content_digest"]]))
    assert not bad.any()
    assert (list(data.shape[1:]), data.dtype.name, data.nbytes) == (row["shape"], row["dtype"], row["nbytes"])
    return data[0]


LAYOUTS = {
    "N, H, W": ((10, 20, 24), lambda data: data[:, None]),
    "N, H, W, C": ((10, 20, 24, 3), lambda data: data.transpose(0, 3, 1, 2)),
    "N, C, H, W": ((10, 5, 20, 24), lambda data: data),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stack_becomes_one_pack_whatever_its_layout(lake, tmp_path, layout, dtype):
    shape, canonical = LAYOUTS[layout]
    data = stack(shape[0], shape[1:], dtype)
    report = ingest(lake, "d", [put(tmp_path / "in", "cells", data)], PUBLIC)
    assert (report.added, report.quarantined) == (10, {})
    rows = rows_by_name(lake)
    assert len({row["array"] for row in rows.values()}) == 1
    for number, image in enumerate(canonical(data)):
        row = rows[f"cells#{number}"]
        assert np.array_equal(stored(lake, row), image)
        assert (row["row"], row["modality"], row["geometry"]) == (number, "XC", None)
    assert integrity.check(lake, deep=True) == []


REFUSED = {
    "axes that could be either": (np.zeros((5, 3, 20, 4), np.uint8), "unsupported"),
    "no axis of channels": (np.zeros((5, 40, 20, 24), np.uint8), "unsupported"),
    "one image of several channels": (np.zeros((20, 24, 3), np.uint8), "unsupported"),
    "two axes": (np.zeros((20, 24), np.uint8), "unsupported"),
    "no image": (np.zeros((0, 20, 24), np.uint8), "unsupported"),
    "other numbers": (np.zeros((5, 20, 24), np.float64), "unsupported"),
    "Fortran order": (np.asfortranarray(np.zeros((5, 20, 24), np.uint8)), "unsupported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_stack_that_cannot_be_told_for_sure_is_refused(lake, tmp_path, name):
    data, code = REFUSED[name]
    assert ingest(lake, "d", [put(tmp_path / "in", "a", data)]).quarantined == {code: 1}


def test_objects_are_never_unpickled_and_lying_or_cut_stacks_are_refused(lake, tmp_path):
    folder = put(tmp_path / "in", "whole", stack())
    whole = (folder / "whole.npy").read_bytes()
    np.save(folder / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (folder / "cut.npy").write_bytes(whole[:-1])
    (folder / "more.npy").write_bytes(whole + b"\0")
    (folder / "cut.npy.gz").write_bytes(gzip.compress(whole[:-1]))
    (folder / "good.npy.gz").write_bytes(gzip.compress(whole))
    (folder / "header.npy").write_bytes(whole[:30] + b"\xff" * 40)
    report = ingest(lake, "d", [folder], PUBLIC)
    assert report.quarantined == {"unsupported": 1, "truncated": 2, "header_lies": 1, "unreadable": 1}
    assert report.added == 20


def test_an_unchanged_stack_is_not_read_and_a_changed_image_moves_alone(lake, tmp_path):
    data = stack()
    ingest(lake, "d", [put(tmp_path / "in", "a", data)], PUBLIC)
    before = rows_by_name(lake)
    report = ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    assert (report.opened, report.unchanged) == (0, 10)
    data[3] += 1
    report = ingest(lake, "d", [put(tmp_path / "in", "a", np.concatenate([data, stack(1, seed=9)]))], PUBLIC)
    assert (report.added, report.changed, report.unchanged) == (1, 1, 9)
    after = rows_by_name(lake)
    assert {name for name in before if after[name]["array"] != before[name]["array"]} == {"a#3"}
    assert np.array_equal(stored(lake, after["a#3"])[0], data[3])
    report = ingest(lake, "d", [put(tmp_path / "in", "a", data[:4])], PUBLIC)
    assert (report.gone, report.unchanged) == (7, 4)


def test_what_is_said_of_an_image_changes_without_a_new_pack(lake, tmp_path):
    ingest(lake, "d", [put(tmp_path / "in", "a", stack())], PUBLIC)
    before = rows_by_name(lake)
    report = ingest(lake, "d", [tmp_path / "in"], IngestOptions(public=True, modality="SM"))
    assert report.changed == 10
    assert [r["array"] for r in rows_by_name(lake).values()] == [r["array"] for r in before.values()]
    assert {row["modality"] for row in rows_by_name(lake).values()} == {"SM"}


def test_packs_are_cut_by_bytes_and_none_is_left_with_one_image(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 4 * 480 + 10)
    monkeypatch.setattr(publish, "BYTES", 4 * 480 + 10)
    for name in "abc":
        put(tmp_path / "in", name, stack(4, seed=ord(name)))
    ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    rows = list(rows_by_name(lake).values())
    assert sorted(sum(row["array"] == path for row in rows) for path in {row["array"] for row in rows}) == [4, 4, 4]
    for name in "abc":
        for number, image in enumerate(stack(4, seed=ord(name))):
            assert np.array_equal(stored(lake, rows_by_name(lake)[f"{name}#{number}"])[0], image)


def test_images_enter_once_also_where_batches_of_new_and_of_known_ones_mix(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "IMAGES", 3)
    ingest(lake, "d", [put(tmp_path / "in", "b", stack())], PUBLIC)
    put(tmp_path / "in", "a", stack(seed=1))
    put(tmp_path / "in", "b", stack(12, seed=2))
    report = ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    assert (report.added, report.changed) == (12, 10)
    ids = items.read_items(lake, "d")["item_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 22


def test_another_ingest_that_comes_between_adds_no_item_twice(lake, tmp_path, monkeypatch):
    """A batch that found none of its items in the table appends; if another has added them meanwhile, it merges."""
    ingest(lake, "d", [put(tmp_path / "other", "z", stack(2, seed=5))], PUBLIC)
    put(tmp_path / "in", "a", stack())
    real, done = publish.put_images, []

    def between(*args):
        if not done:
            done.append(True)
            ingest(lake, "d", [tmp_path / "in"], PUBLIC)
        return real(*args)

    monkeypatch.setattr(publish, "put_images", between)
    ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    ids = items.read_items(lake, "d")["item_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 12


def flip(lake, path):
    data = bytearray(lake.store.get(path))
    data[5] ^= 1
    lake.store.put(path, bytes(data))


def shard(row):
    return f"{row['array']}/images/c/0/0/0/0"


DAMAGE = {
    "a flipped bit": lambda lake, row: flip(lake, shard(row)),
    "no shard": lambda lake, row: lake.store.delete(shard(row)),
    "no metadata": lambda lake, row: lake.store.delete(f"{row['array']}/zarr.json"),
    "other metadata": lambda lake, row: flip(lake, f"{row['array']}/images/zarr.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pack_is_found_and_written_anew_by_ingest_verify(lake, tmp_path, damage):
    ingest(lake, "d", [put(tmp_path / "in", "a", stack())], PUBLIC)
    ingest(lake, "d", [put(tmp_path / "in", "b", stack(seed=1))], PUBLIC)
    before = rows_by_name(lake)
    DAMAGE[damage](lake, before["a#0"])
    assert integrity.check(lake, deep=True)
    assert ingest(lake, "d", [tmp_path / "in"], PUBLIC).opened == 0  # it does not look
    report = ingest(lake, "d", [tmp_path / "in"], VERIFY)
    assert (report.opened, report.unchanged, report.healed) == (2, 20, 10)
    assert integrity.check(lake, deep=True) == []
    assert rows_by_name(lake) == before
    assert all(np.array_equal(stored(lake, before[f"a#{n}"])[0], image) for n, image in enumerate(stack()))
    assert ingest(lake, "d", [tmp_path / "in"], VERIFY).healed == 0


@pytest.mark.parametrize("at_once", [5, 100])
def test_images_of_a_damaged_pack_get_a_new_one_where_others_of_it_have_no_source(lake, tmp_path, monkeypatch, at_once):
    for name in "ab":
        put(tmp_path / "in", name, stack(5, seed=ord(name)))
    ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    before = rows_by_name(lake)
    lake.store.delete(shard(before["a#0"]))
    monkeypatch.setattr(publish, "IMAGES", at_once)  # 5: the last batch has no claim of its own
    report = ingest(lake, "d", [tmp_path / "in" / "a.npy"], VERIFY)
    assert report.healed == 5
    assert items.read_items(lake, "d").num_rows == 10
    after = rows_by_name(lake)
    for number, image in enumerate(stack(5, seed=ord("a"))):
        assert np.array_equal(stored(lake, after[f"a#{number}"])[0], image)
    assert after["b#0"] == before["b#0"]


def test_images_that_come_back_to_a_damaged_pack_make_it_whole(lake, tmp_path):
    ingest(lake, "d", [put(tmp_path / "in", "a", stack())], PUBLIC)
    first = rows_by_name(lake)
    ingest(lake, "d", [put(tmp_path / "in", "a", stack(seed=1))], PUBLIC)
    flip(lake, shard(first["a#0"]))
    assert ingest(lake, "d", [put(tmp_path / "in", "a", stack())], VERIFY).changed == 10
    assert rows_by_name(lake)["a#0"]["array"] == first["a#0"]["array"]
    assert np.array_equal(stored(lake, rows_by_name(lake)["a#0"])[0], stack()[0])
    assert integrity.check(lake, deep=True) == []


@pytest.fixture(params=[True, False], ids=["blocks", "one by one"])
def either_way(request, monkeypatch):
    """As blocks of a pack, and one by one, as a task takes images that knows no blocks."""
    monkeypatch.setattr(Classify, "blocks", request.param)


NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))
"""


def model(lake, **fields):
    torch.manual_seed(0)
    namespace = {}
    exec(NET, namespace)
    net = namespace["Net"]()
    said = {"task": "classify", "runtime": "python", "network": "code.py:Net", "classes": ["a", "b", "c"], "batch": 8}
    said |= {"inputs": {"input": {"modality": ["XC"], "axes": "cyx"}}, "options": {"scale": 1 / 255}}
    made.add_model(lake, {"net.pt": made.saved(net.state_dict()), "code.py": NET.encode()}, **said | fields)
    return net.eval()


def test_packed_images_are_scored_as_plain_pytorch_scores_them(lake, tmp_path, monkeypatch, either_way):
    data = np.concatenate([stack(30), stack(30, seed=1)])
    put(tmp_path / "in", "a", data[:30])
    put(tmp_path / "in", "b", data[30:])
    ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    net = model(lake)
    made.run(lake)
    made.assert_each_once(lake, 60)
    with torch.inference_mode():
        wanted = net(torch.tensor(data[:, None]).float() * (1 / 255)).softmax(1).numpy()
    found = made.scores(lake)
    for number in range(60):
        name = f"{'ab'[number // 30]}#{number % 30}"
        assert found[name] == pytest.approx(wanted[number], abs=1e-6)
    assert made.run(lake).scored == 0


def test_a_shard_reads_each_chunk_of_a_pack_once(lake, tmp_path, monkeypatch, either_way):
    monkeypatch.setattr(packs, "CHUNK_BYTES", 4 * 480)
    ingest(lake, "d", [put(tmp_path / "in", "a", stack(20))], PUBLIC)
    model(lake)
    opened, read = [], []
    real_open, real_chunks = packs.Pack.open.__func__, packs.Pack._chunks
    monkeypatch.setattr(packs.Pack, "open", classmethod(lambda cls, *a: (opened.append(a[1]), real_open(cls, *a))[1]))
    monkeypatch.setattr(
        packs.Pack, "_chunks", lambda self, a, b: (read.extend(range(a, b)), real_chunks(self, a, b))[1]
    )
    outcome = made.run(lake)
    assert outcome.scored == 20
    assert len(opened) == 1
    assert sorted(read) == list(range(5))


@pytest.mark.fault(25)
def test_a_damaged_chunk_fails_its_images_alone_and_they_are_scored_once_it_is_healed(
    lake, tmp_path, monkeypatch, either_way
):
    monkeypatch.setattr(packs, "CHUNK_BYTES", 4 * 480)
    ingest(lake, "d", [put(tmp_path / "in", "a", stack(20))], PUBLIC)
    model(lake)
    good = rows_by_name(lake)
    flip(lake, shard(good["a#0"]))
    outcome = made.run(lake)
    assert (outcome.scored, outcome.failed) == (16, 4)
    assert {n for n, code in made.codes(lake).items() if code} == {"a#0", "a#1", "a#2", "a#3"}
    assert {code for code in made.codes(lake).values() if code} == {"pack_unreadable"}
    ingest(lake, "d", [tmp_path / "in"], VERIFY)
    outcome = made.run(lake, made.driver.Choice(retry=True))
    assert (outcome.scored, outcome.failed) == (4, 0)


@pytest.mark.fault(23)
def test_a_lost_pack_fails_its_images_and_no_others(lake, tmp_path, monkeypatch, either_way):
    ingest(lake, "d", [put(tmp_path / "in", "a", stack(5))], PUBLIC)
    ingest(lake, "d", [put(tmp_path / "in", "b", stack(5, seed=1))], PUBLIC)
    model(lake)
    lake.store.delete(f"{rows_by_name(lake)['a#0']['array']}/zarr.json")
    made.run(lake)
    assert made.codes(lake) == {f"a#{n}": "pack_unreadable" for n in range(5)} | {f"b#{n}": None for n in range(5)}


@pytest.mark.parametrize("block", [1, 480 * 3, 2**25])
def test_images_are_read_one_by_one_in_any_order(lake, tmp_path, monkeypatch, block):
    monkeypatch.setattr(images, "BLOCK_BYTES", block)
    for name in "ab":
        put(tmp_path / "in", name, stack(6, seed=ord(name)))
        ingest(lake, "d", [tmp_path / "in"], PUBLIC)
    rows = list(rows_by_name(lake).values())
    wanted = [rows[n] for n in np.random.default_rng(0).permutation(12)] + rows
    reader = images.ImageReader(lake, wanted)
    for row in [*wanted, *wanted[::3], *wanted[::-1]]:  # each twice, not all, and again what was passed
        assert np.array_equal(reader.read(row)[0], stored(lake, row))
